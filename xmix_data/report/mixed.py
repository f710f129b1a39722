"""Mixed samples of a report, over the quantiles of λ.

Comes in: rows, their betons, and the distribution of λ. Goes out: `MixedSamples`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from xmix_data.beton import Domain
from xmix_data.report.charts import Chart, beta_density
from xmix_data.report.pictures import data_uri, picture_of
from xmix_data.report.rows import Row

__all__ = ["MixedPair", "MixedSamples", "mixed_samples"]


_MIXED_PAIRS, _MIXED_SIDE = 5, 96
_QUANTILES = (0.9, 0.7, 0.5, 0.3, 0.1)
"""Of λ: from much of the target, which stands at the left, to much of the source."""


class MixedPair(NamedTuple):
    """A target class with its first source class; pictures are data URIs."""

    row: Row
    target: str
    mixed: Sequence[tuple[float, str]]
    """λ and picture."""
    source: str


class MixedSamples(NamedTuple):
    """Pairs from the least similar to the most similar one."""

    quantiles: Sequence[float]
    """The 90, 70, 50, 30 and 10 % quantiles of λ."""
    distinct: bool
    """Whether they differ when rounded; if not, the pictures show fixed values."""
    density: Chart
    pairs: Sequence[MixedPair]


def mixed_samples(
    rows: Sequence[Row], target: Domain, source: Domain, alpha: float, beta: float
) -> MixedSamples:
    """Mix the middle images of a few pairs."""
    from scipy.special import betaincinv

    quantiles = betaincinv(alpha, beta, _QUANTILES).tolist()
    distinct = len({f"{lam:.2f}" for lam in quantiles}) == len(_QUANTILES)
    lams = quantiles if distinct else _QUANTILES
    ordered = sorted(rows, key=lambda row: row.sources[0].paired.cosine)
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MIXED_PAIRS)).astype(np.int64))
    pairs = [_mixed_pair(ordered[k], target, source, lams) for k in places]
    return MixedSamples(quantiles, distinct, beta_density(alpha, beta, lams), pairs)


def _mixed_pair(row: Row, target: Domain, source: Domain, lams: Sequence[float]) -> MixedPair:
    ends = [
        picture_of(domain, int(images[len(images) // 2]), _MIXED_SIDE)
        for domain, images in ((target, row.images), (source, row.sources[0].images))
    ]
    x_t, x_s = (np.asarray(end, np.float64) for end in ends)
    mixed = []
    for lam in lams:
        pixels = np.rint(lam * x_t + (1 - lam) * x_s).astype(np.uint8)
        mixed.append((lam, data_uri(Image.fromarray(pixels))))
    return MixedPair(row, data_uri(ends[0]), mixed, data_uri(ends[1]))
