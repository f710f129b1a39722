"""A pairing in numbers and charts.

Comes in: a pairing and its rows. Goes out: a `Summary`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xmix_data.pairing import Pairing, Similarity
from xmix_data.report.charts import Chart, bars, histogram
from xmix_data.report.rows import Limits, Row, limits_of, verdict_of

__all__ = ["Summary", "summary_of"]


@dataclass(frozen=True)
class Summary:
    """What a pairing uses of its source, and how similar that is."""

    source_classes: int
    source_images: int
    fewest: Sequence[Row]
    """The target classes, those with the fewest source images first."""
    median: float
    """Of source images, over the target classes."""
    limits: Limits | None
    """Of the verdicts."""
    verdicts: Mapping[str | None, int]
    """Target classes of each verdict; 0 where there are no limits."""
    shares: Mapping[str, float]
    """Percent of the optimum that one round by each method reaches, where that makes sense."""
    cosines: Sequence[float]
    """Of all pairs, in rising order."""
    cosines_chart: Chart
    images_chart: Chart


def summary_of(pairing: Pairing, rows: Sequence[Row]) -> Summary:
    """Count what a pairing draws from, and judge its target classes."""
    similarity = pairing.similarity
    sources = [part for row in rows for part in row.sources]
    fewest = sorted(rows, key=lambda row: row.num_images)
    counts = [row.num_images for row in fewest]
    cosines = np.sort([part.paired.cosine for part in sources])
    median = float(np.median(counts))
    limits, band = limits_of(similarity), None
    if similarity is not None:
        mean, std = similarity.mean, similarity.std
        band = max(-1.0, mean - std), min(1.0, mean + std)
    return Summary(
        len({(part.paired.domain, part.paired.name) for part in sources}),
        len(np.unique(np.concatenate([part.images for part in sources]))),
        fewest,
        median,
        limits,
        Counter(verdict_of(row.cosine, limits) for row in rows),
        {} if similarity is None else _shares(similarity),
        cosines.tolist(),
        histogram(cosines, band, None if limits is None else limits.good),
        bars(
            counts,
            [row.name for row in fewest],
            label=f"Source images of each target class: {counts[0]:,} to {counts[-1]:,}, "
            f"median {median:,.0f}",
            title="target classes, from the fewest images to the most",
        ),
    )


def _shares(similarity: Similarity) -> dict[str, float]:
    best = similarity.by_method.get("optimal", 0)
    reached = similarity.by_method.items()
    return {method: 100 * cosine / best for method, cosine in reached if min(cosine, best) > 0}
