"""Bar charts of the results: loaders side by side, accuracy by method.

`make tables` draws them with the other plots; each names the hash of its result file.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import OURS, PEERS, accuracy_line, digest, machine_line, measured_rounds, result

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


CHARTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "throughput.svg": ("loader_throughput", throughput),
    "accuracy.svg": ("transfer_accuracy_cpu", accuracy),
}
"""File, the result that it shows, and what draws it."""
