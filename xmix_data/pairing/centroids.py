"""Class centroids: the mean feature vector of each class (XMixup, Eq. 1).

Comes in: features (B, D) and labels (B,), batch by batch. Goes out: `Centroids` (C, D).
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xmix_data.files import whole_file
from xmix_data.names import same_forms
from xmix_data.outputs import local_path

if TYPE_CHECKING:
    import torch

__all__ = ["CentroidSum", "Centroids"]


_FORMAT = "xmix_data.centroids/1"
_SUMS_FORMAT = "xmix_data.feature_sums/1"


@dataclass(frozen=True, eq=False)
class Centroids:
    """Mean feature vector of each class.

    Args:
        values: (C, D) float32: raw (unnormalised) means. A class without images has NaN.
        counts: (C,) int64: images of each class.
        class_names: C different names.
        provenance: What the features were made with, e.g. the model, its weights' hash and the
            beton's fingerprint; goes into the pairing.
        domains: (C,) int64: which beton of a list each class comes from; default all the first.

    Raises:
        ValueError: Shapes do not fit together, or two classes of a domain have the same name.

    Examples:
        >>> values = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
        >>> Centroids(values, np.array([9, 7]), ["t0", "t1"]).save("centroids.npz")
        >>> centroids = Centroids.load("centroids.npz")
        >>> centroids.values.shape, centroids.counts, centroids.class_names
        ((2, 3), array([9, 7]), ['t0', 't1'])
    """

    values: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    class_names: list[str]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    domains: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.ascontiguousarray(self.values, np.float32))
        object.__setattr__(self, "counts", np.ascontiguousarray(self.counts, np.int64))
        object.__setattr__(self, "class_names", same_forms(map(str, self.class_names)))
        classes = len(self.class_names)
        if self.values.ndim != 2 or len(self.values) != classes or self.counts.shape != (classes,):
            raise ValueError(
                f"centroids have values {self.values.shape}, counts {self.counts.shape} and "
                f"{classes} class names; expected (C, D), (C,) and C names"
            )
        if not self.domains.size:
            object.__setattr__(self, "domains", np.zeros(classes, np.int64))
        if self.domains.shape != (classes,):
            raise ValueError(f"centroids have {classes} classes and domains {self.domains.shape}")
        seen: set[tuple[int, str]] = set()
        for key in zip(self.domains.tolist(), self.class_names, strict=True):
            if key in seen:
                raise ValueError(
                    f"two classes are named {key[1]!r}; rename one, a pairing needs names"
                )
            seen.add(key)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the centroids as a NumPy ``.npz`` without pickled objects.

        The file appears when whole.

        Raises:
            OSError: The disk is full or not writable.
            ValueError: ``path`` is a URL.
        """
        meta = {
            "format": _FORMAT,
            "class_names": self.class_names,
            "provenance": dict(self.provenance),
        }
        with whole_file(local_path(path)) as stream:
            np.savez(
                stream,
                values=self.values,
                counts=self.counts,
                domains=self.domains,
                meta=np.array(json.dumps(meta)),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Centroids:
        """Read centroids that `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is damaged or of another kind.
        """
        with _arrays(path, "centroids") as arrays:
            meta = json.loads(str(arrays["meta"]))
            if meta["format"] != _FORMAT:
                raise ValueError(f"format {meta['format']!r}")
            names = meta["class_names"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("the class names are no list of texts")
            # It goes into a pairing, which is UTF-8 and knows no NaN.
            text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
            text.encode(errors="surrogateescape")
            values, counts, domains = (
                _numbers(arrays[key], dtype)
                for key, dtype in (
                    ("values", np.float32),
                    ("counts", np.int64),
                    ("domains", np.int64),
                )
            )
            return cls(values, counts, names, dict(meta["provenance"]), domains)

    @classmethod
    def joined(cls, parts: Sequence[Centroids]) -> Centroids:
        """Join the centroids of several domains, in list order, with the provenance of all.

        Args:
            parts: Centroids of one domain each, of the same model.
        """
        provenance = dict(parts[0].provenance)
        provenance["domains"] = [domain for p in parts for domain in p.provenance["domains"]]
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.counts for part in parts]),
            [name for part in parts for name in part.class_names],
            provenance,
            np.repeat(np.arange(len(parts)), [len(part.class_names) for part in parts]),
        )


@contextlib.contextmanager
def _arrays(path: str | os.PathLike[str], what: str) -> Iterator[Mapping[str, Any]]:
    """Open the arrays of an ``.npz``; whatever is wrong with them is one `ValueError`."""
    with open(local_path(path), "rb") as stream:
        try:
            with np.load(stream, allow_pickle=False) as arrays:
                held = sum(member.file_size for member in arrays.zip.infolist())
                if held > os.fstat(stream.fileno()).st_size:
                    raise ValueError(f"it promises {held} bytes of arrays")
                yield arrays
        except Exception as error:  # NumPy and zipfile raise what the damage happens to lead to
            reason = " ".join(str(error).split())  # NumPy's may have several lines
            raise ValueError(
                f"{path}: damaged, or no {what} of xmix_data ({reason}); delete it, "
                "and compute them again"
            ) from error


def _numbers(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    if array.dtype != dtype:
        raise ValueError(f"an array of {array.dtype}, not {np.dtype(dtype)}")
    return array


class CentroidSum:
    """Sum of the features of each class, in float64; its memory depends on the classes only.

    Args:
        num_classes: C, the number of classes.
        device: Torch device on which the sums live.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        import torch

        self._num_classes = num_classes
        self._device = device
        self._sums: torch.Tensor | None = None
        self._origin = "the batches before"
        self._counts = torch.zeros(num_classes, dtype=torch.int64, device=device)

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add the features of a batch to the sums of their classes.

        Args:
            features: (B, D) floating point features.
            labels: (B,) int64 class ids.

        Raises:
            ValueError: The sums so far have another D.
        """
        import torch

        shape = (self._num_classes, features.shape[1])
        if self._sums is None:
            self._sums = torch.zeros(shape, dtype=torch.float64, device=self._device)
        if self._sums.shape != shape:
            raise ValueError(
                f"{self._origin}: sums of {self._sums.shape[1]} features, and these have "
                f"{shape[1]}; delete it, and compute them again"
            )
        self._sums.index_add_(0, labels, features.to(torch.float64))
        # No `bincount`: it asks the device for the largest label, and waits for the answer.
        self._counts.index_add_(0, labels, torch.ones_like(labels))

    def save(self, path: str | os.PathLike[str], position: int, key: str) -> None:
        """Write the sums so far, to go on with later; the file appears when whole.

        Args:
            path: File to write.
            position: Position in the sample sequence at which the sums end.
            key: Text that says what is summed up; `load` wants the same.
        """
        if self._sums is None:
            return
        meta = json.dumps({"format": _SUMS_FORMAT, "key": key, "position": position})
        with whole_file(local_path(path)) as stream:
            np.savez(
                stream,
                sums=self._sums.cpu().numpy(),
                counts=self._counts.cpu().numpy(),
                meta=np.array(meta),
            )

    def load(self, path: str | os.PathLike[str], key: str) -> int:
        """Take up the sums that `save` wrote, and return their position.

        Raises:
            FileNotFoundError: No such file.
            ValueError: The file is damaged, of another kind, or of other features.
        """
        import torch

        with _arrays(path, "feature sums") as arrays:
            meta = json.loads(str(arrays["meta"]))
            if (meta["format"], meta["key"]) != (_SUMS_FORMAT, key):
                raise ValueError("its content is of other features")
            sums = _numbers(arrays["sums"], np.float64)
            counts = _numbers(arrays["counts"], np.int64)
            position = operator.index(meta["position"])
            classes = self._num_classes
            if sums.ndim != 2 or len(sums) != classes or counts.shape != (classes,):
                raise ValueError(f"sums {sums.shape}, counts {counts.shape} of {classes} classes")
        self._sums = torch.from_numpy(sums).to(self._device)
        self._counts = torch.from_numpy(counts).to(self._device)
        self._origin = str(path)
        return position

    def tensors(self) -> list[torch.Tensor]:
        """Return the sums (C, D) float64 and counts (C,) int64, to add up over processes in place.

        Raises:
            ValueError: No features were added.
        """
        if self._sums is None:
            raise ValueError("no features were added; there are no sums")
        return [self._sums, self._counts]

    def centroids(
        self, class_names: Sequence[str], provenance: Mapping[str, Any] | None = None
    ) -> Centroids:
        """Compute the centroids of all features so far.

        Raises:
            ValueError: No features were added.
        """
        if self._sums is None:
            raise ValueError("no features were added; there are no centroids")
        counts = self._counts.cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            values = (self._sums.cpu().numpy() / counts[:, None]).astype(np.float32)
        return Centroids(values, counts, list(class_names), provenance or {})
