"""Map-style datasets: ``len(dataset)``, ``dataset[i] -> (image, label)``."""

from __future__ import annotations

import hashlib
import operator
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xmix_data.errors import DatasetError
from xmix_data.images.class_names import dataset_names
from xmix_data.images.source import require_map_style, shorten

__all__ = ["MapDataset"]


class MapDataset:
    """Source that reads any map-style dataset: ``len(dataset)``, ``dataset[i] -> (image, label)``.

    Args:
        dataset: Its images are encoded ``bytes``, PIL images, uint8 (or uint16) arrays (H, W) or
            (H, W, C), or uint8 tensors (C, H, W). Class names come from ``dataset.classes`` or
            ``dataset.wnids``, through torch's ``Subset`` and ``ConcatDataset``.
        parallel: Whether several processes may read it at once. That is not known of a user's:
            an open file has one position for all.
        part: Name of the part of a data set that this is, for the fingerprint.

    Raises:
        TypeError: The object has no ``len()`` or no ``[i]``, or holds several datasets.
        ValueError: Its class names are no list, or differ between the parts that it is made of.
    """

    def __init__(self, dataset: Any, *, parallel: bool = False, part: str | None = None) -> None:
        require_map_style(dataset)
        self._dataset, self.parallel, self._part = dataset, parallel, part
        self._names = dataset_names(dataset)

    @property
    def class_names(self) -> list[str] | None:
        return self._names

    @property
    def fingerprint(self) -> str:
        kind = type(self._dataset)
        text = f"{kind.__module__}.{kind.__qualname__}\0{self._part}\0{len(self)}\0{self._names}"
        digest = hashlib.sha256(text.encode())
        if self._targets() is not None:
            with suppress(DatasetError):  # it is the samples' labels that must be right
                digest.update(self.labels().tobytes())
        return f"dataset:{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._dataset)

    def labels(self) -> npt.NDArray[np.int64]:
        targets = self._targets()
        known = targets is not None
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

    def _targets(self) -> Any:
        """Return the dataset's list of labels; ``None`` where it has none of its own length."""
        targets: Any = getattr(self._dataset, "targets", None)
        return targets if hasattr(targets, "__len__") and len(targets) == len(self) else None

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
