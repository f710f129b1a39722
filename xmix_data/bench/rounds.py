"""Rows measured in turn, round after round: a machine that slows down slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xmix_data.progress import Progress

__all__ = ["Row", "interleave", "ratios"]


Row = Callable[[], tuple[int, float]]
"""Function that runs a row once, and returns its number of samples (pairs) and of seconds."""


def interleave(
    rows: Mapping[str, Row], rounds: int, *, progress: bool = True
) -> dict[str, list[float]]:
    """Run every row once a round, after one round that is not counted.

    Args:
        rows: Rows by name.
        rounds: Number of rounds that are counted.
        progress: Show a progress bar.

    Returns:
        Samples a second, by row and round.
    """
    rates: dict[str, list[float]] = {name: [] for name in rows}
    with Progress("bench", (rounds + 1) * len(rows), unit="rows", enabled=progress) as bar:
        for number in range(rounds + 1):
            for name, row in rows.items():
                samples, seconds = row()
                if number:
                    rates[name].append(samples / seconds)
                bar.advance()
    return rates


def ratios(
    rates: Mapping[str, list[float]], of: str, expected: Callable[[Mapping[str, float]], float]
) -> list[float]:
    """Divide a row's rate by what the same round's other rows let expect, round by round.

    Args:
        rates: Rates that `interleave` returned.
        of: Name of the row.
        expected: Function from one round's rates, by row, to the rate to expect.
    """
    rounds = [dict(zip(rates, values, strict=True)) for values in zip(*rates.values(), strict=True)]
    return [r[of] / expected(r) for r in rounds]
