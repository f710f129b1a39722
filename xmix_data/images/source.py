"""What a conversion reads: labelled images by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "MAX_CLASSES",
    "SAID_BY_SOURCES",
    "ImageSource",
    "label_problem",
    "numbered_names",
    "require_map_style",
    "shorten",
]

MAX_CLASSES = 1 << 20
"""Most classes that a source without class names may have: a label beyond is taken for damage."""

SAID_BY_SOURCES = frozenset({"parallel", "distant", "left_out", "beton", "unnamed"})
"""Attributes beyond the protocol that a source may have, see `ImageSource`."""


class ImageSource(Protocol):
    """Protocol of a source: labelled images by index, not yet decoded where they are files.

    A source that several processes may read at once, because it opens what it reads anew each
    time, says so by an attribute ``parallel = True``. Any other is read by one process, in order.
    One that waits for a store says ``distant = True``: each process reads many samples at once.
    ``left_out`` counts the files that are no images, by suffix; ``beton`` is the beton that it
    reads; ``unnamed`` says why there are no class names, and what to do.
    """

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class id; ``None`` where only the labels tell how many classes there are."""

    @property
    def fingerprint(self) -> str:
        """Text that identifies the source's content, made without reading the pixels."""

    def __len__(self) -> int: ...

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the class ids, (N,) int64; this may have to read every sample."""

    def read(self, index: int) -> tuple[Any, int]:
        """Read an image (encoded ``bytes``, PIL image, array or tensor) and its class id."""

    def where(self, index: int) -> str:
        """Name a sample for an error message."""


def require_map_style(dataset: Any) -> None:
    """Check that a dataset has a length and can be indexed, as far as that can be seen.

    Raises:
        TypeError: It is a set of splits, a stream of samples, or no dataset.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"{kind} is no dataset but holds several ({shorten([*map(str, dataset)])}); give one "
            f"of them, as in dataset[{next(iter(dataset), 'train')!r}]"
        )
    advice = (
        "give a class folder, a .beton, or a map-style dataset with len() and [i] -> (image, label)"
    )
    if any(base.__name__ == "IterableDataset" for base in type(dataset).__mro__):
        raise TypeError(f"{kind} is a stream of samples, which has no order to keep; {advice}")
    try:
        len(dataset)
        dataset.__getitem__  # noqa: B018
    except (TypeError, AttributeError, NotImplementedError) as error:
        raise TypeError(f"{kind} is no source of images: {advice}") from error


def label_problem(label: int, names: Sequence[str] | None) -> str | None:
    """Find what is wrong with a label.

    Args:
        label: The label.
        names: Name of each class; ``None``: any label below `MAX_CLASSES` will do.

    Returns:
        The problem in words, or ``None`` where the label is one of the classes.
    """
    if 0 <= label < (MAX_CLASSES if names is None else len(names)):
        return None
    classes = f"0 .. {MAX_CLASSES - 1}" if names is None else f"the {len(names)} classes"
    return f"label {label} is none of {classes}"


def numbered_names(labels: npt.NDArray[np.int64]) -> list[str]:
    """Name the classes of a source without class names: "0", "1", ... up to its largest label.

    Args:
        labels: (N,) class ids. One that is out of range names no more classes: it is damage, and an
            error where the sample is read.
    """
    return [str(label) for label in range(min(int(labels.max(initial=-1)) + 1, MAX_CLASSES))]


def shorten(value: Any) -> str:
    """Shorten a value to at most 80 characters on one line."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
