"""What a pairing is made of: source classes with their cosines, and how similar classes are.

Plain values, which `pairing` holds together, `file` writes, and `ids` finds in given betons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["MATRIX_DECIMALS", "PairedClass", "Similarity", "shown_classes"]

_UNTRAINED = 0.9
"""Mean of all cosines above which the features hardly tell classes apart."""
_MAX_SHOWN = 1000
"""Most target classes in `Similarity.matrix`."""
MATRIX_DECIMALS = 3
"""Decimals of the cosines in `Similarity.matrix`."""


class PairedClass(NamedTuple):
    """One source class of a target class.

    Examples:
        >>> PairedClass("s1", cosine=0.75, images=3)
        PairedClass(name='s1', cosine=0.75, images=3, first=None, domain=0)
    """

    name: str
    """Name of the source class."""
    cosine: float
    """Cosine of the two classes' centroids, in -1 .. 1; NaN for random pairs without features."""
    images: int
    """Number of images of the source class that are drawn from."""
    first: int | None = None
    """First image of the source class that is drawn from; ``None``: all its images are.

    They are images ``first .. first + images - 1`` in the random order that the pairing's seed
    gives the images of the class."""
    domain: int = 0
    """Position of the class's source in the list of sources."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """Similarity of target and source classes, to judge a pairing by."""

    mean: float
    """Mean of all n * m cosines."""
    std: float
    """Standard deviation of all n * m cosines."""
    matrix: npt.NDArray[np.float32]
    """(k, k) cosines of each target class with the first source class of each target class.

    They are rounded to 3 decimals, and the pairs stand on the diagonal. The target classes are
    those of `shown_classes`: all, or 1,000 of more."""
    by_method: Mapping[str, float]
    """Mean cosine of one round by each method.

    ``"optimal"``, whose time grows fastest, is left out above 25 million pairs of classes."""

    @property
    def tells_classes_apart(self) -> bool:
        """Whether arbitrary classes differ; those of an untrained backbone hardly do."""
        return self.mean <= _UNTRAINED


def shown_classes(classes: int) -> npt.NDArray[np.int64]:
    """Return the target classes of `Similarity.matrix`, (k,) int64: all, or 1,000 spread evenly."""
    return np.unique(np.linspace(0, classes - 1, min(classes, _MAX_SHOWN)).astype(np.int64))
