"""Redraw every table and plot of README.md and docs from the committed results.

    python benchmarks/tables.py [--check]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. A plot is an SVG in
docs/figures that names the hash of its result file. ``--check`` says what differs and redraws
nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "figures"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.S)


def result(name: str) -> dict[str, Any]:
    """One result file."""
    document: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def machine_line(document: dict[str, Any], measured: str) -> str:
    """The machine, versions and n under a table."""
    machine = document["machine"]
    versions = machine["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}"
        for name in (
            "torch",
            "ffcv",
            "numba",
            "pillow",
            "nvidia-dali-cuda130",
            "spdl",
            "torchcodec",
        )
        if versions.get(name)
    )
    gpu = machine["gpu"] or "no GPU"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {gpu}; {measured}; {machine['system']}, "
        f"{packages}."
    )


def table(head: list[str], rows: list[list[str]], line: str) -> str:
    """Markdown, with the line that says where the figures come from."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{line}\n"


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


IMAGENET = 1_281_167
"""Training images of ILSVRC 2012."""


def conversion() -> str:
    """Encodings of a beton: size, time to convert, time to load."""
    document = result("conversion")
    setup, rows = document["configuration"], []
    for name, figures in document["encodings"].items():
        size, converted = figures["bytes_per_image"], statistics.median(figures["convert"])
        rows.append(
            [
                f"`{name}`" if " " not in name else f"`{name.split(',')[0]}`,{name.split(',')[1]}",
                f"{size / 1000:.0f}",
                f"{size * IMAGENET / 1e9:.0f}",
                f"{converted:.0f}",
                f"{IMAGENET / converted / 3600:.1f}",
                *(
                    spread(figures["load"][crop]) if crop in figures["load"] else ""
                    for crop in ("RandomCrop(224)", "RandomResizedCrop(224)")
                ),
            ]
        )
    head = [
        "encoding",
        "KB an image",
        "all of ImageNet, GB",
        "images/s converted",
        "all of ImageNet, hours",
        "images/s loaded, `RandomCrop(224)`",
        "`RandomResizedCrop(224)`",
    ]
    measured = (
        f"{setup['images']} photographs of {setup['file_bytes_per_image'] / 1000:.0f} KB to "
        f"{setup['image_size']} px (whole ones as they are), the start of the workers included; "
        f"loaded from memory by {setup['threads']} threads; medians of n = {setup['rounds']} "
        f"interleaved rounds; ImageNet's {IMAGENET:,} images by the same figures"
    )
    return table(head, rows, machine_line(document, measured))


OURS = {
    "jpg + jpg, mixed": "**XMixLoader**, jpg target + jpg source",
    "raw + jpg, mixed": "**XMixLoader**, raw target + jpg source",
    "raw + raw, mixed": "**XMixLoader**, raw target + raw source",
    "ImageLoader, jpg": "**ImageLoader**, one domain, nothing mixed",
}
PEERS = {
    "XMixLoader, DALI": '**XMixLoader**, jpg + jpg, `backend="dali"`',
    "FFCV, one domain": "FFCV, one domain, nothing mixed",
    "FFCV, two zipped": "FFCV, two loaders zipped",
    "DALI, CPU": "DALI on the CPU",
    "SPDL": "SPDL, its own decoder",
    "SPDL, TorchCodec": "SPDL around TorchCodec",
    "torch DataLoader, TorchCodec": "torch DataLoader, TorchCodec, tuned",
    "torch DataLoader, Pillow": "torch DataLoader, Pillow",
}


def measured_rounds(document: dict[str, Any]) -> str:
    setup = document["configuration"]
    return (
        f"{setup['images']} JPEGs of {setup['jpg_bytes_per_image'] / 1000:.0f} KB, "
        f"{setup['image_size']} px, batch {setup['batch_size']}, {setup['threads']} threads, "
        f"median and range of n = {setup['rounds']} interleaved rounds"
    )


def loaders() -> str:
    """What users would install, side by side."""
    document = result("loader_throughput")
    crops = document["crops"]
    rows = [
        [label, *(spread(crop["rates"][name]) for crop in crops.values())]
        for name, label in {**OURS, **PEERS}.items()
        if all(name in crop["rates"] for crop in crops.values())
    ]
    head = ["samples/s, normalised float32 on the CPU", *(f"`{name}`" for name in crops)]
    return table(head, rows, machine_line(document, measured_rounds(document)))


def compared() -> str:
    """The ratios that the design asks for, and some beside them."""
    document = result("loader_throughput")
    crops = [crop["ratios"] for crop in document["crops"].values()]
    rows = []
    for name in dict.fromkeys(name for ratios in crops for name in ratios):
        found = [ratios.get(name) for ratios in crops]
        asked = next(one["asked"] for one in found if one)
        cells = [shares(one["rounds"]) if one else "" for one in found]
        rows.append([name, f"≥ {asked}" if asked else "", *cells])
    head = ["row / what it is held against", "asked", *(f"`{name}`" for name in document["crops"])]
    return table(head, rows, machine_line(document, measured_rounds(document)))


def shares(values: list[float]) -> str:
    """Median and range of ratios."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def limits() -> str:
    """The machine's limits, and the host stage beside them."""
    document = result("loader_throughput")
    rates = document["crops"]["RandomCrop(224)"]["rates"]
    names = [name for name in rates if name not in OURS and name not in PEERS]
    rows = [[name, spread(rates[name])] for name in names]
    return table(["row", "samples/s"], rows, machine_line(document, measured_rounds(document)))


def cold_cache() -> str:
    """Epochs over data that are not in memory."""
    document = result("cold_cache")
    setup = document["configuration"]
    rows = []
    for name, runs in document["cases"].items():
        cells = [name]
        for first in ("", "second_"):
            waits = statistics.median(run[f"{first}disk_waits"] for run in runs)
            cells += [spread([run[f"{first}pairs_per_s"] for run in runs]), f"{waits:,.0f}"]
        rows.append(cells)
    measured = (
        f"raw + raw uint8 pairs, {setup['images']} images in {setup['file_mb']} MB, memory limited "
        f"to {setup['memory_limit_mb']} MB, process included, n = {setup['rounds']}, interleaved"
    )
    head = ["data", "first epoch, pairs/s", "waits for the disk", "second epoch", "waits"]
    return table(head, rows, machine_line(document, measured))


NAMES = {
    "finetune": "plain fine-tuning (L2)",
    "l2sp": "L2-SP",
    "bss": "BSS",
    "seqtrain": "Seq-Train",
    "cotrain": "Co-Train",
    "mixup": "Mixup",
    "xmixup": "**XMixup**",
    "gradmix": "GradMix, two sources",
}


def step_cost() -> str:
    """Training steps by method and feed."""
    document = result("step_cost")
    setup, times = document["configuration"], document["seconds_per_step"]
    plain = times["finetune, xmix_data"]
    feeds = ("resident batch", "torch DataLoader")

    def relative(name: str) -> str:
        values = times.get(name)
        if values is None:
            return ""
        ratio = statistics.median(v / p for v, p in zip(values, plain, strict=True))
        return f"{1000 * statistics.median(values):.0f} ms, {ratio:.2f}"

    def waiting(method: str) -> str:
        alone = times.get(f"{method}, resident batch")
        if alone is None:
            return ""
        shares_ = [1 - a / t for a, t in zip(alone, times[f"{method}, xmix_data"], strict=True)]
        return f"{max(statistics.median(shares_), 0):.1%}"

    memory = document["memory_mb"]
    rows = [
        [
            label,
            relative(f"{method}, xmix_data"),
            f"{memory[method]:,.0f} MB, {memory[method] / memory['finetune']:.2f}",
            *(relative(f"{method}, {fed_by}") for fed_by in feeds),
            waiting(method),
        ]
        for method, label in NAMES.items()
    ]
    cores = setup["threads"]
    measured = (
        f"{setup['model']}, {setup['dtype']}, {setup['crop']} px, batch {setup['batch_size']}, "
        f"{cores['training']} thread(s) training and {cores['loading']} loading, median of n = "
        f"{setup['rounds']} interleaved rounds of {setup['steps']} steps"
    )
    head = [
        "a step, and times plain fine-tuning's",
        "time, fed by xmix_data",
        "memory",
        *(f"time, fed by {fed_by}" for fed_by in feeds),
        "share of waiting, xmix_data",
    ]
    return table(head, rows, machine_line(document, measured))


def startup() -> str:
    """Seconds until something is there."""
    document = result("startup")
    setup, seconds = document["configuration"], document["seconds"]

    def beyond(name: str, base: str) -> str:
        values = [a - b for a, b in zip(seconds[name], seconds[base], strict=True)]
        return f"{statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"

    def median(values: list[float], unit: str) -> str:
        return f"{statistics.median(values):,.2f} {unit} ({min(values):,.2f}-{max(values):,.2f})"

    opened = document["large_beton"]
    rows = [
        ["`import xmix_data`, which loads no NumPy", median(seconds["import xmix_data"], "s")],
        [
            "from process start to the first batch, beyond `import torch`",
            beyond("first batch", "import torch"),
        ],
        [
            "the same without compiled kernels, process included",
            median(document["first_batch_without_cache_s"], "s"),
        ],
        [
            f"open a beton of {setup['samples']:,} samples",
            median([o["open_s"] for o in opened], "s"),
        ],
        ["its memory that no file backs", median([o["open_mb"] for o in opened], "MB")],
        ["its XMixLoader, with itself as source", median([o["loader_s"] for o in opened], "s")],
        [
            "its first batch (the epoch's order is drawn)",
            median([o["first_batch_s"] for o in opened], "s"),
        ],
    ]
    measured = f"n = {setup['rounds']} interleaved processes, n = 3 for compilation and large beton"
    return table(["what", "median and range"], rows, machine_line(document, measured))


def pairing() -> str:
    """Seconds and memory of pairing classes."""
    document = result("pairing")

    def seconds(runs: list[dict[str, float]], key: str) -> str:
        values = [run[key] for run in runs]
        return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    rows = []
    for name, runs in document["pairings"].items():
        classes, dimensions = name.split(" x ")
        peak = max(run["peak_mb"] for run in runs)
        steps = [seconds(runs, key) for key in ("total_s", "cosines_s", "greedy_s", "optimal_s")]
        rows.append([f"{int(classes):,}", f"{int(dimensions):,}", *steps, f"{peak:,.0f} MB"])
    head = [
        "source classes",
        "dimensions",
        "`pair_classes`, s",
        "cosines, s",
        "greedy, s",
        "optimal, s",
        "peak memory",
    ]
    faiss = document["machine"]["versions"]["faiss-gpu"]
    rounds = document["configuration"]["rounds"]
    measured = f"n = {rounds} processes each, interleaved; faiss-gpu {faiss}"
    return table(head, rows, machine_line(document, measured))


def features() -> str:
    """Extraction beside the model's forward pass."""
    document = result("pairing")
    setup, rates = document["configuration"], document["images_per_s"]
    ours, alone = rates["class_centroids"], rates["the model alone"]
    shares_ = [a / b for a, b in zip(ours, alone, strict=True)]
    rows = [[setup["model"], spread(ours), spread(alone), shares(shares_)]]
    head = ["model", "`class_centroids`, images/s", "the model alone, images/s", "ratio"]
    measured = (
        f"{setup['device']}, {setup['crop']} px, batch {setup['batch_size']}, "
        f"{setup['images']} photographs, n = {setup['rounds']} interleaved rounds"
    )
    return table(head, rows, machine_line(document, measured))


def accuracy_line(document: dict[str, Any]) -> str:
    """How the accuracies were measured."""
    setup = document["configuration"]
    pretraining = setup["pretraining"]
    measured = (
        f"a residual network of widths {', '.join(map(str, setup['widths']))} at {setup['crop']} "
        f"px, trained from scratch on the source ({100 * document['pretrained']:.1f} % there); "
        f"{setup['iterations']} iterations of batch 48 for every method, last iterate; six "
        f"combinations of options for each, chosen on {setup['validation']} held-out images a "
        f"class, the best three on {setup['folds']} such parts (GradMix on one: its step costs "
        f"four); n = {setup['seeds']} seeds of a method, {setup['sweep_seeds']} of all else; "
        f"pre-training {pretraining['iterations']} iterations of batch {pretraining['batch_size']}"
    )
    return machine_line(document, measured)


def mean_and_deviation(values: list[float]) -> str:
    """Percent."""
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"


def difference(values: list[float], base: list[float]) -> str:
    """Paired difference over the seeds with its 95 % confidence interval (t), in points."""
    from scipy import stats

    pairs = [100 * (v - b) for v, b in zip(values, base, strict=False)]
    half = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
    mean = statistics.mean(pairs)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def accuracy_rows(document: dict[str, Any], names: list[str], base: str) -> str:
    """Mean and deviation of some rows, and what they differ by from another."""
    accuracy, chosen = document["accuracy"], document["chosen"]
    rows = []
    for name in names:
        options = chosen.get(name)
        text = ", ".join(f"{k} {v:g}" for k, v in options.items()) if options else ""
        shown = "" if name == base else difference(accuracy[name], accuracy[base])
        label = re.sub(r"([\d.]+) x$", r"\1 x the source images of one round", name)
        rows.append([label, mean_and_deviation(accuracy[name]), shown, text])
    head = ["method", "top-1, %", f"minus {base}, points (95 % interval)", "chosen"]
    return table(head, rows, accuracy_line(document))


def accuracy() -> str:
    """Table 1 of the paper, in small."""
    document = result("transfer_accuracy_cpu")
    return accuracy_rows(document, list(document["chosen"]), "L2")


def ablations() -> str:
    """Tables 3 and 4 of the paper, and the size of the auxiliary set, in small."""
    document = result("transfer_accuracy_cpu")
    base = document["configuration"]["ablation_base"]
    apart = re.compile(r"α = |the iterations|clean statistics")
    names = [n for n in document["accuracy"] if n.startswith("XMixup, ") and not apart.search(n)]
    return accuracy_rows(document, [base, *names], base)


def alphas() -> str:
    """Every α at every learning rate of the sweep."""
    document = result("transfer_accuracy_cpu")
    swept: dict[str, dict[str, str]] = {}
    for name, values in document["accuracy"].items():
        if found := re.fullmatch(r"XMixup, α = (.+), rate (.+)", name):
            swept.setdefault(found[1], {})[found[2]] = mean_and_deviation(values)
    rates = list(next(iter(swept.values())))
    rows = [[alpha, *(row[rate] for rate in rates)] for alpha, row in swept.items()]
    head = ["α", *(f"top-1, %, learning rate {rate}" for rate in rates)]
    return table(head, rows, accuracy_line(document))


def longer() -> str:
    """More iterations, and clean batch statistics: what each does to L2 and to XMixup."""
    document = result("transfer_accuracy_cpu")
    accuracy, setup = document["accuracy"], document["configuration"]
    ends = {
        "as in the first table": "",
        **{f"{n} x the iterations": f", {n} x the iterations" for n in setup["longer"]},
        "batch statistics measured on clean images": ", clean statistics",
    }
    rows = []
    for what, end in ends.items():
        plain, mixed = (accuracy[name + end][: setup["sweep_seeds"]] for name in ("L2", "XMixup"))
        means = mean_and_deviation(plain), mean_and_deviation(mixed)
        rows.append([what, *means, difference(mixed, plain)])
    head = ["", "L2, top-1, %", "XMixup, top-1, %", "XMixup minus L2, points (95 % interval)"]
    return table(head, rows, accuracy_line(document))


def probes() -> str:
    """Table 2 and Fig. 2 of the paper, in small."""
    document = result("transfer_accuracy_cpu")
    rows = []
    for name, found in document["model"].items():
        smallest = found["singular_values"][-3:]
        rows.append(
            [
                name,
                *(f"{100 * share:.1f}" for share in found["probe"].values()),
                ", ".join(f"{value:.3f}" for value in smallest),
            ]
        )
    groups = next(iter(document["model"].values()))["probe"]
    head = ["network", *(f"{group}, %" for group in groups), "smallest singular values"]
    return table(head, rows, accuracy_line(document))


def soak() -> str:
    """What an hour of random scenarios did."""
    document = result("soak")
    setup, memory = document["configuration"], document["memory_mb"]
    rows = [[what, f"{count:,}"] for what, count in document["counts"].items()]
    rows += [
        [
            "memory at the beginning, at the end, at most",
            ", ".join(f"{memory[key]:,.0f} MB" for key in ("first", "last", "most")),
        ],
        ["**differences, threads or files left**", f"{len(document['problems'])}"],
    ]
    measured = f"{setup['rounds']:,} scenarios in {setup['minutes']:.0f} minutes"
    return table(["what", "how many"], rows, machine_line(document, measured))


def lifetimes() -> str:
    """What loaders leave behind."""
    document = result("lifetimes")
    setup, rows = document["configuration"], []
    for name, way in document["ways"].items():
        first, last = way["readings"][0], way["readings"][-1]
        kept = [f"{first[what]:,.0f}, {last[what]:,.0f}" for what in ("python_threads", "files")]
        middle = way["readings"][len(way["readings"]) // 2]
        memory = ", ".join(f"{taken['memory_mb']:.1f}" for taken in (first, middle, last))
        rows.append([name, *kept, memory, f"{way['kb_a_cycle']:+.2f}"])
    head = [
        "a pass ends by",
        "threads before, after",
        "open files",
        "MB before, half-way, after",
        "KB a cycle",
    ]
    measured = f"{setup['cycles']:,} cycles each, memory over the last half of them"
    return table(head, rows, machine_line(document, measured))


FUZZED = {
    "cases": "cases",
    "error": "a clear error",
    "right": "right data",
    "replaced": "right, the image replaced",
    "outside": "right, damage outside the crop",
    "finding": "**neither**",
}


def fuzzing() -> str:
    """Damaged files of each kind, and what came of them."""
    document = result("fuzzing")
    kinds = document["kinds"]
    rows = [[kind, *(f"{found[key]:,}" for key in FUZZED)] for kind, found in kinds.items()]
    totals = [sum(found[key] for found in kinds.values()) for key in FUZZED]
    rows.append(["**all**", *(f"{total:,}" for total in totals)])
    checked = "; ".join(
        f"{run['what']}: {sum(found['cases'] for found in run['kinds'].values()):,} cases more"
        for run in document["checked"].values()
    )
    measured = f"seed {document['configuration']['seed']}; {checked}"
    head = ["what is damaged", *FUZZED.values()]
    return table(head, rows, machine_line(document, measured))


def dali() -> str:
    """Pixels of DALI's decoders beside the reference's."""
    document = result("dali_agreement")
    rows = []
    for case in document["cases"]:
        how = "DALI decodes whole, the others a fraction" if case["at_a_fraction"] else "alike"
        decibels = [case[name] for name in ("psnr", "worst_image_psnr")]
        rows.append(
            [
                f"{case['stored']}, `{case['crop']}`",
                how,
                f"{case['images']}",
                *("equal" if value is None else f"{value:.1f}" for value in decibels),
                f"{case['mean']:.2f}",
                f"{case['largest_inside']}",
                f"{case['largest']}",
            ]
        )
    head = [
        "stored, crop",
        "windows",
        "crops",
        "PSNR, dB",
        "of the worst crop",
        "mean error",
        "largest inside",
        "largest at the edges",
    ]
    setup = document["configuration"]
    measured = (
        f"{setup['images']} photographs, {setup['rounds']} epochs, decoded on {setup['device']}"
    )
    return table(head, rows, machine_line(document, measured))


def methods() -> str:
    """Each method's cost and accuracy, in short."""
    cost, found = result("step_cost"), result("transfer_accuracy_cpu")
    times = cost["seconds_per_step"]
    plain, rows = times["finetune, xmix_data"], []
    for method, label in NAMES.items():
        taken = times[f"{method}, xmix_data"]
        ratio = statistics.median(t / p for t, p in zip(taken, plain, strict=True))
        name = "L2" if method == "finetune" else label.strip("*")
        rows.append([label, f"{ratio:.2f}", mean_and_deviation(found["accuracy"][name])])
    asked, setup = cost["configuration"], found["configuration"]
    measured = (
        f"steps: {asked['model']}, {asked['crop']} px, batch {asked['batch_size']}, median of n = "
        f"{asked['rounds']} interleaved rounds; accuracy: a residual network of widths "
        f"{', '.join(map(str, setup['widths']))}, {setup['crop']} px, mean and deviation of n = "
        f"{setup['seeds']} seeds"
    )
    head = ["method", "time of a step, times plain fine-tuning's", "top-1, %"]
    return table(head, rows, machine_line(cost, measured))


def feeding() -> str:
    """Both backends alone, against the cores that they keep busy."""
    document = result("feeding_cpu")
    setup, rows = document["configuration"], []
    for name, runs in document["rows"].items():
        pair, backend, threads, _ = name.split(", ")
        pairs = [run["pairs_per_s"] for run in runs]
        cores = statistics.median(run["cores_used"] for run in runs)
        rows.append([pair, f"`{backend}`", threads.split()[0], spread(pairs), f"{cores:.2f}"])
    head = ["pair", "backend", "threads", "pairs/s", "cores busy"]
    measured = (
        f"`RandomCrop({setup['crop']})` of {setup['image_size']} px, batch {setup['batch_size']}, "
        f"median and range of n = {setup['rounds']} interleaved rounds of {setup['steps']} batches"
    )
    return table(head, rows, machine_line(document, measured))


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "conversion": conversion,
    "loaders": loaders,
    "longer": longer,
    "compared": compared,
    "limits": limits,
    "ablations": ablations,
    "accuracy": accuracy,
    "alphas": alphas,
    "cold_cache": cold_cache,
    "dali": dali,
    "features": features,
    "feeding": feeding,
    "fuzzing": fuzzing,
    "lifetimes": lifetimes,
    "pairing": pairing,
    "probes": probes,
    "soak": soak,
    "startup": startup,
    "step_cost": step_cost,
}

GROWTH = {
    "threads": ("decoding threads", "pairs/s"),
    "batch size": ("pairs of a batch", "pairs/s"),
    "image size": ("stored side in pixels, crop 7/8 of it", "pairs/s"),
    "JPEG quality": ("JPEG quality", "pairs/s"),
    "epochs": ("epochs", "MB that no file backs"),
    "samples": ("samples of the beton", "MB that no file backs"),
}


def plot_names() -> dict[str, str]:
    """File of each plot and what it shows."""
    return {f"growth-{what.lower().replace(' ', '-')}.svg": what for what in GROWTH}


def digest(name: str) -> str:
    """The hash of a result file, which its plots name."""
    return hashlib.sha256((RESULTS / f"{name}.json").read_bytes()).hexdigest()


def draw(what: str, path: Path) -> None:
    """One plot of how cost grows."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    document = result("growth")
    if what == "epochs":
        values = {i + 1: [v] for i, v in enumerate(document["memory_mb_by_epoch"])}
    elif what == "samples":
        values = {int(k): [v] for k, v in document["memory_mb_by_samples"].items()}
    else:
        values = {int(k): v for k, v in document["pairs_per_s"][what].items()}
    places = list(values)
    medians = [statistics.median(v) for v in values.values()]
    across, up = GROWTH[what]
    with pyplot.rc_context({"svg.hashsalt": what, "svg.fonttype": "none", "font.size": 11}):
        figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
        axes.plot(places, medians, "o-" if len(places) < 20 else "-", color="#1f6feb")
        if what in document["pairs_per_s"]:
            lows, highs = ([f(v) for v in values.values()] for f in (min, max))
            axes.fill_between(places, lows, highs, color="#1f6feb", alpha=0.2, linewidth=0)
        if what == "samples":
            axes.set_xscale("log")
        elif len(places) < 20:
            if what in ("threads", "batch size"):
                axes.set_xscale("log", base=2)
            axes.set_xticks(places, [str(place) for place in places])
            axes.minorticks_off()
        axes.set_ylim(0, 1.15 * max(max(v) for v in values.values()))
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        description = (
            f"{machine_line(document, 'see docs/benchmarks.md')} result {digest('growth')}"
        )
        figure.savefig(path, metadata={"Date": None, "Description": description})
        pyplot.close(figure)


def redrawn(text: str) -> str:
    """A document with all its tables drawn anew."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> int:
    """Redraw, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if redrawn(text) != text:
            stale.append(path.name)
            if not check:
                path.write_text(redrawn(text), encoding="utf-8")
    for name, what in plot_names().items():
        path = FIGURES / name
        if not path.exists() or digest("growth") not in path.read_text(encoding="utf-8"):
            stale.append(name)
            if not check:
                FIGURES.mkdir(parents=True, exist_ok=True)
                draw(what, path)
    from figures import CHARTS

    for name, (shown, draw_chart) in CHARTS.items():
        path = FIGURES / name
        if not path.exists() or digest(shown) not in path.read_text(encoding="utf-8"):
            stale.append(name)
            if not check:
                draw_chart(path)
    if check and stale:
        print(f"{', '.join(stale)}: not what the results say; run `make tables`")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
