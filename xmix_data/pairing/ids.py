"""A pairing in class ids: from names of classes to what a loader draws from given betons.

Comes in: paired names, the recorded origin of the source classes, and domains. Goes out: for each
target class id the `Draw`s: source class ids, and which images of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmix_data.beton import Domain
from xmix_data.pairing.paired import PairedClass

__all__ = ["Draw", "draws"]


class Draw(NamedTuple):
    """Images of one source class that a target class draws from, named by class id."""

    label: int
    """Class id in the source domain."""
    first: int | None
    """First image of the class, or ``None``: all its images, as in `PairedClass.first`."""
    images: int
    """Number of images, as in `PairedClass.images`."""


def draws(
    pairs: Mapping[str, Sequence[PairedClass]],
    recorded: Sequence[Mapping[str, Any]],
    target: Domain | None,
    source: Domain,
) -> list[list[Draw]]:
    """Translate a pairing into the class ids of given domains.

    Args:
        pairs: Source classes of each target class, by name.
        recorded: The sources that the pairing was made over, as `Domain.provenance` has them.
        target: The target domain; ``None`` numbers the target classes in the pairing's order.
        source: The source domain, or several in one.

    Returns:
        For each target class id the source classes that it draws from.

    Raises:
        ValueError: A class is unknown, ambiguous or unpaired, has too few images, or the
            pairing was made over another number of sources.
    """
    names = list(pairs) if target is None else target.class_names
    known = set(names)
    unnamed = "" if target is None else target.unnamed
    remedy = unnamed or "it was made for other betons: run `xmix pair` again"
    for name in pairs:
        if name not in known:
            raise ValueError(
                f"the pairing's target class {name!r} is not in the target beton; {remedy}"
            )
    for name in names:
        if name not in pairs:
            raise ValueError(f"target class {name!r} is not in the pairing; {remedy}")
    find = _class_ids(pairs, recorded, source)
    result = [[Draw(find(p, name), p.first, p.images) for p in pairs[name]] for name in names]
    if any(p.first is not None for p in _all(pairs)):
        _check_parts(result, source)
    return result


def _class_ids(
    pairs: Mapping[str, Sequence[PairedClass]],
    recorded: Sequence[Mapping[str, Any]],
    source: Domain,
) -> Callable[[PairedClass, str], int]:
    """Return a function from a paired class and its target class to its id in the given source."""
    places: dict[str, dict[int, int]] = {}
    part_of = source.domain_of_class(np.arange(len(source.class_names))).tolist()
    for label, name in enumerate(source.class_names):
        places.setdefault(name, {})[part_of[label]] = label
    parts = _parts(pairs, recorded, source)

    def find(paired: PairedClass, target_name: str) -> int:
        found = places.get(paired.name, {})
        if parts is not None:
            found = {k: v for k, v in found.items() if k == parts[paired.domain]}
        if len(found) == 1:
            return next(iter(found.values()))
        problem = "in several source betons" if found else "in no source beton"
        if parts is not None:
            files = source.provenance[parts[paired.domain]]["files"]
            problem = f"not in {', '.join(files)}"
        remedy = (
            source.unnamed
            or "give the betons that the pairing was made for, or run `xmix pair` again"
        )
        raise ValueError(
            f"source class {paired.name!r}, paired with {target_name!r}, is {problem}; {remedy}"
        )

    return find


def _parts(
    pairs: Mapping[str, Sequence[PairedClass]],
    recorded: Sequence[Mapping[str, Any]],
    source: Domain,
) -> list[int] | None:
    """Find each source of the pairing in the given list; return ``None`` if it has only one."""
    if len(recorded) < 2:
        return None
    given = [part["fingerprints"] for part in source.provenance]
    wanted = [part["fingerprints"] for part in recorded]
    found = {
        i: given.index(fingerprints)
        for i, fingerprints in enumerate(wanted)
        if given.count(fingerprints) == 1
    }
    used = sorted({paired.domain for paired in _all(pairs)})
    unknown = [i for i in used if i not in found]
    if unknown and len(given) == len(wanted) and all(i == j for i, j in found.items()):
        found |= {i: i for i in unknown}  # converted again: known by their places
    elif unknown and len(given) == len(used) and len(unknown) == 1:
        left = set(range(len(given))) - set(found.values())
        found[unknown[0]] = left.pop()
    elif unknown:
        files = "; ".join(", ".join(part["files"]) for part in recorded)
        raise ValueError(
            f"the pairing was made over {len(wanted)} sources ({files}), and of the "
            f"{len(given)} that are given not all are known; give as many, in that order"
        )
    return [found.get(i, -1) for i in range(len(wanted))]


def _check_parts(draws: Iterable[Iterable[Draw]], source: Domain) -> None:
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    for draw in (draw for drawn in draws for draw in drawn):
        if draw.first is not None and draw.first + draw.images > counts[draw.label]:
            raise ValueError(
                f"the pairing draws from images {draw.first} to "
                f"{draw.first + draw.images - 1} of source class "
                f"{source.class_names[draw.label]!r}, which has {counts[draw.label]}; "
                "give the betons that the pairing was made for, or run `xmix pair` again"
            )


def _all(pairs: Mapping[str, Sequence[PairedClass]]) -> Iterator[PairedClass]:
    return itertools.chain.from_iterable(pairs.values())
