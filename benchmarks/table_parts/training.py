"""Tables of pairing and training: cosines, features, steps, and the accuracies of the methods."""

from __future__ import annotations

import re
import statistics
from typing import Any

from results import accuracy_line, machine_line, result

from table_parts.cells import shares, spread, table

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
    versions = document["machine"]["versions"]
    faiss = next(f"{n} {v}" for n, v in versions.items() if n.startswith("faiss") and v)
    rounds = document["configuration"]["rounds"]
    measured = f"n = {rounds} processes each, interleaved; {faiss}"
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
