"""The similarity matrix of a report: a picture, its names, and the numbers behind it.

Comes in: rows and the `Similarity` of their pairing. Goes out: a `Matrix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from xmix_data.pairing import Similarity, shown_classes
from xmix_data.report.pictures import base64_text, data_uri
from xmix_data.report.rows import Row

__all__ = ["COLOURS", "Matrix", "matrix_of"]


COLOURS = ("#221a44", "#35508d", "#2a8799", "#57b97a", "#c6d84f", "#fdf3b0")
"""Of the matrix, from its lowest cosine to its highest; lighter is more."""


@dataclass(frozen=True)
class Matrix:
    """k target classes by the first source class of each."""

    targets: Sequence[str]
    sources: Sequence[str]
    """(k,) names each."""
    low: float
    high: float
    """The cosines that the first and last colour stand for."""
    picture: str
    """Data URI of a picture of k x k pixels."""
    cosines: str
    """In base64: (k, k) int16, little endian, in thousandths."""


def matrix_of(rows: Sequence[Row], similarity: Similarity | None) -> Matrix | None:
    """Draw the matrix; ``None`` where a pairing records no similarities."""
    if similarity is None:
        return None
    cells, cosines = shown_classes(len(rows)), similarity.matrix
    low, high = float(cosines.min()), float(cosines.max())
    return Matrix(
        [rows[k].name for k in cells],
        [rows[k].sources[0].paired.name for k in cells],
        low,
        high,
        data_uri(_coloured((cosines - low) / max(high - low, 1e-6)), "PNG"),
        base64_text(np.rint(1000 * cosines.astype(np.float64)).astype("<i2").tobytes()),
    )


def _coloured(shares: npt.NDArray[np.float32]) -> Image.Image:
    """Turn numbers in 0 .. 1 into pixels, whose colours lie evenly between `COLOURS`."""
    anchors = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in COLOURS])
    places, known = np.linspace(0, 1, 256), np.linspace(0, 1, len(anchors))
    channels = [np.interp(places, known, anchors[:, k]) for k in range(3)]
    picture = Image.fromarray(np.rint(shares * 255).astype(np.uint8))
    picture.putpalette(np.rint(np.stack(channels, axis=1)).astype(int).ravel().tolist())
    return picture
