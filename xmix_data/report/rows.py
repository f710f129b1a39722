"""What a report tells of each target class: its images, its source classes, a verdict.

Comes in: a pairing and the betons of its classes. Goes out: a `Row` for each target class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xmix_data.beton import Domain
from xmix_data.pairing import Draw, PairedClass, Pairing, Similarity
from xmix_data.plan import ImageSizes, SourcePool

__all__ = [
    "UNFOLDED",
    "Limits",
    "Row",
    "Source",
    "file_list",
    "limits_of",
    "rows_of",
    "verdict_of",
]


UNFOLDED = 4
"""Source classes of a target class that show without a click."""
_ALIKE = 1e-6
"""Standard deviation of cosines that differ by rounding alone."""


@dataclass(frozen=True)
class Source:
    """One source class of a target class."""

    paired: PairedClass
    images: npt.NDArray[np.int64]
    """Sample indices that the target class draws."""
    file: str | None
    """Where it comes from, if there are several source domains."""

    @property
    def num_images(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Row:
    """One target class."""

    name: str
    images: npt.NDArray[np.int64]
    sources: Sequence[Source]

    @property
    def cosine(self) -> float:
        """Mean over the source images: each is drawn as often."""
        total = sum(source.num_images * source.paired.cosine for source in self.sources)
        return total / self.num_images

    @property
    def num_images(self) -> int:
        return sum(source.num_images for source in self.sources)


def rows_of(pairing: Pairing, target: Domain, source: Domain) -> list[Row]:
    """Find what each target class draws from, in the pairing's order."""
    draws = pairing.draws(target, source)
    classes = [Draw(label, None, 0) for label in range(len(target.class_names))]
    own = _drawn(target, classes, 0)
    drawn = iter(_drawn(source, [draw for of_one in draws for draw in of_one], pairing.seed))
    parts = source.provenance
    several = len(parts) > 1
    rows = {}
    for label, name in enumerate(target.class_names):
        if name in rows:
            raise ValueError(
                f"two target classes are named {name!r}; a pairing names them, rename one"
            )
        if not len(own[label]):
            raise ValueError(f"target class {name!r} has no images; give the betons that have them")
        sources = []
        for paired, draw in zip(pairing.pairs[name], draws[label], strict=True):
            images = next(drawn)
            if not len(images):
                raise ValueError(
                    f"source class {paired.name!r}, paired with {name!r}, has no images; "
                    "give the betons that have them, or run `xmix pair` again"
                )
            part = parts[int(source.domain_of_class(np.array(draw.label)))]
            sources.append(Source(paired, images, file_list(part["files"]) if several else None))
        rows[name] = Row(name, own[label], sources)
    return [rows[name] for name in pairing.pairs]


def _drawn(domain: Domain, draws: Sequence[Draw], seed: int) -> list[npt.NDArray[np.int64]]:
    """Find the sample indices of each draw, as a loader has them."""
    sizes = ImageSizes(domain.heights, domain.widths)
    pool = SourcePool(domain.labels, [[draw] for draw in draws], sizes, seed)
    return np.split(pool.images, np.cumsum(pool.counts)[:-1])


def file_list(names: Sequence[str]) -> str:
    """Name a list of files in a few words."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


class Limits(NamedTuple):
    """Lowest cosines of the verdicts, both below 1."""

    weak: float
    good: float
    halfway: bool
    """Whether the upper one is halfway from the lower one to 1, for lack of room."""


def limits_of(similarity: Similarity | None) -> Limits | None:
    """Find what to judge a cosine by: those of all pairs of a target and a source class.

    Returns:
        One and two standard deviations above their mean; the second one halfway from the first to
        1 where it would leave no cosine above. ``None`` where the first does too, where all pairs
        are as similar, one pair of classes say, and where nothing is known of them.
    """
    if similarity is None or similarity.std < _ALIKE:
        return None
    weak, good = (similarity.mean + times * similarity.std for times in (1, 2))
    if weak >= 1:
        return None
    return Limits(weak, good, False) if good < 1 else Limits(weak, (weak + 1) / 2, True)


def verdict_of(cosine: float, limits: Limits | None) -> str | None:
    """Judge a cosine as ``"good"``, ``"weak"`` or ``"poor"``; without limits not at all."""
    if limits is None:
        return None
    return "good" if cosine >= limits.good else "weak" if cosine >= limits.weak else "poor"
