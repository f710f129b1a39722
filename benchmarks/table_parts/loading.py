"""Tables of converting and loading: files, loaders side by side, limits, caches, start-up, DALI."""

from __future__ import annotations

import statistics

from results import OURS, PEERS, machine_line, measured_rounds, result

from table_parts.cells import shares, spread, table

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


IN_SHORT = (
    *OURS,
    "FFCV, one domain",
    "FFCV, two zipped",
    "TurboLoader, two zipped",
    "DALI, CPU",
    "SPDL, TorchCodec",
    "torch DataLoader, TorchCodec",
    "torch DataLoader, Pillow",
)
"""Rows of the README: of each loader the faster one that mixes, and FFCV as it is used."""


def loaders() -> str:
    """What users would install, side by side."""
    return _loaders({**OURS, **PEERS})


def loaders_in_short() -> str:
    """The same, without the ways that are slower."""
    return _loaders({name: label for name, label in {**OURS, **PEERS}.items() if name in IN_SHORT})


def _loaders(labels: dict[str, str]) -> str:
    document = result("loader_throughput")
    crops = document["crops"]
    rows = [
        [label, *(spread(crop["rates"].get(name)) for crop in crops.values())]
        for name, label in labels.items()
        if any(name in crop["rates"] for crop in crops.values())
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


def startup() -> str:
    """Seconds until something is there."""
    document = result("startup")
    setup, seconds = document["configuration"], document["seconds"]

    def beyond(name: str, base: str) -> str:
        values = [a - b for a, b in zip(seconds[name], seconds[base], strict=True)]
        return f"{statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"

    def median(values: list[float], unit: str) -> str:
        return f"{statistics.median(values):,.2f} {unit} ({min(values):,.2f}-{max(values):,.2f})"

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
    ]
    measured = f"n = {setup['rounds']} interleaved processes, n = 3 for compilation"
    return table(["what", "median and range"], rows, machine_line(document, measured))


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


def feeding() -> str:
    """Both backends alone, against the cores that they keep busy."""
    document = result("feeding_cpu")
    setup, rows = document["configuration"], []
    for name, runs in document["rows"].items():
        pair, backend, threads, _ = name.split(", ")
        backend = "host" if backend == "ffcv" else backend  # its name when this was measured
        pairs = [run["pairs_per_s"] for run in runs]
        cores = statistics.median(run["cores_used"] for run in runs)
        rows.append([pair, f"`{backend}`", threads.split()[0], spread(pairs), f"{cores:.2f}"])
    head = ["pair", "backend", "threads", "pairs/s", "cores busy"]
    measured = (
        f"`RandomCrop({setup['crop']})` of {setup['image_size']} px, batch {setup['batch_size']}, "
        f"median and range of n = {setup['rounds']} interleaved rounds of {setup['steps']} batches"
    )
    return table(head, rows, machine_line(document, measured))


def epoch_end() -> str:
    """The wait for an epoch's first batch beside that for the others, now and before."""
    document = result("epoch_end")
    setup, waits = document["configuration"], document["wait_ms"]

    def waited(version: str, row: str, which: str) -> str:
        values = [run[row][which] for run in waits[version] if run.get(row)]
        values = [value for value in values if value is not None]
        if not values:
            return ""
        return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    def row(name: str) -> list[str]:
        batches, loop, _ = name.split(", ")
        cells = [waited(v, name, w) for v in ("after", "before") for w in ("first", "others")]
        return [batches.replace("1 batches", "1 batch"), loop, *cells]

    slower = [name for name in waits["after"][0] if name.endswith(", slower")]
    head = ["an epoch", "loop", "its first batch, ms", "the others, ms"]
    head += ["first batch before, ms", "the others before, ms"]
    measured = (
        f"{setup['encodings']}, crops of {setup['crop']} px, batch {setup['batch_size']}; a "
        f"consumer that takes {setup['consumer_times_loader']['slower']:g} times the loader's time "
        f"for a batch; median and range of n = {setup['rounds']} interleaved rounds"
    )
    return table(head, [row(name) for name in slower], machine_line(document, measured))


def profiling() -> str:
    """What the ranges for profilers cost."""
    document = result("waiting")
    setup, rows = document["configuration"], []
    for pair, rates in document["pairs_per_cpu_second"].items():
        found = [
            [b / a for a, b in zip(rates[name], rates["no ranges"], strict=True)]
            for name in ("ranges, nobody looks", "ranges, recorded")
        ]
        rows.append([pair, *map(shares, found)])
    head = [
        "CPU time of the loader with ranges / without",
        "nobody records",
        "torch's profiler records all threads",
    ]
    measured = (
        f"`{setup['crop']}` of {setup['image_size']} px, batch {setup['batch_size']}, "
        f"{setup['threads']} threads, median and range of n = {setup['rounds']} interleaved "
        f"rounds; a range that nobody records takes {document['us_per_range']:.1f} µs"
    )
    return table(head, rows, machine_line(document, measured))
