"""What a conversion reads: labelled images by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_CLASSES", "ImageSource", "label_problem", "shorten"]

MAX_CLASSES = 1 << 20
"""Labels from here on are mistakes or damage, where nothing names the classes."""


class ImageSource(Protocol):
    """Labelled images by index, not yet decoded where they are files."""

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class id, or ``None`` where only the labels tell how many there are."""

    @property
    def fingerprint(self) -> str:
        """Identifies the source's content for provenance, without reading the pixels."""

    def __len__(self) -> int: ...

    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) class ids; may have to read every sample."""

    def read(self, index: int) -> tuple[Any, int]:
        """The image (encoded ``bytes``, PIL image, array or tensor) and its class id."""

    def where(self, index: int) -> str:
        """Names the sample in an error message."""


def label_problem(label: int, names: Sequence[str] | None) -> str | None:
    """What is wrong with a label, or ``None`` where it is one of the classes."""
    if 0 <= label < (MAX_CLASSES if names is None else len(names)):
        return None
    classes = f"0 .. {MAX_CLASSES - 1}" if names is None else f"the {len(names)} classes"
    return f"label {label} is none of {classes}"


def shorten(value: Any) -> str:
    """A value in at most 80 characters of one line."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
