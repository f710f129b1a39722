"""Datasets of Hugging Face's ``datasets`` library: samples are dicts of columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.errors import DatasetError, ImageError, MissingDependencyError
from xmix_data.images.source import require_map_style, shorten
from xmix_data.images.splits import chosen_split, log_split
from xmix_data.names import same_forms
from xmix_data.remote import path_or_url, read_bytes

__all__ = ["HuggingFaceDataset", "is_huggingface", "open_source"]


def is_huggingface(dataset: Any) -> bool:
    """Return whether an object is a ``datasets.Dataset``, without importing the library."""
    return hasattr(dataset, "features") and hasattr(dataset, "cast_column")


class HuggingFaceDataset:
    """Source that reads a ``datasets.Dataset``: a column of images and one of class labels.

    Images stay as they are stored, JPEG bytes for instance: they are not decoded here, and the
    dataset's format or transform is not applied.

    Args:
        dataset: Read are its column ``image``, or else its only one of the type ``Image``, and its
            column ``label``, or else its only one of the type ``ClassLabel``, or else its only one
            of integers.

    Raises:
        TypeError: It is a set of splits, or a stream.
        ValueError: The dataset lacks one of these columns, several may be meant, or its column
            ``label`` holds no class ids.
    """

    parallel = True

    def __init__(self, dataset: Any) -> None:
        require_map_style(dataset)
        if dataset.format["type"] is not None:
            dataset = dataset.with_format(None)
        kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
        types = {name: str(getattr(f, "dtype", "")) for name, f in dataset.features.items()}
        images = [name for name, kind in kinds.items() if kind == "Image"]
        labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
        integers = [name for name in kinds if kinds[name] == "Value" and "int" in types[name]]
        if "image" in images:
            images = ["image"]
        if "label" in kinds:
            labels = [name for name in (*labels, *integers) if name == "label"]
        else:
            labels = labels or integers
        for name, found in (("image", images), ("label", labels)):
            if len(found) > 1:
                raise ValueError(
                    f"the data set has several columns that may be the {name} ({shorten(found)}); "
                    f"remove the others (remove_columns), or rename the right one to {name!r} "
                    "(rename_column)"
                )
        if not images or not labels:
            listed = shorten([f"{name}: {types[name] or kinds[name]}" for name in kinds])
            raise ValueError(
                f"the data set has the columns {listed}; it needs one of images (Image) "
                "and one of labels (ClassLabel, or integers); cast them with cast_column, or "
                "labels that are texts with class_encode_column"
            )
        self._image, self._label = images[0], labels[0]
        undecoded = type(dataset.features[self._image])(decode=False)
        self._dataset = dataset.select_columns([self._image, self._label]).cast_column(
            self._image, undecoded
        )
        names = getattr(dataset.features[self._label], "names", None)
        self._names = None if names is None else same_forms(names)

    @property
    def class_names(self) -> list[str] | None:
        return self._names

    @property
    def fingerprint(self) -> str:
        return f"huggingface:{self._dataset._fingerprint}"

    def __len__(self) -> int:
        return len(self._dataset)

    def labels(self) -> npt.NDArray[np.int64]:
        values = self._dataset[self._label][:]
        for index, value in enumerate(values):
            if value is None:
                raise DatasetError(f"{self.where(index)}: it has no label; correct the data set")
        return np.array(values, np.int64)

    def read(self, index: int) -> tuple[bytes, int]:
        sample = self._dataset[index]
        image, label = sample[self._image], sample[self._label]
        if label is None:
            raise DatasetError("it has no label")
        if image is None:
            raise ImageError("it has no image")
        if image["bytes"] is not None:
            return image["bytes"], int(label)
        place = path_or_url(image["path"])
        try:
            return read_bytes(place), int(label)
        except (OSError, ValueError, ImportError) as error:
            if isinstance(place, Path) or isinstance(error, FileNotFoundError):
                raise  # it is about this image
            raise DatasetError(str(error)) from error  # the store or the network

    def where(self, index: int) -> str:
        return f"data set of {len(self)} rows, row {index}"


def open_source(
    place: str, *, split: str | None, root: str | os.PathLike[str]
) -> HuggingFaceDataset:
    """Open a data set that ``save_to_disk`` wrote.

    Args:
        place: Folder of the data set.
        split: Part of the data set; ``None``: train of several, or the only one there is.
        root: Not used: there is no download.

    Raises:
        MissingDependencyError: ``datasets`` is not installed.
        FileNotFoundError: There is no data set in the folder.
        ValueError: There is no such split, or a column of images or labels is missing.
    """
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise MissingDependencyError(
            f"huggingface:{place} needs the library datasets ({error}): pip install datasets"
        ) from error
    dataset = load_from_disk(place)
    name = f"huggingface:{place}"
    if isinstance(dataset, Mapping):  # a DatasetDict
        splits = list(dataset)
        taken = chosen_split(name, splits, split)
        source = HuggingFaceDataset(dataset[taken])
        log_split(name, splits, split, taken)
        return source
    if split is not None:  # a whole one, which may know what it is a part of
        chosen_split(name, [] if dataset.split is None else [str(dataset.split)], split)
    return HuggingFaceDataset(dataset)
