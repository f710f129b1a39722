"""What `xmix bench` measures, and in words: who reaches what, and who waits for whom."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmix_data.bench import machine
from xmix_data.bench.data import STORED_SIZE
from xmix_data.bench.rounds import interleave, ratios
from xmix_data.bench.rows import TARGETS, Bench, consume
from xmix_data.loader import XMixLoader
from xmix_data.options import whole_number
from xmix_data.plan import RandomCrop

__all__ = ["explain", "report"]


_USUAL = "raw + jpg, mixed"
"""A small raw target and a large JPEG source."""
_MANY_WAITS = 0.01
"""Waits for the disk, for each sample, above which the disk is to blame: one brings many pages."""


def report(
    data: Path | str | None = None, *, crop: int = 224, rounds: int = 5
) -> tuple[dict[str, Any], str]:
    """Measure the loader against this machine's own limits, as `xmix bench` does.

    Args:
        data: A class folder; ``None`` makes pictures up.
        crop: Side of the random crop in pixels.
        rounds: Number of rounds, each of which runs all rows.

    Returns:
        The result (machine, configuration, rates, ratios), and the same as text.

    Raises:
        FileNotFoundError: The folder does not exist.
        ImageError: An image cannot be read; names it.
        ValueError: ``rounds`` is below 1, or the crop does not fit into the stored images.
    """
    whole_number("rounds", rounds, 1)
    if whole_number("crop", crop, 1) > STORED_SIZE:
        raise ValueError(
            f"crop is {crop}; bench stores images with {STORED_SIZE} pixels, give at most "
            f"{STORED_SIZE}"
        )
    with Bench.of(data, crop=RandomCrop(crop)) as bench:
        rates = interleave(bench.rows(), rounds)
        with XMixLoader(
            bench.raw, bench.jpg, bench.pairing, batch_size=bench.batch_size, crop=bench.crop
        ) as loader:
            consume(loader, bench.passes)
            words = explain(loader.stats())
        reached = {t.row: ratios(rates, t.row, t.expected) for t in TARGETS}
        result = {
            "benchmark": "xmix bench",
            "machine": machine.describe(),
            "configuration": bench.configuration(rounds),
            "rates": rates,
            "ratios": reached,
        }
    width = max(map(len, rates))
    lines = [f"{'':{width}}  samples/s (range of {rounds})"]
    for name, values in rates.items():
        spread = f"({min(values):.0f}-{max(values):.0f})"
        lines.append(f"{name:{width}}  {statistics.median(values):9.0f} {spread}")
    lines.append("")
    for target in TARGETS:
        median = statistics.median(reached[target.row])
        mark = "" if median >= target.share else f"  (below {target.share:.2f})"
        lines.append(f"{target.row:{width}}  {median:9.2f} x {target.against}{mark}")
    lines += ["", f"A consumer that does nothing, raw + jpg: {words}."]
    lines.append(_what_it_means(statistics.median(rates[_USUAL]), bench.batch_size, bench.threads))
    return result, "\n".join(lines)


def _what_it_means(rate: float, batch_size: int, threads: int) -> str:
    return (
        f"So {threads} threads feed {rate:,.0f} mixed pairs a second from a raw target and a JPEG "
        f"source: a training whose step with {batch_size} images takes longer than "
        f"{1000 * batch_size / rate:.1f} ms does not wait."
    )


def explain(stats: Mapping[str, float]) -> str:
    """Say in words who waits for whom, by a loader's ``stats()``.

    Examples:
        >>> stats = {"batches": 9, "samples": 432, "decode_s": 6.0, "copy_s": 2.0, "disk_waits": 0}
        >>> stats |= {"loader_waited_s": 7.5, "consumer_waited_s": 0.25}  # as of loader.stats()
        >>> print(explain(stats))
        the consumer is the bottleneck: the loader's threads waited 7.5 s for it,
        it waited 0.2 s for them
    """
    waited, idle = stats["consumer_waited_s"], stats["loader_waited_s"]
    working = stats["decode_s"] + stats["copy_s"]
    if not stats["batches"] or not working:
        return "no batch has been delivered yet"
    if idle > waited:
        return (
            f"the consumer is the bottleneck: the loader's threads waited {idle:.1f} s for it, "
            f"it waited {waited:.1f} s for them"
        )
    decoding = stats["decode_s"] / working
    where = (
        f"{decoding:.0%} of its threads' time is JPEG decoding: more cores, a raw target, or a "
        "smaller image size will help"
        if decoding > 0.5
        else f"{1 - decoding:.0%} of its threads' time is copying and mixing in memory"
    )
    if stats["disk_waits"] > _MANY_WAITS * stats["samples"]:
        where = "its threads waited for the disk: the data are not in memory"
    return f"the loader is the bottleneck: the consumer waited {waited:.1f} s for it; {where}"
