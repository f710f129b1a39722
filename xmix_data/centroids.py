"""Class centroids: the mean feature vector of each class (XMixup, Eq. 1).

Comes in: features (B, D) and labels (B,), batch by batch. Goes out: `Centroids` (C, D).
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xmix_data.files import whole_file

if TYPE_CHECKING:
    import torch

__all__ = ["CentroidSum", "Centroids"]

_FORMAT = "xmix_data.centroids/1"


@dataclass(frozen=True, eq=False)
class Centroids:
    """Mean feature vector of each class.

    Args:
        values: (C, D) float32: raw (unnormalised) means. A class without images has NaN.
        counts: (C,) int64: images of each class.
        class_names: C different names.
        provenance: What the features were made with, e.g. the model, its weights' hash and the
            beton's fingerprint; goes into the pairing.

    Raises:
        ValueError: Shapes do not fit together, or two classes have the same name.
    """

    values: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    class_names: list[str]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.ascontiguousarray(self.values, np.float32))
        object.__setattr__(self, "counts", np.ascontiguousarray(self.counts, np.int64))
        object.__setattr__(self, "class_names", [str(name) for name in self.class_names])
        classes = len(self.class_names)
        if self.values.ndim != 2 or len(self.values) != classes or self.counts.shape != (classes,):
            raise ValueError(
                f"centroids have values {self.values.shape}, counts {self.counts.shape} and "
                f"{classes} class names; expected (C, D), (C,) and C names"
            )
        if len(set(self.class_names)) != classes:
            twice = next(n for n in self.class_names if self.class_names.count(n) > 1)
            raise ValueError(f"two classes are named {twice!r}; rename one, a pairing needs names")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a NumPy ``.npz`` without pickled objects; the file appears when whole."""
        meta = {
            "format": _FORMAT,
            "class_names": self.class_names,
            "provenance": dict(self.provenance),
        }
        with whole_file(path) as stream:
            np.savez(
                stream, values=self.values, counts=self.counts, meta=np.array(json.dumps(meta))
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Centroids:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is damaged or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"]))
                if meta["format"] != _FORMAT:
                    raise ValueError(f"format {meta['format']!r}")
                names = meta["class_names"]
                return cls(arrays["values"], arrays["counts"], names, meta.get("provenance", {}))
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}: damaged, or no centroids of xmix_data ({error}); compute them again"
            ) from error


class CentroidSum:
    """Accumulates per-class feature sums in float64; memory depends on classes only.

    Args:
        num_classes: C.
        device: Where the sums live, a torch device.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        import torch

        self._num_classes = num_classes
        self._device = device
        self._sums: torch.Tensor | None = None
        self._counts = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch.

        Args:
            features: (B, D) floating point.
            labels: (B,) int64 class ids.
        """
        import torch

        if self._sums is None:
            shape = (self._num_classes, features.shape[1])
            self._sums = torch.zeros(shape, dtype=torch.float64, device=self._device)
        self._sums.index_add_(0, labels, features.to(torch.float64))
        self._counts += torch.bincount(labels, minlength=self._num_classes)

    def centroids(
        self, class_names: Sequence[str], provenance: Mapping[str, Any] | None = None
    ) -> Centroids:
        """The means so far."""
        if self._sums is None:
            raise ValueError("no features were added; there are no centroids")
        counts = self._counts.cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            values = self._sums.cpu().numpy() / counts[:, None]
        return Centroids(values.astype(np.float32), counts, list(class_names), provenance or {})
