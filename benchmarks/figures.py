"""Plots of the results: loaders side by side, steps, accuracy, how cost grows, who waits.

`make tables` draws them; each names the hash of its result file and of this one, and has colours
for light pages and for dark ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from results import OURS, PEERS, accuracy_line, digest, machine_line, measured_rounds, result
from table_parts.gpu import COTRAIN, FED, NETWORKS, PLAIN, XMIXUP
from table_parts.pretrained import NAME as PRETRAINED
from table_parts.pretrained import accuracies, by_alpha, by_length
from table_parts.pretrained import line as training_line

PAGE, INK, GRID, BLUE, GREY, AMBER = (
    "#ffffff",
    "#1f2328",
    "#d1d9e0",
    "#1f6feb",
    "#8c959f",
    "#d29922",
)
ON_DARK = {
    PAGE: "#0d1117",
    INK: "#e6edf3",
    GRID: "#3d444d",
    BLUE: "#4493f8",
    GREY: "#768390",
    AMBER: "#bb8009",
}
"""For each colour the one that a dark page has in its place."""


@contextmanager
def drawing(
    path: Path, size: tuple[float, float], shown: str, line: str, columns: int = 1, **options: Any
) -> Iterator[Any]:
    """Yield a figure and its axes, and save them.

    Args:
        path: Of the SVG.
        size: Width and height in inches.
        shown: Name of the result.
        line: The machine and how it was measured, for who asks the file.
        columns: How many axes stand side by side.
        options: For ``subplots``.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: dict[str, Any] = {
        "svg.hashsalt": path.stem,
        "svg.fonttype": "none",
        "font.size": 11,
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "figure.facecolor": PAGE,
        "axes.facecolor": PAGE,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            1, columns, figsize=size, layout="constrained", squeeze=False, **options
        )
        yield figure, axes[0]
        description = f"{line} result {digest(shown)}"
        figure.savefig(path, metadata={"Date": None, "Description": description})
        pyplot.close(figure)
    path.write_text(themed(path.read_text(encoding="utf-8")), encoding="utf-8")


def themed(svg: str) -> str:
    """Have a dark page show other colours."""
    names = {light: f"--c{number}" for number, light in enumerate(ON_DARK)}
    for light, name in names.items():
        svg = svg.replace(light, f"var({name})")
    light, dark = (
        "".join(f"{names[key]}:{value};" for key, value in colours)
        for colours in (zip(names, names, strict=True), ON_DARK.items())
    )
    rules = f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
    return svg.replace('<style type="text/css">', f'<style type="text/css">{rules}', 1)


def bars(
    axes: Any, rows: list[tuple[str, float, float, float]], ours: Callable[[str], bool]
) -> None:
    """Horizontal bars of (name, value, low, high), the first on top, with the range of each."""
    places = range(len(rows))
    for place, (name, value, low, high) in zip(places, rows, strict=True):
        axes.barh(place, value, color=BLUE if ours(name) else GREY, height=0.7)
        around = [[value - low], [high - value]]
        axes.errorbar(value, place, xerr=around, fmt="none", ecolor=INK, capsize=3)
    axes.set_xlim(left=0)
    _rows(axes, [row[0] for row in rows])


def _rows(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def throughput(path: Path) -> None:
    """The loaders of the table, with the range of the rounds."""
    document = result("loader_throughput")
    crops = {name: crop["rates"] for name, crop in document["crops"].items()}
    labels = {
        name: label.replace("*", "").replace("`", "")
        for name, label in {**OURS, **PEERS}.items()
        if any(name in rates for rates in crops.values())
    }
    line = machine_line(document, measured_rounds(document))
    size = (8.0, 0.8 + 0.3 * len(labels))
    shown = drawing(path, size, "loader_throughput", line, len(crops), sharey=True)
    with shown as (figure, panels):
        figure.get_layout_engine().set(wspace=0.08)  # the last number of one, the 0 of the next
        for axes, (crop, rates) in zip(panels, crops.items(), strict=True):
            rows = []
            for name, label in labels.items():
                values = rates.get(name, [0.0])
                rows.append((label, statistics.median(values), min(values), max(values)))
            bars(axes, rows, lambda name: name.startswith(("XMixLoader", "ImageLoader")))
            axes.locator_params(axis="x", nbins=3)
            axes.set_title(crop, fontsize=11)
            axes.set_xlabel("samples/s")


def steps(path: Path) -> None:
    """Training steps on a GPU, over plain fine-tuning's, with the range of the rounds."""
    document = result("gpu_steps")
    setup, names = document["configuration"], []
    points: dict[str, list[tuple[int, list[float]]]] = {XMIXUP: [], COTRAIN: []}
    for name, case in setup["cases"].items():
        if name not in document:
            continue
        times = {row: figures["ms"] for row, figures in document[name].items()}
        plain = times[f"{PLAIN}, {FED}"]
        for method, found in points.items():
            if taken := times.get(f"{method}, {FED}"):
                ratios = [a / b for a, b in zip(taken, plain, strict=True)]
                found.append((len(names), ratios))
        names.append(
            f"{NETWORKS[case['model']]}, {case['crop']} px,\nbatch {case['batch_size']}"
            + (", compiled" if case["compile"] else "")
        )
    line = machine_line(document, "see docs/benchmarks.md")
    with drawing(path, (7, 1.2 + 0.5 * len(names)), "gpu_steps", line) as (figure, (axes,)):
        axes.axvline(1, color=INK, linewidth=1)
        looks = {XMIXUP: ("XMixup", BLUE, "o", -0.12), COTRAIN: ("Co-Train", GREY, "s", 0.12)}
        for method, (label, colour, marker, shift) in looks.items():
            for place, ratios in points[method]:
                median = statistics.median(ratios)
                around = [[median - min(ratios)], [max(ratios) - median]]
                axes.errorbar(
                    [median],
                    [place + shift],
                    xerr=around,
                    fmt=marker,
                    color=colour,
                    markersize=7,
                    capsize=3,
                    label=label if place == points[method][0][0] else None,
                )
        axes.set_xlim(left=0)
        _rows(axes, names)
        axes.set_xlabel("time of a step / plain fine-tuning's")
        figure.legend(loc="outside lower center", frameon=False, ncols=2)


def accuracy(path: Path) -> None:
    """The methods of the table of the same name: mean and standard deviation over seeds."""
    document = result("transfer_accuracy_cpu")
    names = list(document["chosen"])
    line = accuracy_line(document)
    size = (7, 0.8 + 0.32 * len(names))
    with drawing(path, size, "transfer_accuracy_cpu", line) as (_, (axes,)):
        for place, name in enumerate(names):
            # A point: a bar that does not begin at zero would lie about ratios.
            values = [100 * value for value in document["accuracy"][name]]
            axes.errorbar(
                [statistics.mean(values)],
                [place],
                xerr=[statistics.stdev(values)],
                fmt="o",
                color=BLUE if name.startswith("XMixup") else GREY,
                markersize=7,
                capsize=3,
            )
        _rows(axes, names)
        axes.set_xlabel("top-1, %: mean and standard deviation over seeds")


def pretrained(path: Path) -> None:
    """With pre-trained weights: accuracy by the number of iterations, and by α."""
    document = result(PRETRAINED)
    lengths, alphas = by_length(document), by_alpha(document)
    half = accuracies(document, "L2, 0.5 x the iterations")
    panels = 2 if len(alphas) > 1 else 1
    line = training_line(document)
    with drawing(path, (4 * panels, 3.2), PRETRAINED, line, panels, sharey=True) as (figure, axes):
        for number, (label, colour) in enumerate((("L2", GREY), ("XMixup", BLUE))):
            _curve(axes[0], {i: both[number] for i, both in lengths.items()}, colour, label)
        axes[0].set_xlabel("iterations")
        axes[0].set_ylabel("top-1, %")
        if panels > 1:
            _curve(axes[1], alphas, BLUE)
            axes[1].axhline(100 * statistics.mean(half.values()), color=GREY)
            axes[1].set_xlabel("α, half the iterations")
        figure.legend(loc="outside lower center", frameon=False, ncols=2)


def _curve(
    axes: Any, values: Mapping[Any, Mapping[int, float]], colour: str, label: str | None = None
) -> None:
    """Mean accuracies, with the deviation over seeds where there are several, on a log scale."""
    means = [100 * statistics.mean(of.values()) for of in values.values()]
    around = [
        100 * statistics.stdev(v) if len(v := list(of.values())) > 1 else 0
        for of in values.values()
    ]
    axes.errorbar(list(values), means, yerr=around, fmt="o-", color=colour, capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_xticks(list(values), [f"{place:,g}" for place in values])
    axes.minorticks_off()
    axes.grid(visible=True, axis="y")


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
    line = machine_line(document, "see docs/benchmarks.md")
    with drawing(path, (5, 3.2), "growth", line) as (_, (axes,)):
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
        axes.grid()


RANGES = {
    "training step": ("training step", GREY),
    "xmix: decode and mix": ("decode and mix", BLUE),
    "xmix: plan": ("plan", INK),
    "xmix: wait": ("wait", AMBER),
}
"""How the name of a range begins, what the legend says, and its colour."""


def waiting(path: Path) -> None:
    """What each thread of two trainings did when."""
    document = result("waiting")
    traces = document["traces"]
    line = machine_line(document, "see docs/profiling.md")
    threads = list(next(iter(traces.values())))
    size = (8, 1.1 + 0.4 * len(threads))
    with drawing(path, size, "waiting", line, len(traces), sharey=True) as (figure, panels):
        for axes, (name, trace) in zip(panels, traces.items(), strict=True):
            _lanes(axes, trace, threads)
            axes.set_title(name, fontsize=11)
            axes.locator_params(axis="x", nbins=4)
            axes.set_xlabel("milliseconds")
        handles = {label: panels[0].barh(0, 0, color=colour) for label, colour in RANGES.values()}
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False
        )


def _lanes(axes: Any, trace: dict[str, list[tuple[str, float, float]]], names: list[str]) -> None:
    for lane, thread in enumerate(names):
        for start, (_, colour) in RANGES.items():
            spans = [(a, b - a) for name, a, b in trace.get(thread, []) if name.startswith(start)]
            low = 0.15 if start == "xmix: wait" else 0.35
            axes.broken_barh(spans, (lane - low, 2 * low), color=colour, linewidth=0)
    _rows(axes, names)


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
    "steps.svg": ("gpu_steps", steps),
    "accuracy.svg": ("transfer_accuracy_cpu", accuracy),
    "pretrained.svg": (PRETRAINED, pretrained),
    "waiting.svg": ("waiting", waiting),
    "scale.svg": ("scale", scale),
    **{
        f"growth-{what.lower().replace(' ', '-')}.svg": ("growth", partial(growth, what))
        for what in GROWTH
    },
}
"""File, the result that it shows, and what draws it."""
