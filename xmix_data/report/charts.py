"""Charts as inline SVG: numbers in, markup out.

Colours and fonts are those of the page around it, by the classes ``bar``, ``curve``, ``axis``,
``band``, ``mark``, ``tick`` and ``noted``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

__all__ = ["bars", "beta_density", "histogram"]


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 206, 40, 388, 10, 172
"""Of a chart in its own pixels, and of the area inside its axes: small, to be read on a phone."""

_Scale = Callable[[float], float]
"""From a value to pixels."""


def histogram(
    values: npt.NDArray[np.float64], band: tuple[float, float] | None = None, title: str = "cosine"
) -> str:
    """How often values occur.

    Args:
        values: (N,) finite numbers, at least one.
        band: Mean and standard deviation of others to compare with: mean ± std is shaded, and
            mean + 2 std is marked.
        title: Of the axis of values.
    """
    low, high = float(values.min()), float(values.max())
    if band is not None:
        low, high = min(low, band[0] - band[1]), max(high, band[0] + 2 * band[1])
    step = _round_up(max(high - low, 0.01) / 30)
    first = math.floor(low / step + 1e-9)
    bins = np.floor(values / step + 1e-9).astype(np.int64) - first
    counts = np.bincount(bins, minlength=math.floor(high / step + 1e-9) + 1 - first)
    most = int(counts.max())
    start, stop = first * step, (first + len(counts)) * step
    x, y = _scale(start, stop, _LEFT, _RIGHT), _scale(0, most, _BOTTOM, _TOP)
    parts = [_axis_y(y, most)]
    if band is not None:
        left, right = x(band[0] - band[1]), x(band[0] + band[1])
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
            f'height="{_BOTTOM - _TOP}"/>'
        )
    for number in np.flatnonzero(counts).tolist():
        ends = start + number * step, start + (number + 1) * step
        title_of_bar = f"{ends[0]:.3f} to {ends[1]:.3f}: {counts[number]}"
        parts.append(_bar(x(ends[0]) + 0.5, x(ends[1]) - 0.5, y(int(counts[number])), title_of_bar))
    if band is not None:
        parts.append(_upright(x(band[0] + 2 * band[1])))
        middle = min(max(x(band[0]), _LEFT + 40), _RIGHT - 40)
        parts.append(
            f'<text class="noted" x="{middle:.1f}" y="{_TOP + 12}" text-anchor="middle">'
            "arbitrary pairs</text>"
        )
    parts.append(_axis_x(x, _ticks(start, stop, 7), title))
    return _svg(f"Histogram: {title} from {values.min():.2f} to {values.max():.2f}", parts)


def bars(values: Sequence[int], names: Sequence[str], *, label: str, title: str) -> str:
    """One bar for each value, which tells its name when pointed at.

    Args:
        values: At least one, not negative, one of them above 0.
        names: Of the bars.
        label: Of the chart, for who cannot see it.
        title: Of the axis.
    """
    x = _scale(0, len(values), _LEFT, _RIGHT)
    y = _scale(0, max(values), _BOTTOM, _TOP)
    gap = min(1.0, 0.1 * (_RIGHT - _LEFT) / len(values))
    parts = [_axis_y(y, max(values))]
    for k, (value, name) in enumerate(zip(values, names, strict=True)):
        parts.append(_bar(x(k) + gap / 2, x(k + 1) - gap / 2, y(value), f"{name}: {value:,}"))
    return _svg(label, [*parts, _axis_x(x, (), title)])


def beta_density(alpha: float, beta: float, marks: Sequence[float]) -> str:
    """Density of Beta(alpha, beta) with its mean, and marks on its axis.

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
    x, y = _scale(0, 1, _LEFT, _RIGHT), _scale(0, 1.1 * top, _BOTTOM, _TOP)
    points = " ".join(
        f"{x(at):.1f},{y(height):.1f}"
        for at, height in zip(lam.tolist(), heights.tolist(), strict=True)
        if height <= top
    )
    mean = alpha / (alpha + beta)
    ticks = [f'<path class="tick" d="M{x(mark):.1f} {_BOTTOM}v-8"/>' for mark in marks]
    return _svg(
        f"Density of Beta({alpha:g}, {beta:g}), mean {mean:.2f}",
        [
            f'<polyline class="curve" points="{points}"/>',
            _upright(x(mean)),
            *ticks,
            _axis_x(x, _ticks(0, 1, 5), "λ"),
        ],
    )


def _scale(low: float, high: float, start: float, stop: float) -> _Scale:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers in ``low .. high``, about ``count``."""
    step = _round_up((high - low) / count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _round_up(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... and their fractions."""
    unit = 10.0 ** math.floor(math.log10(step))
    return next(unit * k for k in (1, 2, 5, 10) if unit * k >= step * (1 - 1e-9))


def _svg(label: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _axis_x(x: _Scale, ticks: Sequence[float], title: str) -> str:
    decimals = next(d for d in range(9) if all(abs(t - round(t, d)) < 1e-9 for t in ticks))
    numbers = "".join(
        f'<text x="{x(t):.1f}" y="{_BOTTOM + 14}" text-anchor="middle">{t:.{decimals}f}</text>'
        for t in ticks
    )
    return (
        f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>{numbers}'
        f'<text x="{(_LEFT + _RIGHT) // 2}" y="{_BOTTOM + 29}" text-anchor="middle">'
        f"{escape(title)}</text>"
    )


def _axis_y(y: _Scale, most: int) -> str:
    """Of counts: whole numbers, with lines across."""
    return "".join(
        f'<path class="axis" d="M{_LEFT} {y(t):.1f}H{_RIGHT}"/>'
        f'<text x="{_LEFT - 5}" y="{y(t) + 4:.1f}" text-anchor="end">{t:,.0f}</text>'
        for t in _ticks(0, most, 4)
        if t == int(t)
    )


def _bar(left: float, right: float, top: float, title: str) -> str:
    return (
        f'<rect class="bar" x="{left:.2f}" y="{top:.1f}" width="{right - left:.2f}" '
        f'height="{_BOTTOM - top:.1f}"><title>{escape(title)}</title></rect>'
    )


def _upright(x: float) -> str:
    return f'<path class="mark" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>'
