"""Where images come from: class folders, map-style datasets, and subsets of either.

Comes in: a folder of class folders, or any object with ``len()`` and ``[i] -> (image, label)``.
Goes out: an `ImageSource`, which a conversion reads sample by sample, in order.
"""

from __future__ import annotations

import hashlib
import operator
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xmix_data.errors import ImageError

__all__ = ["ClassFolder", "ImageSource", "MapDataset", "Subset", "select", "torchvision_dataset"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What `torchvision.datasets.ImageFolder` takes for an image."""


MOST_CLASSES = 1 << 20
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


class ClassFolder:
    """Images in one folder per class, nested any way `torchvision.datasets.ImageFolder` allows.

    Args:
        root: The folder. Each folder directly inside it is a class, ids in sorted order; images
            anywhere below it belong to that class, in sorted order.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        OSError: A folder cannot be listed.
        ValueError: No class folders, a class without images, two folders of the same class, or a
            link to a folder that contains it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder; give a folder of class folders")
        folders = sorted((e for e in os.scandir(self.root) if e.is_dir()), key=lambda e: e.name)
        if not folders:
            loose = sum(e.name.lower().endswith(IMAGE_SUFFIXES) for e in os.scandir(self.root))
            raise ValueError(
                f"{self.root}: no class folders in it"
                + (f", but {loose} images" if loose else "")
                + "; put the images of each class into a folder of its own"
            )
        _reject_same_folder(folders)
        self._names = [folder.name for folder in folders]
        self._paths: list[str] = []
        labels: list[int] = []
        self.ignored_files = 0
        """Files below the class folders that are no images by their suffix."""
        for label, folder in enumerate(folders):
            before = len(self._paths)
            for where, files in sorted(_folders(folder.path)):
                images = [name for name in sorted(files) if name.lower().endswith(IMAGE_SUFFIXES)]
                self._paths += [os.path.join(where, name) for name in images]
                self.ignored_files += len(files) - len(images)
            if len(self._paths) == before:
                raise ValueError(
                    f"{folder.path}: no images in this class folder "
                    f"(looked for {', '.join(IMAGE_SUFFIXES)}); add images or remove the folder"
                )
            labels += [label] * (len(self._paths) - before)
        self._labels = np.array(labels, np.int64)

    @property
    def class_names(self) -> list[str]:
        return self._names

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self._paths:
            relative = os.path.relpath(path, self.root)
            try:
                size = os.path.getsize(path)
            except OSError:  # a dangling link, say: reading it is what fails, and may be skipped
                size = -1
            digest.update(f"{relative}\0{size}\n".encode(errors="surrogateescape"))
        return f"files:{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._paths)

    def labels(self) -> npt.NDArray[np.int64]:
        return self._labels

    def read(self, index: int) -> tuple[bytes, int]:
        return Path(self._paths[index]).read_bytes(), int(self._labels[index])

    def where(self, index: int) -> str:
        return self._paths[index]


def _folders(top: str) -> Iterator[tuple[str, list[str]]]:
    """The folders below ``top``, itself first, each with its files; links are followed."""

    def refuse(error: OSError) -> None:
        raise type(error)(
            error.errno, f"{error.filename}: cannot be listed ({error.strerror}); mend or remove it"
        )

    above = {top: {os.path.realpath(top)}}
    for where, folders, files in os.walk(top, followlinks=True, onerror=refuse):
        around = above.pop(where)
        for name in folders:
            path = os.path.join(where, name)
            real = os.path.realpath(path)
            if real in around:  # walked on, its images would count again and again
                raise ValueError(f"{path}: leads back to a folder above it; remove the link")
            above[path] = around | {real}
        yield where, files


def _reject_same_folder(folders: Sequence[os.DirEntry[str]]) -> None:
    """One class under two folders would be two classes with the same images or name."""
    seen: dict[str, str] = {}
    for folder in folders:
        for key in (unicodedata.normalize("NFC", folder.name).strip(), os.path.realpath(folder)):
            other = seen.setdefault(key, folder.path)
            if other != folder.path:
                raise ValueError(
                    f"{other} and {folder.path} are two folders of the same class; "
                    "merge them or rename one"
                )


class MapDataset:
    """Any map-style dataset: ``len(dataset)``, ``dataset[i] -> (image, label)``.

    The image is encoded ``bytes``, a PIL image, a uint8 (or uint16) array (H, W) or (H, W, C), or
    a uint8 tensor (C, H, W). Class names come from ``dataset.classes`` where there is one.
    """

    def __init__(self, dataset: Any) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(
                f"{type(dataset).__name__} is no source of images: give a class folder, a .beton, "
                "or a map-style dataset with len() and [i] -> (image, label)"
            )
        self._dataset = dataset
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
                f"the sample is {_shorten(sample)}, expected a pair (image, integer label)"
            ) from None
        return image, _label(label)

    def where(self, index: int) -> str:
        return f"{type(self._dataset).__name__}[{index}]"


def _label(label: Any) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise ImageError(f"the label is {_shorten(label)}, expected an integer") from None


class Subset:
    """Some samples of a source, in its order, with the classes renumbered.

    Args:
        source: What to take from.
        indices: (K,) increasing sample indices.
        labels: (K,) class ids of these samples in the source.
        classes: Class ids to keep, increasing; they become 0, 1, ...
    """

    def __init__(
        self,
        source: ImageSource,
        indices: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        classes: Sequence[int],
    ) -> None:
        self._source, self._indices, self._old_labels = source, indices, labels
        self._labels = np.searchsorted(classes, labels).astype(np.int64)
        names = source.class_names
        self._names = [names[old] if names else str(old) for old in classes]

    @property
    def class_names(self) -> list[str]:
        return self._names

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._source.fingerprint.encode())
        digest.update(self._indices.tobytes())
        digest.update("\0".join(self._names).encode(errors="surrogateescape"))
        return f"subset:{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._indices)

    def labels(self) -> npt.NDArray[np.int64]:
        return self._labels

    def read(self, index: int) -> tuple[Any, int]:
        image, label = self._source.read(int(self._indices[index]))
        expected = int(self._old_labels[index])
        if label != expected:
            raise ImageError(
                f"its label is {label}, and {expected} by the dataset's `targets`; make them agree"
            )
        return image, int(self._labels[index])

    def where(self, index: int) -> str:
        return self._source.where(int(self._indices[index]))


def select(
    source: ImageSource,
    *,
    classes: Iterable[str] | None = None,
    per_class: int | None = None,
) -> ImageSource:
    """Part of a source: some of its classes, or a sample of each class.

    Args:
        source: What to take from.
        classes: Names of the classes to keep; the source's order of classes is kept.
        per_class: Keep this many images of each class (all of them where there are fewer), drawn
            at random, always the same ones.

    Raises:
        ImageError: A label cannot be read, or lies outside the classes.
        ValueError: A class is unknown or named twice, or ``per_class`` is below 1.
    """
    if classes is None and per_class is None:
        return source
    labels = source.labels()
    names = source.class_names
    wrong = (labels < 0) | (labels >= (MOST_CLASSES if names is None else len(names)))
    if wrong.any():
        index = int(np.argmax(wrong))
        raise ImageError(
            f"{source.where(index)}: {label_problem(int(labels[index]), names)}; correct the label"
        )
    if names is None:
        names = [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    wanted = names if classes is None else list(classes)
    known = {name: i for i, name in enumerate(names)}
    for position, name in enumerate(wanted):
        if name not in known:
            raise ValueError(
                f"class {name!r} is not in the source, which has {len(names)} classes "
                f"({_shorten(names)}); correct the list of classes"
            )
        if name in wanted[:position]:
            raise ValueError(f"class {name!r} is listed twice; remove one")
    ids = sorted(known[name] for name in wanted)
    keep = np.isin(labels, ids)
    if per_class is not None:
        if per_class < 1:
            raise ValueError(f"per_class is {per_class}; it must be at least 1")
        keep &= _sample_per_class(labels, per_class)
    indices = np.flatnonzero(keep).astype(np.int64)
    return Subset(source, indices, labels[indices], ids)


def label_problem(label: int, names: Sequence[str] | None) -> str | None:
    """What is wrong with a label, or ``None`` where it is one of the classes."""
    if 0 <= label < (MOST_CLASSES if names is None else len(names)):
        return None
    classes = f"0 .. {MOST_CLASSES - 1}" if names is None else f"the {len(names)} classes"
    return f"label {label} is none of {classes}"


def _sample_per_class(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.bool_]:
    """Mask of ``count`` random samples of each class, the same in every run."""
    ranks = np.random.Philox(key=0).random_raw(len(labels))
    order = np.lexsort((ranks, labels))
    starts = np.searchsorted(labels[order], labels[order], side="left")
    chosen = np.zeros(len(labels), bool)
    chosen[order[np.arange(len(labels)) - starts < count]] = True
    return chosen


def torchvision_dataset(name: str, root: str | os.PathLike[str], split: str) -> Any:
    """A dataset of `torchvision.datasets` by name, downloaded below ``root`` where needed.

    Args:
        name: Name of the class, e.g. ``"Flowers102"``.
        root: Folder of the download.
        split: Passed as ``split=``, or as ``train=`` where the dataset knows only two parts.

    Raises:
        ValueError: torchvision has no such dataset, or the dataset no such split.
        OSError: The download failed.
    """
    import inspect

    from torchvision import datasets

    kind = getattr(datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        known = [n for n in datasets.__all__ if n[0].isupper()]
        raise ValueError(f"torchvision has no dataset {name!r}; it has {', '.join(known)}")
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    if "root" in parameters:
        options["root"] = root
    if "split" in parameters:
        options["split"] = split
    elif "train" in parameters:
        if split not in ("train", "test"):
            raise ValueError(f"torchvision:{name} has the splits train and test, not {split!r}")
        options["train"] = split == "train"
    if "download" in parameters:
        options["download"] = True
    try:
        return kind(**options)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"torchvision:{name}: {error}; check the network, or put the data set's files "
            f"below {root} yourself"
        ) from error


def _shorten(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
