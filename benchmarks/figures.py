"""Plots of the results: loaders side by side, accuracy by method, how cost grows.

`make tables` draws them; each names the hash of its result file.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from results import OURS, PEERS, accuracy_line, digest, machine_line, measured_rounds, result

BLUE, GREY = "#1f6feb", "#8c959f"


def bars(
    path: Path,
    rows: list[tuple[str, float, float, float]],
    ours: Callable[[str], bool],
    title: str,
    description: str,
    start_at_zero: bool = True,
) -> None:
    """Horizontal bars of (name, value, low, high), the first on top, with the range of each."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names, values, lows, highs = zip(*rows, strict=True)
    errors = [
        [v - low for v, low in zip(values, lows, strict=True)],
        [high - v for v, high in zip(values, highs, strict=True)],
    ]
    style: Any = {"svg.hashsalt": path.stem, "svg.fonttype": "none", "font.size": 11}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(7, 0.8 + 0.32 * len(rows)), layout="constrained")
        places = range(len(rows))
        colours = [BLUE if ours(name) else GREY for name in names]
        if start_at_zero:
            axes.barh(places, values, color=colours, height=0.7)
            axes.errorbar(values, places, xerr=errors, fmt="none", ecolor="#1f2328", capsize=3)
            axes.set_xlim(left=0)
        else:  # a bar that does not begin at zero would lie about ratios
            for place, value, colour in zip(places, values, colours, strict=True):
                around = [[errors[0][place]], [errors[1][place]]]
                axes.errorbar([value], [place], xerr=around, fmt="o", color=colour, capsize=3)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Description": description})
        pyplot.close(figure)


def throughput(path: Path) -> None:
    """The loaders of the README's table, with the range of the rounds."""
    document = result("loader_throughput")
    crop, measured = next(iter(document["crops"].items()))
    rows = []
    for name, label in {**OURS, **PEERS}.items():
        if rates := measured["rates"].get(name):
            plain = label.replace("*", "").replace("`", "")
            rows.append((plain, statistics.median(rates), min(rates), max(rates)))
    line = machine_line(document, measured_rounds(document))
    bars(
        path,
        rows,
        lambda name: name.startswith(("XMixLoader", "ImageLoader")),
        f"samples/s on the CPU, {crop}",
        f"{line} result {digest('loader_throughput')}",
    )


def accuracy(path: Path) -> None:
    """The methods of the table of the same name: mean and standard deviation over seeds."""
    document = result("transfer_accuracy_cpu")
    rows = []
    for name in document["chosen"]:
        values = [100 * value for value in document["accuracy"][name]]
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        rows.append((name, mean, mean - deviation, mean + deviation))
    bars(
        path,
        rows,
        lambda name: name.startswith("XMixup"),
        "top-1, %: mean and standard deviation over seeds",
        f"{accuracy_line(document)} result {digest('transfer_accuracy_cpu')}",
        start_at_zero=False,
    )


GROWTH = {
    "threads": ("decoding threads", "pairs/s"),
    "batch size": ("pairs of a batch", "pairs/s"),
    "image size": ("stored side in pixels, crop 7/8 of it", "pairs/s"),
    "JPEG quality": ("JPEG quality", "pairs/s"),
    "epochs": ("epochs", "MB that no file backs"),
    "samples": ("samples of the beton", "MB that no file backs"),
}
"""What grows, and the names of both axes."""


def growth(what: str, path: Path) -> None:
    """How the rate or the memory grows, with the range of the rounds."""
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
        axes.plot(places, medians, "o-" if len(places) < 20 else "-", color=BLUE)
        if what in document["pairs_per_s"]:
            lows, highs = ([f(v) for v in values.values()] for f in (min, max))
            axes.fill_between(places, lows, highs, color=BLUE, alpha=0.2, linewidth=0)
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


def scale(path: Path) -> None:
    """What many GPUs read together, and what there is to read it from."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    document = result("scale")
    assumed, rows = document["configuration"]["assumed"], document["rows"]
    with pyplot.rc_context({"svg.hashsalt": "scale", "svg.fonttype": "none", "font.size": 11}):
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for network, colour in (("ResNet-50", BLUE), ("ViT-B/16", GREY)):
            for pair, style in (("jpg + jpg", "o-"), ("raw + jpg", "s--")):
                own = [row for row in rows if (row["network"], row["pair"]) == (network, pair)]
                gpus = [row["gpus"] for row in own]
                read = [row["all_gb_per_s"] for row in own]
                axes.plot(gpus, read, style, color=colour, label=f"{network}, {pair}")
        nodes = [row["nodes"] for row in own]
        for name, there in (
            ("shared storage", [assumed["storage_gb_per_s"]] * len(nodes)),
            ("all local disks", [assumed["disk_gb_per_s_of_a_node"] * n for n in nodes]),
            ("all networks", [assumed["network_gb_per_s_of_a_node"] * n for n in nodes]),
        ):
            axes.plot(gpus, there, ":", color="#cf222e")
            axes.annotate(name, (gpus[0], there[0]), (2, 4), textcoords="offset points")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(gpus, [str(count) for count in gpus])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel("GPUs")
        axes.set_ylabel("GB/s, all nodes together")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        axes.spines[["top", "right"]].set_visible(False)
        description = f"A simulation, see docs/distributed.md. result {digest('scale')}"
        figure.savefig(path, metadata={"Date": None, "Description": description})
        pyplot.close(figure)


PLOTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "throughput.svg": ("loader_throughput", throughput),
    "accuracy.svg": ("transfer_accuracy_cpu", accuracy),
    "scale.svg": ("scale", scale),
    **{
        f"growth-{what.lower().replace(' ', '-')}.svg": ("growth", partial(growth, what))
        for what in GROWTH
    },
}
"""File, the result that it shows, and what draws it."""
