"""What frameworks ask a loader for beside batches: its dataset and its sampler, as views of it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DatasetView", "SamplerView"]


class DatasetView:
    """The samples of an epoch, by their labels; as torchvision's datasets name them.

    Args:
        classes: Class names by id.
        labels: (N,) class id of each sample.
    """

    def __init__(self, classes: list[str], labels: npt.NDArray[np.int64]) -> None:
        self.classes = classes
        self._labels = labels

    def __len__(self) -> int:
        """Count the samples of an epoch, over all ranks."""
        return len(self._labels)

    @cached_property
    def class_to_idx(self) -> dict[str, int]:
        """Class id of each name."""
        return {name: label for label, name in enumerate(self.classes)}

    @cached_property
    def targets(self) -> list[int]:
        """Class id of each sample, in the beton's order."""
        labels: list[int] = self._labels.tolist()
        return labels


class SamplerView:
    """The order of samples, which is the loader's own; frameworks tell it the epoch.

    Args:
        loader: Whose order it is.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        """As the loader's ``set_epoch``."""
        self._loader.set_epoch(epoch)

    def __len__(self) -> int:
        """Count the samples that this process gets in an epoch, padding included."""
        return int(self._loader.own_samples)
