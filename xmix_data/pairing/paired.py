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
"""A mean of all cosines above which the features hardly tell classes apart."""
_MAX_SHOWN = 1000
MATRIX_DECIMALS = 3
"""Of the cosines that are kept for looking at."""


class PairedClass(NamedTuple):
    """One source class of a target class."""

    name: str
    cosine: float
    images: int
    """Images of the source class that are drawn from."""
    first: int | None = None
    """``None``: all images of the class. Otherwise images ``first .. first + images - 1`` of the
    class in the random order that the pairing's seed gives them."""
    domain: int = 0
    """Which source of the list the class comes from."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """How similar target and source classes are, to judge a pairing by."""

    mean: float
    std: float
    """Over all n * m cosines."""
    matrix: npt.NDArray[np.float32]
    """(k, k): each target class by the first source class of each target class, rounded to 3
    decimals; the pairs stand on the diagonal. Of `shown_classes`: all, or 1,000 of more."""
    by_method: Mapping[str, float]
    """Mean cosine of one round by each method; without ``"optimal"``, whose time grows fastest,
    where there are more than 25 million pairs of classes."""

    @property
    def tells_classes_apart(self) -> bool:
        """Whether arbitrary classes differ; those of an untrained backbone hardly do."""
        return self.mean <= _UNTRAINED


def shown_classes(classes: int) -> npt.NDArray[np.int64]:
    """Positions of the target classes in `Similarity.matrix`: all, or 1,000 spread over them."""
    return np.unique(np.linspace(0, classes - 1, min(classes, _MAX_SHOWN)).astype(np.int64))
