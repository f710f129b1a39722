"""Betons: FFCV's file format with a manifest beside it. Written whole or not at all.

Comes in: a source of labelled images. Goes out: ``FILE.beton``, which a stock FFCV ``Loader``
reads, and ``FILE.beton.json``, its manifest; and the `Beton` and `Domain` that read them.

Format (FFCV 1.0, version 2, little endian): header, field descriptors, sample metadata, pages of
sample data, allocation table; see the dtypes below.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from xmix_data.encoding import JPG, RAW, StoredImage, encode_image
from xmix_data.errors import BetonError, ImageError, XMixError
from xmix_data.files import whole_file
from xmix_data.images import ClassFolder, ImageSource, MapDataset, label_problem
from xmix_data.images.huggingface import HuggingFaceDataset, is_huggingface
from xmix_data.jpeg import MOST_PIXELS_A_BYTE, jpeg_problem
from xmix_data.progress import Progress

__all__ = ["Beton", "Domain", "open_domain", "open_images", "write_beton"]

_log = logging.getLogger("xmix_data")

_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
_FIELD = np.dtype([("type_id", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)], align=True)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_POINTER_AND_SIZE = np.dtype([("ptr", "<u8"), ("size", "<u8")])

_VERSION = 2
_INT_FIELD, _IMAGE_FIELD = 1, 2
_FIELD_METADATA: Mapping[int, Any] = {
    0: "<f8",  # FloatField
    _INT_FIELD: "<i8",
    _IMAGE_FIELD: _IMAGE,
    3: _POINTER_AND_SIZE,  # BytesField
    4: "<u8",  # NDArrayField
    5: _POINTER_AND_SIZE,  # JSONField
    6: "<u8",  # TorchTensorField
}
_SAMPLE = np.dtype([("f0", _IMAGE), ("f1", "<i8")], align=True)

_SMALLEST_PAGE = 8 << 20
_LARGEST_PAGE = 1 << 31
_SAMPLES_A_TASK = 16

_MOST_UNNAMED = 1 << 16
"""Classes without names that a beton has at most, or as many as samples: a label beyond is damage,
and would ask for names and counts without end."""

_NO_TEXT = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Half characters that JSON can name and no file can hold; the others stand for bytes of file names
that are not UTF-8."""

MANIFEST_FORMAT = "xmix_data.manifest"
ENCODINGS = ("jpg", "raw", "keep")
CROPS = ("square", "none")


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Where the manifest of a beton lies."""
    path = Path(path)
    return path.with_name(path.name + ".json")


class Beton:
    """A beton, opened and checked: its structure, and that every sample lies inside the file.

    Reads betons of this library and of stock FFCV: the first RGB image field and the first int
    field count. Without a manifest the classes are named ``"0"`` ... ``"n-1"``.

    Args:
        path: The ``.beton`` file.

    Raises:
        FileNotFoundError: No such file.
        BetonError: The file or its manifest is damaged, unfinished or of another kind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such beton; write one with `xmix convert`")
        self._read_index()
        self.manifest = self._read_manifest()
        self._check_labels()

    def _fail(self, problem: str, remedy: str = "convert it again") -> BetonError:
        return BetonError(f"{self.path}: {problem}; {remedy}")

    def _read_index(self) -> None:
        self.byte_length = self.path.stat().st_size
        if self.byte_length < _HEADER.itemsize:
            raise self._fail(f"no beton: only {self.byte_length} bytes long")
        self._bytes = np.memmap(self.path, np.uint8, "r")
        header = self._view(0, _HEADER, 1, "header")[0]
        if header["version"] != _VERSION or not 1 <= header["num_fields"] <= 1024:
            raise self._fail("no beton: it does not begin with the header of FFCV's version 2")
        table = int(header["alloc_table_ptr"])
        if table == 0:
            raise self._fail("unfinished: its writer was stopped before the end")
        self.page_size = int(header["page_size"])
        self.num_samples = int(header["num_samples"])
        if self.num_samples == 0:
            raise self._fail("it holds no samples")

        fields = self._view(_HEADER.itemsize, _FIELD, int(header["num_fields"]), "field list")
        kinds = [int(kind) for kind in fields["type_id"]]
        for position, kind in enumerate(kinds):
            if kind not in _FIELD_METADATA:
                raise self._fail(
                    f"field {position} has type {kind}, which stock FFCV does not know",
                    "write it with FFCV's own fields",
                )
        if _IMAGE_FIELD not in kinds or _INT_FIELD not in kinds:
            raise self._fail(
                "it has no RGB image field and int field side by side",
                "write it with fields for the image and its label",
            )
        row = np.dtype([("", _FIELD_METADATA[kind]) for kind in kinds], align=True)
        self._index_start = _HEADER.itemsize + fields.nbytes
        samples = self._view(self._index_start, row, self.num_samples, "sample metadata")
        self._index_stop = self._index_start + samples.nbytes
        image = samples[f"f{kinds.index(_IMAGE_FIELD)}"]
        self.labels: npt.NDArray[np.int64] = samples[f"f{kinds.index(_INT_FIELD)}"]
        """(N,) int64 class ids."""
        self.modes: npt.NDArray[np.uint8] = image["mode"]
        self.heights: npt.NDArray[np.uint16] = image["height"]
        self.widths: npt.NDArray[np.uint16] = image["width"]
        self.pointers: npt.NDArray[np.uint64] = image["data_ptr"]
        """(N,) uint64: where each image's bytes begin in the file."""
        self._table_start = table
        if table > self.byte_length or (self.byte_length - table) % _ALLOCATION.itemsize:
            raise self._fail("cut short or damaged: its allocation table does not end with it")
        count = (self.byte_length - table) // _ALLOCATION.itemsize
        self.sizes = self._sizes(self._view(table, _ALLOCATION, count, "allocation table"))
        """(N,) uint64: how many bytes each image has."""
        self._check_samples(table)

    def _view(self, offset: int, dtype: np.dtype[Any], count: int, what: str) -> Any:
        if offset + count * dtype.itemsize > self.byte_length:
            raise self._fail(f"cut short or damaged: its {what} reaches beyond the end of the file")
        return np.ndarray((count,), dtype, self._bytes, offset)

    def _sizes(self, table: Any) -> npt.NDArray[np.uint64]:
        pointers, sizes = table["ptr"], table["size"]
        if len(table) and int(table["sample_id"].max()) >= self.num_samples:
            raise self._fail("damaged: its allocation table knows more samples than its header")
        if len(table) == self.num_samples and np.array_equal(pointers, self.pointers):
            return np.asarray(sizes)  # written in order, as `write_beton` does
        order = np.argsort(pointers, kind="stable")
        places = np.searchsorted(pointers, self.pointers, sorter=order)
        found = order[np.minimum(places, len(order) - 1)] if len(order) else order
        if not len(order) or not np.array_equal(pointers[found], self.pointers):
            index = 0 if not len(order) else int(np.argmax(pointers[found] != self.pointers))
            raise self._fail(f"damaged: image {index} is missing from the allocation table")
        return np.asarray(sizes[found])

    def _check_samples(self, data_stop: int) -> None:
        pixels = 3 * self.heights.astype(np.uint64) * self.widths
        for problem, wrong in (
            ("has an unknown mode", self.modes > RAW),
            ("has no pixels", pixels == 0),
            (
                "lies outside the file's data",
                (self.pointers < self._index_stop)
                | (self.sizes == 0)
                | (self.sizes > data_stop)
                | (self.pointers > data_stop - np.minimum(self.sizes, data_stop)),
            ),
            ("is raw but not H*W*3 bytes long", (self.modes == RAW) & (self.sizes != pixels)),
            (
                "has more pixels than a JPEG of its bytes",
                (self.modes == JPG) & (pixels // (3 * MOST_PIXELS_A_BYTE) > self.sizes),
            ),
        ):
            if wrong.any():
                raise self._fail(f"damaged: image {int(np.argmax(wrong))} {problem}")

    def _check_labels(self) -> None:
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if lowest < 0:
            raise self._fail(f"sample {int(np.argmin(self.labels))} has the label {lowest}")
        if self.manifest is None:
            if highest >= max(_MOST_UNNAMED, self.num_samples):
                raise self._fail(f"sample {int(np.argmax(self.labels))} has the label {highest}")
            self.class_names = [str(label) for label in range(highest + 1)]
        else:
            self.class_names = self.manifest["class_names"]
            if highest >= len(self.class_names):
                raise self._fail(
                    f"sample {int(np.argmax(self.labels))} has the label {highest}, outside the "
                    f"{len(self.class_names)} classes of its manifest"
                )
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        self.class_counts: list[int] = counts.tolist()
        """Images of each class."""
        if self.manifest is not None and self.manifest["class_counts"] != self.class_counts:
            raise self._fail(f"its labels are not those that {self._manifest_name} counts")

    @property
    def _manifest_name(self) -> str:
        return manifest_path(self.path).name

    def _read_manifest(self) -> dict[str, Any] | None:
        path = manifest_path(self.path)
        if not path.exists():
            return None
        remedy = "convert it again, or remove the manifest to load it without class names"
        try:
            manifest: dict[str, Any] = json.loads(path.read_text("utf-8", "surrogateescape"))
            if manifest["format"] != MANIFEST_FORMAT:
                raise ValueError(f"its format is {manifest['format']!r}")
            if manifest["version"] != 1:
                raise ValueError(f"its version is {manifest['version']!r}, known is 1")
            names, counts = manifest["class_names"], manifest["class_counts"]
            if not _are_texts(names) or len(names) != len(counts):
                raise ValueError("class_names and class_counts do not fit together")
            if len(set(names)) != len(names):
                raise ValueError("two classes have the same name")
            length, samples = manifest["byte_length"], manifest["num_samples"]
            if not _are_texts([manifest["content_hash"], manifest["encoding"]]):
                raise ValueError("content_hash or encoding is no text")
            _check_shard(manifest.get("shard"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise BetonError(f"{path}: damaged manifest ({reason}); {remedy}") from error
        if (length, samples) != (self.byte_length, self.num_samples):
            raise BetonError(
                f"{path}: describes a beton of {samples!r} samples and {length!r} bytes, but "
                f"{self.path.name} has {self.num_samples} and {self.byte_length}; {remedy}"
            )
        return manifest

    @cached_property
    def image_size(self) -> int | None:
        """Length in pixels of every image's shorter edge; ``None`` where it varies."""
        short = np.minimum(self.heights, self.widths)
        return int(short[0]) if short.min() == short.max() else None

    @property
    def encoding(self) -> str:
        """``"jpg"``, ``"raw"`` or ``"keep"``; ``"mixed"`` where JPEG and raw lie side by side."""
        if self.manifest is not None:
            return str(self.manifest["encoding"])
        kinds = {"raw" if mode == RAW else "jpg" for mode in np.unique(self.modes)}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content: the manifest's hash, or a hash of the index where none is."""
        if self.manifest is not None:
            return str(self.manifest["content_hash"])
        return f"index-sha256:{self._index_digest().hexdigest()}"

    def _index_digest(self) -> Any:
        digest = hashlib.sha256(self._bytes[: self._index_stop].data)
        digest.update(self._bytes[self._table_start :].data)
        return digest

    @property
    def shard(self) -> dict[str, Any] | None:
        """``{"index", "count", "set"}`` where this beton is one of a set of shards."""
        return None if self.manifest is None else self.manifest.get("shard")

    @property
    def address(self) -> int:
        """Address of the mapped file's first byte, valid while this object lives."""
        return int(self._bytes.ctypes.data)

    def data(self, index: int) -> npt.NDArray[np.uint8]:
        """The stored bytes of one image, a view of the mapped file."""
        start = int(self.pointers[index])
        return self._bytes[start : start + int(self.sizes[index])]

    def describe(self, index: int) -> str:
        """Names a sample in an error message: file, index and class."""
        return f"{self.path}: image {index} (class {self.class_names[int(self.labels[index])]!r})"

    def verify(self, *, progress: bool = False) -> None:
        """Check everything: the content hash, and that every image decodes without a warning.

        Raises:
            BetonError: Names the first thing that is wrong, and where.
        """
        if self.manifest is not None:
            found = _content_hash(self._index_digest(), self._data_digest())
            if found != self.manifest["content_hash"]:
                raise self._fail("damaged: its content is not what its manifest's hash says")
        with Progress("verify", self.num_samples, enabled=progress) as bar:
            for index in np.flatnonzero(self.modes == JPG).tolist():
                problem = jpeg_problem(
                    self.data(index), int(self.heights[index]), int(self.widths[index])
                )
                if problem is not None:
                    raise BetonError(f"{self.describe(index)}: {problem}; convert it again")
                bar.advance()
            bar.advance(int(np.count_nonzero(self.modes == RAW)))

    def _data_digest(self) -> Any:
        digest = hashlib.sha256()
        start = int(self.pointers.min())
        for offset in range(start, self._table_start, _SMALLEST_PAGE):
            stop = min(offset + _SMALLEST_PAGE, self._table_start)
            digest.update(self._bytes[offset:stop].data)
        return digest

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return (
            f"Beton({str(self.path)!r}: {self.num_samples} images, "
            f"{len(self.class_names)} classes, {self.encoding})"
        )


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, str) and not _NO_TEXT.search(value) for value in values
    )


def _check_shard(shard: Any) -> None:
    if shard is None:
        return
    index, count = shard["index"], shard["count"]
    if type(index) is not int or type(count) is not int or not 0 <= index < count:
        raise ValueError("it is a shard without a place in its set")
    if not isinstance(shard["set"], str):
        raise ValueError("it is a shard of no set")


class _BetonImages:
    """A beton as the source of another conversion."""

    def __init__(self, beton: Beton) -> None:
        self._beton = beton

    @property
    def class_names(self) -> list[str]:
        return self._beton.class_names

    @property
    def fingerprint(self) -> str:
        return self._beton.fingerprint

    def __len__(self) -> int:
        return self._beton.num_samples

    def labels(self) -> npt.NDArray[np.int64]:
        return np.array(self._beton.labels)

    def read(self, index: int) -> tuple[Any, int]:
        beton, label = self._beton, int(self._beton.labels[index])
        if beton.modes[index] == JPG:
            return beton.data(index).tobytes(), label
        shape = int(beton.heights[index]), int(beton.widths[index]), 3
        return np.array(beton.data(index)).reshape(shape), label

    def where(self, index: int) -> str:
        return self._beton.describe(index)


class Domain:
    """One or several betons read as one: class ids and sample indices are offset in list order.

    Betons that are the shards of one set are joined first, their class ids unchanged.
    """

    def __init__(self, parts: Sequence[Sequence[Beton]]) -> None:
        self._parts = parts
        self.betons = [beton for part in parts for beton in part]
        self.class_names = [name for part in parts for name in part[0].class_names]
        self._class_starts = np.cumsum([0] + [len(part[0].class_names) for part in parts])
        self._sample_starts = np.cumsum([0] + [beton.num_samples for beton in self.betons])
        offsets = [
            int(start) for part, start in zip(parts, self._class_starts, strict=False) for _ in part
        ]
        self.labels: npt.NDArray[np.int64] = _joined(
            [
                b.labels + offset if offset else b.labels
                for b, offset in zip(self.betons, offsets, strict=True)
            ]
        )
        """(N,) int64 class ids."""
        self.heights: npt.NDArray[np.uint16] = _joined([b.heights for b in self.betons])
        self.widths: npt.NDArray[np.uint16] = _joined([b.widths for b in self.betons])
        self.modes: npt.NDArray[np.uint8] = _joined([b.modes for b in self.betons])
        self.sizes: npt.NDArray[np.uint64] = _joined([b.sizes for b in self.betons])
        self._pointers = [b.pointers for b in self.betons]
        self._base = np.array([b.address for b in self.betons], np.uint64)

    def addresses(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """(B,) uint64: where in memory the bytes of each sample begin."""
        if len(self.betons) == 1:
            return np.asarray(self._base[0] + self._pointers[0][indices])
        part = np.searchsorted(self._sample_starts, indices, side="right") - 1
        addresses = self._base[part]
        for number, pointers in enumerate(self._pointers):
            here = part == number
            addresses[here] += pointers[indices[here] - self._sample_starts[number]]
        return addresses

    def locate(self, index: int) -> tuple[Beton, int]:
        """The beton that holds a sample, and its index there."""
        part = int(np.searchsorted(self._sample_starts, index, side="right")) - 1
        return self.betons[part], int(index - self._sample_starts[part])

    def describe(self, index: int) -> str:
        """Names a sample in an error message: file, index and class."""
        beton, local = self.locate(index)
        return beton.describe(local)

    def domain_of_class(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(B,) int64: which domain of the list each class id belongs to."""
        return np.searchsorted(self._class_starts, labels, side="right") - 1

    @property
    def parts(self) -> list[Domain]:
        """The domains of the list, one by one."""
        return [Domain([part]) for part in self._parts]

    @property
    def provenance(self) -> list[dict[str, list[str]]]:
        """For each domain of the list the ``files`` (names) and ``fingerprints`` of its betons."""
        return [
            {"files": [b.path.name for b in part], "fingerprints": [b.fingerprint for b in part]}
            for part in self._parts
        ]

    def __len__(self) -> int:
        return len(self.labels)


def _joined(arrays: list[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


BetonLike = str | os.PathLike[str] | Beton


def open_domain(betons: BetonLike | Sequence[BetonLike]) -> Domain:
    """Open a path, a `Beton`, or a list of them as one domain.

    Raises:
        FileNotFoundError: A beton does not exist.
        BetonError: A beton is damaged.
        ValueError: The list is empty, or a set of shards is incomplete or does not fit together.
    """
    if isinstance(betons, (str, os.PathLike, Beton)):
        betons = [betons]
    opened = [b if isinstance(b, Beton) else Beton(b) for b in betons]
    if not opened:
        raise ValueError("the list of betons is empty; give at least one")
    parts: list[list[Beton]] = []
    sets: dict[str, list[Beton]] = {}
    for beton in opened:
        if beton.shard is None:
            parts.append([beton])
        elif beton.shard["set"] in sets:
            sets[beton.shard["set"]].append(beton)
        else:
            sets[beton.shard["set"]] = [beton]
            parts.append(sets[beton.shard["set"]])
    for shards in sets.values():
        _order_shards(shards)
    return Domain(parts)


def _order_shards(shards: list[Beton]) -> None:
    shards.sort(key=lambda beton: beton.shard["index"] if beton.shard else 0)
    indices = [beton.shard["index"] for beton in shards if beton.shard]
    count = shards[0].shard["count"] if shards[0].shard else 1
    given = set(indices)
    missing = next((index for index in range(count) if index not in given), None)
    if missing is not None or len(indices) != count:
        problem = "names a shard twice" if missing is None else f"lacks shard {missing}"
        raise ValueError(
            f"{shards[0].path} is one of {count} shards, and the list {problem}; give all of them"
        )
    for beton in shards[1:]:
        if beton.class_names != shards[0].class_names:
            raise ValueError(
                f"{beton.path} and {shards[0].path} are shards of one set with different classes; "
                "convert them again"
            )


def open_images(dataset: Any) -> ImageSource:
    """A class folder, a beton, or a dataset, map-style or Hugging Face's, as an `ImageSource`."""
    if isinstance(dataset, (str, os.PathLike)):
        path = Path(dataset)
        if path.is_file() or path.suffix == ".beton":
            return _BetonImages(Beton(path))
        folder = ClassFolder(path)
        if folder.ignored_files:
            _log.info("%s: %d files are no images by suffix", path, folder.ignored_files)
        return folder
    if isinstance(dataset, Beton):
        return _BetonImages(dataset)
    if is_huggingface(dataset):
        return HuggingFaceDataset(dataset)
    if all(hasattr(dataset, name) for name in ("read", "where", "labels", "fingerprint")):
        return dataset  # type: ignore[no-any-return]
    return MapDataset(dataset)


class _Failure(NamedTuple):
    """An image that could not be encoded, as a value: workers must not die of it."""

    where: str
    reason: str
    is_label: bool


class _Encoder:
    """The work of a conversion's worker: ``[i] -> (label, StoredImage)`` or `_Failure`."""

    def __init__(self, source: ImageSource, indices: range, options: dict[str, Any]) -> None:
        self._source, self._indices, self._options = source, indices, options
        self._names = source.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[int, StoredImage] | _Failure:
        index = self._indices[position]
        where = self._source.where(index)
        try:
            image, label = self._source.read(index)
            problem = label_problem(label, self._names)
            if problem is not None:
                return _Failure(where, problem, True)
            return label, encode_image(image, **self._options)
        except Exception as error:  # whatever the user's dataset raises, named with its sample
            known_kind = isinstance(error, (ImageError, OSError))
            reason = str(error) if known_kind else f"{type(error).__name__}: {error}"
            return _Failure(where, reason, False)


def write_beton(
    dataset: Any,
    path: str | os.PathLike[str],
    *,
    image_size: int | None = 256,
    crop: str = "square",
    encoding: str = "jpg",
    quality: int = 90,
    on_error: str = "raise",
    num_workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
) -> Beton:
    """Write labelled images as a beton with its manifest.

    Samples keep their order, and the same input gives the same bytes. Both files appear under
    their names only when whole; until then the work is in ``PATH.partial``.

    Args:
        dataset: A class folder, a ``.beton``, any map-style dataset of (image, label), or a
            ``datasets.Dataset`` of Hugging Face.
        path: The file to write, usually ``NAME.beton``.
        image_size: Shorter edge in pixels after resizing; ``None`` keeps every image's own size.
        crop: ``"square"`` keeps the centre square, ``"none"`` all of the image.
        encoding: ``"jpg"``, ``"raw"`` (decoded pixels: larger, no decoding later), or ``"keep"``
            (JPEG bytes as they are wherever the image needs no change).
        quality: JPEG quality, 1 to 100.
        on_error: ``"raise"`` stops at an unreadable image; ``"skip"`` leaves it out and lists it
            in the manifest.
        num_workers: Worker processes; default one a core, 0 works in this process.
        progress: Show progress on stderr.
        overwrite: Replace an existing file.
        shard: ``(i, n)`` writes the i-th of n equal parts of the samples, counted from 0.

    Returns:
        The new beton, opened.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is false.
        FileNotFoundError: The dataset or the folder of ``path`` does not exist.
        ImageError: An image cannot be read, or a label lies outside the classes.
        OSError: The disk is full or not writable.
        ValueError: An option is impossible, or the dataset is empty.
        XMixError: A worker process was killed.
    """
    path = Path(path)
    _check_options(image_size, crop, encoding, quality, on_error, num_workers, shard)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; create it first")
    for existing in (path, manifest_path(path)):
        if existing.exists() and not overwrite:
            raise FileExistsError(f"{existing}: exists; choose another name or overwrite it")
    source = open_images(dataset)
    if isinstance(source, _BetonImages) and path.exists() and path.samefile(source._beton.path):
        raise ValueError(f"{path}: is the source itself; choose another name")
    if len(source) == 0:
        raise ValueError(f"{path}: the dataset has no samples; there is nothing to convert")
    names = source.class_names
    _check_names(names)
    index, count = shard or (0, 1)
    indices = range(len(source) * index // count, len(source) * (index + 1) // count)
    if not indices:
        raise ValueError(
            f"{path}: shard {index} of {count} is empty, there are only {len(source)} samples; "
            "make fewer shards"
        )
    if names is None and shard is not None:  # all shards must have the classes of the whole
        names = [str(label) for label in range(int(source.labels().max()) + 1)]
    options = {"encoding": encoding, "image_size": image_size, "crop": crop, "quality": quality}
    manifest_file = manifest_path(path)
    with (
        _named_worker_death(),
        whole_file(manifest_file) as manifest_stream,
        whole_file(path) as stream,
    ):
        writer = _PageWriter(stream, path.parent, len(indices))
        skipped = []
        with Progress(f"convert {path.name}", len(indices), enabled=progress) as bar:
            for position, item in enumerate(_encoded(source, indices, options, num_workers)):
                if isinstance(item, _Failure):
                    if item.is_label or on_error == "raise":
                        remedy = (
                            "correct the label"
                            if item.is_label
                            else "mend or remove it, or skip such images (on_error='skip')"
                        )
                        raise ImageError(f"{item.where}: {item.reason}; {remedy}")
                    skipped.append(
                        {"index": indices[position], "path": item.where, "reason": item.reason}
                    )
                else:
                    writer.append(*item)
                bar.advance()
        if not len(writer):
            raise ImageError(
                f"{path}: not one of {len(indices)} images could be read; correct the dataset, "
                f"beginning with {skipped[0]['path']}: {skipped[0]['reason']}"
            )
        if names is None:
            names = [str(label) for label in range(int(writer.labels.max()) + 1)]
        content_hash = writer.finish()
        byte_length = stream.tell()
        manifest = {
            "format": MANIFEST_FORMAT,
            "version": 1,
            "class_names": names,
            "class_counts": np.bincount(writer.labels, minlength=len(names)).tolist(),
            "num_samples": len(writer),
            "encoding": encoding,
            "image_size": image_size,
            "crop": crop,
            "quality": None if encoding == "raw" else quality,
            "byte_length": byte_length,
            "content_hash": content_hash,
            "source_fingerprint": source.fingerprint,
            "shard": None if shard is None else _shard_entry(source, shard, options),
            "skipped": skipped,
            "versions": _versions(),
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        manifest_stream.write(text.encode(errors="surrogateescape"))
        for written in (stream, manifest_stream):  # a disk that is full now costs nothing
            written.flush()
            os.fsync(written.fileno())
        manifest_file.unlink(missing_ok=True)  # an earlier one must not meet the new beton
    if skipped:
        _log.warning(
            "%s: skipped %d unreadable images, listed in %s",
            path,
            len(skipped),
            manifest_file.name,
        )
    return Beton(path)


def _check_options(
    image_size: int | None,
    crop: str,
    encoding: str,
    quality: int,
    on_error: str,
    num_workers: int | None,
    shard: tuple[int, int] | None,
) -> None:
    for name, value, allowed in (
        ("crop", crop, CROPS),
        ("encoding", encoding, ENCODINGS),
        ("on_error", on_error, ("raise", "skip")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    if image_size is not None and not 1 <= image_size <= 65_500:
        raise ValueError(f"image_size is {image_size}; it must lie in 1 .. 65500 or be None")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality is {quality}; it must lie in 1 .. 100")
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}; it must be at least 0")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard {shard[0]} of {shard[1]} does not exist; counting starts at 0")


def _check_names(names: list[str] | None) -> None:
    first: dict[str, int] = {}
    for label, name in enumerate(names or []):
        if first.setdefault(name, label) != label:
            raise ValueError(
                f"classes {first[name]} and {label} are both named {name!r}; a pairing names "
                "classes, so rename one (the dataset's `classes`)"
            )


def _shard_entry(
    source: ImageSource, shard: tuple[int, int], options: dict[str, Any]
) -> dict[str, Any]:
    text = f"{source.fingerprint}\0{shard[1]}\0{sorted(options.items())}"
    return {
        "index": shard[0],
        "count": shard[1],
        "set": hashlib.sha256(text.encode()).hexdigest(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from PIL import features

    return {
        "xmix_data": version("xmix_data"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": np.__version__,
        "pillow": version("pillow"),
        "libjpeg-turbo": str(features.version("libjpeg_turbo")),
    }


def _encoded(
    source: ImageSource, indices: range, options: dict[str, Any], num_workers: int | None
) -> Iterator[tuple[int, StoredImage] | _Failure]:
    """All samples encoded, in order, by torch's DataLoader: it notices when a worker dies."""
    encoder = _Encoder(source, indices, options)
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0))
    if num_workers == 0:
        for position in range(len(encoder)):
            yield encoder[position]
        return
    _require_shared_memory()
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        encoder,  # type: ignore[arg-type]
        batch_size=_SAMPLES_A_TASK,
        num_workers=min(num_workers, -(-len(encoder) // _SAMPLES_A_TASK)),
        collate_fn=_unchanged,
        prefetch_factor=4,
        worker_init_fn=_die_with_parent,
    )
    for batch in loader:
        yield from batch


def _require_shared_memory() -> None:
    """Workers are told what to do through queues, whose locks lie in /dev/shm."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise XMixError(
            f"worker processes cannot be started, as /dev/shm refuses a lock ({error.strerror}); "
            "free space there (in a container: --shm-size), or convert in one process "
            "(num_workers=0, --workers 0)"
        ) from error


def _unchanged(batch: Any) -> Any:
    return batch


def _die_with_parent(_: int) -> None:
    """Orphaned by SIGKILL, a worker would wait for ever to hand over images, and keep the lock."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


@contextmanager
def _named_worker_death() -> Iterator[None]:
    """Say what a dead worker means; torch's signal handler may raise anywhere in the block."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise XMixError(
            f"a conversion worker died ({str(error).strip()}); free memory or use fewer workers "
            "(num_workers)"
        ) from error


class _PageWriter:
    """Writes samples in order into FFCV's page layout; a sample never crosses a page's end.

    Pages have the smallest power of two of bytes, from 8 MiB, that holds the largest sample.
    """

    def __init__(self, stream: BinaryIO, folder: Path, capacity: int) -> None:
        self._stream, self._folder = stream, folder
        self._samples = np.zeros(capacity, _SAMPLE)
        self._sizes = np.zeros(capacity, np.uint64)
        self._count = 0
        self._index_stop = _HEADER.itemsize + 2 * _FIELD.itemsize + self._samples.nbytes
        self._start_pages(_SMALLEST_PAGE)

    def _start_pages(self, page_size: int) -> None:
        self._page_size = page_size
        self._start = self._end = _align(self._index_stop, page_size)
        self._digest = hashlib.sha256()
        self._stream.seek(self._start)

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return np.asarray(self._samples["f1"][: self._count])

    def append(self, label: int, image: StoredImage) -> None:
        size = len(image.data)
        if size > self._page_size:
            self._enlarge_pages(size)
        pointer = self._put(image.data)
        self._samples[self._count] = (
            (image.mode, image.width, image.height, pointer),
            label,
        )
        self._sizes[self._count] = size
        self._count += 1

    def _put(self, data: bytes) -> int:
        page_stop = _align(self._end + 1, self._page_size)
        if self._end + len(data) > page_stop:
            self._write(bytes(page_stop - self._end))
        pointer = self._end
        self._write(data)
        return pointer

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self._end += len(data)

    def _enlarge_pages(self, size: int) -> None:
        """Lay the samples out anew: a sample above the page size may come late in the stream."""
        page_size = 1 << (size - 1).bit_length()
        if page_size > _LARGEST_PAGE:
            raise ImageError(f"an image of {size} bytes fits into no page; store it smaller")
        pointers = self._samples["f0"]["data_ptr"]
        with tempfile.TemporaryFile(dir=self._folder) as earlier:
            self._stream.seek(0)
            shutil.copyfileobj(self._stream, earlier)
            self._stream.truncate(0)
            self._start_pages(page_size)
            for index in range(self._count):
                earlier.seek(int(pointers[index]))
                pointers[index] = self._put(earlier.read(int(self._sizes[index])))

    def finish(self) -> str:
        """Write everything but the pages; returns the content hash."""
        self._write(bytes(-self._end % 8))
        samples = self._samples[: self._count]
        header = np.zeros(1, _HEADER)
        header[0] = (_VERSION, 2, self._page_size, self._count, self._end)
        fields = np.zeros(2, _FIELD)
        for field, kind, name in zip(
            fields, (_IMAGE_FIELD, _INT_FIELD), (b"image", b"label"), strict=True
        ):
            field["type_id"] = kind
            field["name"][: len(name)] = np.frombuffer(name, np.uint8)
        table = np.zeros(self._count, _ALLOCATION)
        table["sample_id"] = np.arange(self._count)
        table["ptr"] = samples["f0"]["data_ptr"]
        table["size"] = self._sizes[: self._count]
        index = header.tobytes() + fields.tobytes() + samples.tobytes()
        self._stream.seek(0)
        self._stream.write(index)
        self._stream.seek(self._end)
        self._stream.write(table.tobytes())
        return _content_hash(hashlib.sha256(index + table.tobytes()), self._digest)


def _align(position: int, size: int) -> int:
    return -(-position // size) * size


def _content_hash(index_digest: Any, data_digest: Any) -> str:
    """One hash of a beton's index (header, fields, metadata, table) and its data."""
    both = index_digest.digest() + data_digest.digest()
    return f"sha256:{hashlib.sha256(both).hexdigest()}"
