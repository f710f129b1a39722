"""Whatever may be converted, as an `ImageSource`: a folder, a beton, a dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.beton.layout import JPG
from xmix_data.beton.reader import Beton
from xmix_data.images import ClassFolder, DistantFolder, ImageSource, MapDataset
from xmix_data.images.huggingface import HuggingFaceDataset, is_huggingface
from xmix_data.remote import name_of, path_or_url

__all__ = ["BetonImages", "open_images"]


class BetonImages:
    """A beton as the source of another conversion."""

    parallel = True

    def __init__(self, beton: Beton) -> None:
        self.beton = beton

    @property
    def class_names(self) -> list[str] | None:
        return None if self.beton.manifest is None else self.beton.class_names

    @property
    def unnamed(self) -> str:
        """Why it has no class names; for messages."""
        return self.beton.unnamed

    @property
    def fingerprint(self) -> str:
        return self.beton.fingerprint

    def __len__(self) -> int:
        return self.beton.num_samples

    def labels(self) -> npt.NDArray[np.int64]:
        return np.array(self.beton.labels)

    def read(self, index: int) -> tuple[Any, int]:
        beton, label = self.beton, int(self.beton.labels[index])
        if beton.modes[index] == JPG:
            return beton.data(index).tobytes(), label
        shape = int(beton.heights[index]), int(beton.widths[index]), 3
        return np.array(beton.data(index)).reshape(shape), label

    def where(self, index: int) -> str:
        return self.beton.describe(index)


def open_images(dataset: Any) -> ImageSource:
    """Open a class folder, a beton, or a dataset (map-style, Hugging Face's) as an `ImageSource`.

    Folder and beton may be URLs.

    Raises:
        FileNotFoundError: There is no such folder or beton.
        BetonError: The beton is damaged.
        TypeError: The object is no dataset.
        ValueError: A folder holds no classes, or a dataset lacks a column.
    """
    if isinstance(dataset, (str, os.PathLike)):
        place = path_or_url(dataset)
        is_file = name_of(place).endswith(".beton") or (isinstance(place, Path) and place.is_file())
        if is_file:
            return BetonImages(Beton(place))
        return ClassFolder(place) if isinstance(place, Path) else DistantFolder(place)
    if isinstance(dataset, Beton):
        return BetonImages(dataset)
    if is_huggingface(dataset):
        return HuggingFaceDataset(dataset)
    if all(hasattr(dataset, name) for name in ("read", "where", "labels", "fingerprint")):
        return dataset  # type: ignore[no-any-return]
    return MapDataset(dataset)
