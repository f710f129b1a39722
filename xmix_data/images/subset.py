"""Part of a source: some of its classes, or a sample of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.errors import DatasetError, ImageError
from xmix_data.images.source import (
    MAX_CLASSES,
    SAID_BY_SOURCES,
    ImageSource,
    label_problem,
    numbered_names,
    shorten,
)
from xmix_data.names import same_form, same_forms

__all__ = ["Subset", "select"]


class Subset:
    """Part of a source: some of its samples, in its order, with the classes renumbered.

    What a source says beyond the protocol, its parts say too.

    Args:
        source: The whole source.
        indices: (K,) increasing sample indices.
        labels: (K,) class ids of these samples in the source.
        classes: Class ids to keep, increasing; they become 0, 1, ...
    """

    def __init__(
        self,
        source: ImageSource,
        indices: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        classes: Sequence[int],
    ) -> None:
        self._source, self._indices, self._old_labels = source, indices, labels
        self._labels = np.searchsorted(classes, labels).astype(np.int64)
        names = source.class_names
        self._names = [same_form(names[old]) if names else str(old) for old in classes]

    def __getattr__(self, name: str) -> Any:
        if name in SAID_BY_SOURCES:
            return getattr(self._source, name)
        raise AttributeError(f"a Subset has no {name!r}")

    @property
    def class_names(self) -> list[str]:
        return self._names

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._source.fingerprint.encode())
        digest.update(self._indices.tobytes())
        digest.update("\0".join(self._names).encode(errors="surrogateescape"))
        return f"subset:{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._indices)

    def labels(self) -> npt.NDArray[np.int64]:
        return self._labels

    def read(self, index: int) -> tuple[Any, int]:
        image, label = self._source.read(int(self._indices[index]))
        expected = int(self._old_labels[index])
        if label != expected:
            raise DatasetError(
                f"its label is {label}, and {expected} by the dataset's `targets`; make them agree"
            )
        return image, int(self._labels[index])

    def where(self, index: int) -> str:
        return self._source.where(int(self._indices[index]))


def select(
    source: ImageSource,
    *,
    classes: Iterable[str] | None = None,
    per_class: int | None = None,
) -> ImageSource:
    """Select part of a source: some of its classes, or a sample of each class.

    Args:
        source: The whole source.
        classes: Names of the classes to keep, in the source's order; default all.
        per_class: Number of images to keep of each class (all where there are fewer), drawn at
            random, always the same ones; default all.

    Returns:
        The part, or ``source`` itself where nothing is to be left out.

    Raises:
        ImageError: A label cannot be read, or lies outside the classes.
        ValueError: A class is unknown or named twice, or ``per_class`` is below 1.
    """
    if classes is None and per_class is None:
        return source
    labels = source.labels()
    names = source.class_names
    wrong = (labels < 0) | (labels >= (MAX_CLASSES if names is None else len(names)))
    if wrong.any():
        index = int(np.argmax(wrong))
        raise ImageError(
            f"{source.where(index)}: {label_problem(int(labels[index]), names)}; correct the label"
        )
    if names is None:
        names = numbered_names(labels)
    wanted = names if classes is None else list(classes)
    wanted = same_forms(wanted)
    known = {same_form(name): i for i, name in enumerate(names)}
    for position, name in enumerate(wanted):
        if name not in known:
            remedy = getattr(source, "unnamed", "") or "correct the list of classes"
            raise ValueError(
                f"class {name!r} is not in the source, which has {len(names)} classes "
                f"({shorten(names)}); {remedy}"
            )
        if name in wanted[:position]:
            raise ValueError(f"class {name!r} is listed twice; remove one")
    ids = sorted(known[name] for name in wanted)
    keep = np.isin(labels, ids)
    if per_class is not None:
        if per_class < 1:
            raise ValueError(f"per_class is {per_class}; it must be at least 1")
        keep &= _sample_per_class(labels, per_class)
    indices = np.flatnonzero(keep).astype(np.int64)
    return Subset(source, indices, labels[indices], ids)


def _sample_per_class(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) of ``count`` random samples of each class, the same in every run."""
    ranks = np.random.Philox(key=0).random_raw(len(labels))
    order = np.lexsort((ranks, labels))
    starts = np.searchsorted(labels[order], labels[order], side="left")
    chosen = np.zeros(len(labels), bool)
    chosen[order[np.arange(len(labels)) - starts < count]] = True
    return chosen
