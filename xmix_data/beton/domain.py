"""`Domain`: one or several betons read as one.

Comes in: paths or betons. Goes out: labels, sizes and addresses over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.beton.manifest import shards_of
from xmix_data.beton.reader import Beton

__all__ = ["BetonLike", "Domain", "DomainLike", "open_domain"]


class Domain:
    """One or several betons read as one: class ids and sample indices are offset in list order.

    Betons that are the shards of one set are joined first, their class ids unchanged.

    Args:
        parts: The domains of the list; each is one beton, or the shards of one set in order.
    """

    def __init__(self, parts: Sequence[Sequence[Beton]]) -> None:
        self._parts = parts
        self.betons = [beton for part in parts for beton in part]
        """All betons, in the order of their samples."""
        self.class_names = [name for part in parts for name in part[0].class_names]
        """Name of each class id."""
        self._class_starts = np.cumsum([0] + [len(part[0].class_names) for part in parts])
        self._sample_starts = np.cumsum([0] + [beton.num_samples for beton in self.betons])
        offsets = [
            int(start) for part, start in zip(parts, self._class_starts, strict=False) for _ in part
        ]
        self.labels: npt.NDArray[np.int64] = _joined(
            [
                b.labels + offset if offset else b.labels
                for b, offset in zip(self.betons, offsets, strict=True)
            ]
        )
        """(N,) int64 class id of each sample."""
        self.heights: npt.NDArray[np.uint16] = _joined([b.heights for b in self.betons])
        """(N,) uint16 height of each stored image, in pixels."""
        self.widths: npt.NDArray[np.uint16] = _joined([b.widths for b in self.betons])
        """(N,) uint16 width of each stored image, in pixels."""
        self.modes: npt.NDArray[np.uint8] = _joined([b.modes for b in self.betons])
        """(N,) uint8 mode of each stored image, JPEG or raw (`xmix_data.beton.layout`)."""
        self.sizes: npt.NDArray[np.uint64] = _joined([b.sizes for b in self.betons])
        """(N,) uint64 number of bytes of each stored image."""
        self._pointers = [b.pointers for b in self.betons]
        self._base = np.array([b.address for b in self.betons], np.uint64)

    def __repr__(self) -> str:
        first, more = self.betons[0].origin, len(self.betons) - 1
        files = f"{first!r} and {more} more" if more else repr(first)
        return f"Domain({files}: {len(self.labels)} images, {len(self.class_names)} classes)"

    def addresses(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Return the addresses (B,) uint64 in memory where the bytes of samples begin."""
        if len(self.betons) == 1:
            return np.asarray(self._base[0] + self._pointers[0][indices])
        part = np.searchsorted(self._sample_starts, indices, side="right") - 1
        addresses = self._base[part]
        for number, pointers in enumerate(self._pointers):
            here = part == number
            addresses[here] += pointers[indices[here] - self._sample_starts[number]]
        return addresses

    def locate(self, index: int) -> tuple[Beton, int]:
        """Find the beton that holds a sample, and the sample's index there."""
        part = int(np.searchsorted(self._sample_starts, index, side="right")) - 1
        return self.betons[part], int(index - self._sample_starts[part])

    def describe(self, index: int) -> str:
        """Name a sample for an error message: file, index and class."""
        beton, local = self.locate(index)
        return beton.describe(local)

    def domain_of_class(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Find the domain of the list, (B,) int64, that each class id belongs to."""
        return np.searchsorted(self._class_starts, labels, side="right") - 1

    @property
    def parts(self) -> list[Domain]:
        """Domains of the list, one by one."""
        return [Domain([part]) for part in self._parts]

    @property
    def unnamed(self) -> str:
        """Which beton lacks its manifest and what to do; empty where none does. For messages."""
        return next((beton.unnamed for beton in self.betons if beton.unnamed), "")

    @property
    def provenance(self) -> list[dict[str, list[str]]]:
        """Names (``files``) and ``fingerprints`` of the betons of each domain of the list."""
        return [
            {"files": [b.path.name for b in part], "fingerprints": [b.fingerprint for b in part]}
            for part in self._parts
        ]

    @property
    def shards(self) -> Sequence[Sequence[Beton]]:
        """For each domain of the list its betons."""
        return self._parts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._parts,)  # addresses are taken anew, from betons opened anew

    def __len__(self) -> int:
        return len(self.labels)


def _joined(arrays: list[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


BetonLike = str | os.PathLike[str] | Beton
DomainLike = BetonLike | Sequence[BetonLike] | Domain
"""Types that a user may give for a domain."""


def open_domain(betons: DomainLike) -> Domain:
    """Open a path, a `Beton`, or a list of them as one domain; a `Domain` is one already.

    A path may be a URL. Where there is no such beton, and shards of one are, as conversions with
    ``--shard`` name them, it stands for all of them.

    Raises:
        FileNotFoundError: A beton does not exist.
        BetonError: A beton is damaged.
        ValueError: The list is empty, something in it is no beton, or a set of shards is incomplete
            or does not fit together.

    Examples:
        >>> domain = open_domain(["target.beton", "source.beton"])
        >>> domain.class_names
        ['t0', 't1', 't2', 't3', 's0', 's1', 's2', 's3', 's4', 's5']
        >>> domain.labels.shape, domain.domain_of_class(np.array([0, 9]))
        ((65,), array([0, 1]))
    """
    if isinstance(betons, Domain):
        return betons
    if isinstance(betons, (str, os.PathLike, Beton)):
        betons = [betons]
    for one in betons if isinstance(betons, (list, tuple)) else [betons]:
        if not isinstance(one, (str, os.PathLike, Beton)):
            raise ValueError(
                f"a {type(one).__name__} is no beton; give the path of one, or a list of paths "
                "(write_beton(dataset, path) makes one of a dataset)"
            )
    opened = [beton for given in betons for beton in _opened(given)]
    if not opened:
        raise ValueError("the list of betons is empty; give at least one")
    parts: list[list[Beton]] = []
    sets: dict[str, list[Beton]] = {}
    for beton in opened:
        if beton.shard is None:
            parts.append([beton])
        elif beton.shard["set"] in sets:
            sets[beton.shard["set"]].append(beton)
        else:
            sets[beton.shard["set"]] = [beton]
            parts.append(sets[beton.shard["set"]])
    for shards in sets.values():
        _order_shards(shards)
    return Domain(parts)


def _opened(given: BetonLike) -> list[Beton]:
    if isinstance(given, Beton):
        return [given]
    try:
        return [Beton(given)]
    except FileNotFoundError as error:
        sets = shards_of(given)
        if not sets:
            raise
        if len(sets) > 1:
            counts = " and ".join(map(str, sets))
            raise ValueError(
                f"{given}: there are sets of {counts} shards beside each other; give the shards "
                "one by one, or remove those of one set"
            ) from error
    return [Beton(shard) for shard in next(iter(sets.values())).values()]


def _order_shards(shards: list[Beton]) -> None:
    shards.sort(key=lambda beton: beton.shard["index"] if beton.shard else 0)
    indices = [beton.shard["index"] for beton in shards if beton.shard]
    count = shards[0].shard["count"] if shards[0].shard else 1
    given = set(indices)
    missing = next((index for index in range(count) if index not in given), None)
    if missing is not None or len(indices) != count:
        problem = "names a shard twice" if missing is None else f"lacks shard {missing}"
        raise ValueError(
            f"{shards[0].origin} is one of {count} shards, and the list {problem}; give all of them"
        )
    for beton in shards[1:]:
        if beton.class_names != shards[0].class_names:
            raise ValueError(
                f"{beton.origin} and {shards[0].origin} are shards of one set with different "
                "classes; convert them again"
            )
