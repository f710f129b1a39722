"""Charts as numbers: what stands on which axis, and where.

Comes in: values. Goes out: a `Chart`, which ``chart.html`` draws as SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Bar", "Chart", "bars", "beta_density", "histogram"]


class Bar(NamedTuple):
    """One bar, which tells its title when pointed at."""

    start: float
    stop: float
    height: float
    title: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a chart shows, in the units of its axes."""

    WIDTH: ClassVar[int] = 400
    HEIGHT: ClassVar[int] = 206
    LEFT: ClassVar[int] = 40
    RIGHT: ClassVar[int] = 388
    TOP: ClassVar[int] = 10
    BOTTOM: ClassVar[int] = 172
    """The drawing and the area inside its axes, in its own pixels: small, to be read on a phone."""

    label: str
    """Of the chart, for who cannot see it."""
    title: str
    """Of the axis along the bottom, which goes from ``start`` to ``stop``."""
    start: float
    stop: float
    top: float
    """The upper end of the other axis, which begins at 0."""
    bars: Sequence[Bar] = ()
    curve: Sequence[tuple[float, float]] = ()
    band: tuple[float, float] | None = None
    """Ends of what is shaded."""
    mark: float | None = None
    """Where a dashed line stands."""
    ticks: Sequence[float] = ()
    """Marks on the axis along the bottom."""
    numbers: Sequence[float] = ()
    """Written along the bottom."""

    def x(self, value: float) -> float:
        """Turn a value into pixels."""
        width = self.RIGHT - self.LEFT
        return self.LEFT + (value - self.start) / (self.stop - self.start) * width

    def y(self, value: float) -> float:
        """Turn a height into pixels, which count downwards."""
        return self.BOTTOM + value / self.top * (self.TOP - self.BOTTOM)

    @property
    def lines(self) -> list[float]:
        """Heights of lines across: whole numbers, as bars are counts."""
        return [t for t in _ticks(0, self.top, 4) if t == int(t)] if self.bars else []

    @property
    def decimals(self) -> int:
        """How many of them the numbers along the bottom need."""
        return next(d for d in range(9) if all(abs(t - round(t, d)) < 1e-9 for t in self.numbers))


def histogram(
    values: npt.NDArray[np.float64],
    band: tuple[float, float] | None = None,
    mark: float | None = None,
    title: str = "cosine",
) -> Chart:
    """Count how often values occur.

    Args:
        values: (N,) finite numbers, at least one.
        band: Where others lie, to compare with; shaded.
        mark: Where a dashed line stands.
        title: Of the axis of values.
    """
    low, high = float(values.min()), float(values.max())
    label = f"Histogram: {title} from {low:.2f} to {high:.2f}"
    ends = [*values.tolist(), *(band or ()), *(() if mark is None else (mark,))]
    step = _round_up(max(max(ends) - min(ends), 0.01) / 30)
    # The last bin holds its upper end, so that no axis goes beyond a cosine of 1.
    last = math.ceil(max(ends) / step - 1e-9) - 1
    first = min(math.floor(min(ends) / step + 1e-9), last)
    bins = np.minimum(np.floor(values / step + 1e-9).astype(np.int64), last) - first
    counts = np.bincount(bins, minlength=last + 1 - first).tolist()
    start, stop = first * step, (first + len(counts)) * step
    drawn = []
    for number, count in enumerate(counts):
        left, right = start + number * step, start + (number + 1) * step
        drawn += [Bar(left, right, count, f"{left:.3f} to {right:.3f}: {count}")] if count else []
    return Chart(
        label=label,
        title=title,
        start=start,
        stop=stop,
        top=max(counts),
        bars=drawn,
        band=band,
        mark=mark,
        numbers=_ticks(start, stop, 7),
    )


def bars(values: Sequence[int], names: Sequence[str], *, label: str, title: str) -> Chart:
    """Show one bar for each value, which tells its name when pointed at.

    Args:
        values: At least one, not negative, one of them above 0.
        names: Of the bars.
        label: Of the chart, for who cannot see it.
        title: Of the axis.
    """
    drawn = [
        Bar(k, k + 1, value, f"{name}: {value:,}")
        for k, (value, name) in enumerate(zip(values, names, strict=True))
    ]
    return Chart(label=label, title=title, start=0, stop=len(values), top=max(values), bars=drawn)


def beta_density(alpha: float, beta: float, marks: Sequence[float]) -> Chart:
    """Show the density of Beta(alpha, beta) with its mean, and marks on its axis.

    Args:
        alpha, beta: Above 0. Below 1 the density has no maximum, and its ends leave the chart.
        marks: Values in 0 .. 1.
    """
    from scipy.special import betaincinv, betaln

    # Evenly over 0 .. 1, and where most of the distribution lies, however narrow that is.
    quantiles = betaincinv(alpha, beta, np.linspace(0.001, 0.999, 400))
    lam = np.unique(np.clip(np.concatenate([np.linspace(0, 1, 401), quantiles]), 1e-6, 1 - 1e-6))
    logs = (alpha - 1) * np.log(lam) + (beta - 1) * np.log1p(-lam) - betaln(alpha, beta)
    heights = np.exp(np.minimum(logs, 600))
    inside = (lam > 0.03) & (lam < 0.97)
    top = float(heights.max() if min(alpha, beta) >= 1 else 1.3 * heights[inside].max()) or 1.0
    seen = heights <= top
    mean = alpha / (alpha + beta)
    return Chart(
        label=f"Density of Beta({alpha:g}, {beta:g}), mean {mean:.2f}",
        title="λ",
        start=0,
        stop=1,
        top=1.1 * top,
        curve=list(zip(lam[seen].tolist(), heights[seen].tolist(), strict=True)),
        mark=mean,
        ticks=marks,
        numbers=_ticks(0, 1, 5),
    )


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Find round numbers in ``low .. high``, about ``count``."""
    step = _round_up((high - low) / count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _round_up(step: float) -> float:
    """Find the next of 1, 2, 5, 10, 20, ... and their fractions."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * k for k in (1, 2, 5, 10) if unit * k >= step * (1 - 1e-9))
