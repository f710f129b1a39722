"""Map-style datasets: ``len(dataset)``, ``dataset[i] -> (image, label)``."""

from __future__ import annotations

import hashlib
import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.errors import ImageError
from xmix_data.images.class_names import dataset_names
from xmix_data.images.source import shorten

__all__ = ["MapDataset"]


class MapDataset:
    """Source that reads any map-style dataset: ``len(dataset)``, ``dataset[i] -> (image, label)``.

    Args:
        dataset: Its images are encoded ``bytes``, PIL images, uint8 (or uint16) arrays (H, W) or
            (H, W, C), or uint8 tensors (C, H, W). Class names come from ``dataset.classes`` or
            ``dataset.wnids``, through torch's ``Subset`` and ``ConcatDataset``.

    Raises:
        TypeError: The object has no ``len()`` or no ``[i]``.
        ValueError: Its class names are no list, or differ between the parts that it is made of.
    """

    def __init__(self, dataset: Any) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(
                f"{type(dataset).__name__} is no source of images: give a class folder, a .beton, "
                "or a map-style dataset with len() and [i] -> (image, label)"
            )
        self._dataset = dataset
        self._names = dataset_names(dataset)

    @property
    def class_names(self) -> list[str] | None:
        return self._names

    @property
    def fingerprint(self) -> str:
        kind = type(self._dataset)
        text = f"{kind.__module__}.{kind.__qualname__}\0{len(self)}\0{self._names}"
        return f"dataset:{hashlib.sha256(text.encode()).hexdigest()}"

    def __len__(self) -> int:
        return len(self._dataset)

    def labels(self) -> npt.NDArray[np.int64]:
        targets: Any = getattr(self._dataset, "targets", None)
        known = targets is not None and len(targets) == len(self)
        labels = np.empty(len(self), np.int64)
        for index in range(len(self)):
            try:
                labels[index] = _label(targets[index]) if known else self.read(index)[1]
            except Exception as error:  # whatever the user's dataset raises, named with its sample
                reason = str(error) if isinstance(error, ImageError) else repr(error)
                raise ImageError(
                    f"{self.where(index)}: its label cannot be read: {reason}; correct the dataset"
                ) from error
        return labels

    def read(self, index: int) -> tuple[Any, int]:
        sample = self._dataset[index]
        try:
            image, label = sample
        except (TypeError, ValueError):
            raise ImageError(
                f"the sample is {shorten(sample)}, expected a pair (image, integer label)"
            ) from None
        return image, _label(label)

    def where(self, index: int) -> str:
        return f"{type(self._dataset).__name__}[{index}]"


def _label(label: Any) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise ImageError(f"the label is {shorten(label)}, expected an integer") from None
