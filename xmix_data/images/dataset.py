"""Map-style datasets: any of them, and torchvision's by name."""

from __future__ import annotations

import hashlib
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xmix_data.errors import DatasetError
from xmix_data.images.source import require_map_style, shorten

__all__ = ["MapDataset", "open_source", "torchvision_dataset"]


class MapDataset:
    """Source that reads any map-style dataset: ``len(dataset)``, ``dataset[i] -> (image, label)``.

    Args:
        dataset: Its images are encoded ``bytes``, PIL images, uint8 (or uint16) arrays (H, W) or
            (H, W, C), or uint8 tensors (C, H, W). Class names come from ``dataset.classes`` where
            it has this attribute.
        parallel: Whether several processes may read it at once. That is not known of a user's:
            an open file has one position for all.

    Raises:
        TypeError: The object has no ``len()`` or no ``[i]``, or holds several datasets.
    """

    def __init__(self, dataset: Any, *, parallel: bool = False) -> None:
        require_map_style(dataset)
        self._dataset, self.parallel = dataset, parallel
        names = getattr(dataset, "classes", None)
        self._names = None if names is None else [str(name) for name in names]

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
                reason = str(error) if isinstance(error, DatasetError) else repr(error)
                raise DatasetError(
                    f"{self.where(index)}: its label cannot be read: {reason}; correct the dataset"
                ) from error
        return labels

    def read(self, index: int) -> tuple[Any, int]:
        try:
            sample = self._dataset[index]
        except Exception as error:
            if _is_of_an_image(error):
                raise
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise DatasetError(f"the dataset raised {said}") from error
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise DatasetError(
                f"the sample is {shorten(sample)}, expected a pair (image, integer label)"
            )
        return sample[0], _label(sample[1])

    def where(self, index: int) -> str:
        return f"{type(self._dataset).__name__}[{index}]"


def _label(label: Any) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise DatasetError(f"the label is {shorten(label)}, expected an integer") from None


def _is_of_an_image(error: Exception) -> bool:
    """Return whether what a dataset raised is about one image: a file's error, or Pillow's.

    Pillow raises errors of any kind over damaged files.
    """
    kinds = (OSError, EOFError, SyntaxError, MemoryError, Image.DecompressionBombError)
    if isinstance(error, kinds):
        return True
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    origin = "" if frames is None else str(frames.tb_frame.f_globals.get("__name__", ""))
    return origin.partition(".")[0] == "PIL"


def torchvision_dataset(name: str, root: str | os.PathLike[str], split: str) -> Any:
    """Open a dataset of `torchvision.datasets` by name; download it below ``root`` where needed.

    Args:
        name: Name of the class, e.g. ``"Flowers102"``.
        root: Folder of the download.
        split: Passed as ``split=``, or as ``train=`` where the dataset knows only two parts.

    Raises:
        ValueError: Torchvision has no such dataset, or the dataset has no such split.
        OSError: The download failed.
    """
    import inspect

    from torchvision import datasets

    kind: Any = getattr(datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        known = [n for n in datasets.__all__ if n[0].isupper()]
        raise ValueError(f"torchvision has no dataset {name!r}; it has {', '.join(known)}")
    make: Any = kind
    parameters = inspect.signature(make).parameters
    options: dict[str, Any] = {}
    if "root" in parameters:
        options["root"] = root
    if "split" in parameters:
        options["split"] = split
    elif "train" in parameters:
        if split not in ("train", "test"):
            raise ValueError(f"torchvision:{name} has the splits train and test, not {split!r}")
        options["train"] = split == "train"
    if "loader" in parameters:  # the files as they are: they are decoded where it is needed
        options["loader"] = _bytes_of
    try:
        return make(**options)
    except (OSError, RuntimeError) as missing:
        if "download" not in parameters:
            raise OSError(
                f"torchvision:{name}: {missing}; put the data set's files below {root} yourself"
            ) from missing
    try:
        return make(**options, download=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(
            f"torchvision:{name}: {error}; check the network, or put the data set's files "
            f"below {root} yourself"
        ) from error


def _bytes_of(path: str | os.PathLike[str]) -> bytes:
    return Path(path).read_bytes()


def open_source(place: str, *, split: str, root: str | os.PathLike[str]) -> MapDataset:
    """Open the source that ``torchvision:NAME`` names, see `torchvision_dataset`."""
    return MapDataset(torchvision_dataset(place, root, split), parallel=True)
