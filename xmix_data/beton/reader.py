"""`Beton`: a file of FFCV's format, opened and checked.

Comes in: a path or a URL. Goes out: labels, sizes and addresses of the stored images; every sample
is known to lie inside the file.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.beton.layout import (
    ALLOCATION,
    FFCV_VERSION,
    FIELD,
    FIELD_METADATA,
    HEADER,
    IMAGE_FIELD,
    INT_FIELD,
    JPG,
    MIN_PAGE_SIZE,
    RAW,
    content_hash,
)
from xmix_data.beton.manifest import manifest_path, parse_manifest, read_manifest
from xmix_data.beton.mapping import mapped
from xmix_data.cache import fetched, hold, kept, key_of
from xmix_data.errors import BetonError
from xmix_data.jpeg import MAX_PIXELS_PER_BYTE, jpeg_problem
from xmix_data.progress import Progress
from xmix_data.remote import Megabytes, name_of, path_or_url, read_bytes, state_of

__all__ = ["Beton"]


_MAX_UNNAMED_CLASSES = 1 << 16
"""Most classes without names that a beton may have, unless it has more samples.

A label beyond is damage, and would ask for names and counts without end.
"""


class Beton:
    """A beton, opened and checked: its structure, and that every sample lies inside the file.

    Reads betons of this library and of stock FFCV: the first RGB image field counts, and the int
    field named ``label``, or, where none has this name, the only int field. Without a manifest the
    classes are named ``"0"`` ... ``"n-1"``.

    Args:
        path: The ``.beton`` file, or its URL: ``s3://``, ``https://`` or another that fsspec knows.
            It is fetched into the cache, unless its content is there.

    Raises:
        FileNotFoundError: No such file.
        BetonError: The file or its manifest is damaged, unfinished or of another kind, or it cannot
            be told which of several int fields is the label.
        OSError: The file cannot be opened or mapped into memory, or not be fetched; names the limit
            that was met.
        MissingDependencyError: The package of the URL's protocol is not installed.

    Attributes:
        path: Path of the file; of a URL that of the copy in the cache.
        origin: The path or URL that was given.
        num_samples: N, the number of images.
        class_names: Name of each class id, in Unicode's NFC form.
        class_counts: Number of images of each class.
        labels: (N,) int64 class ids.
        heights: (N,) uint16 heights of the stored images, in pixels.
        widths: (N,) uint16 widths of the stored images, in pixels.
        sizes: (N,) uint64 numbers of bytes of the stored images.
        byte_length: Length of the file in bytes.
        page_size: Length of a page in bytes.
        manifest: What the manifest says (docs/formats.md), or ``None`` without one.

    Examples:
        >>> beton = Beton("target.beton")
        >>> beton.num_samples, beton.class_names, beton.class_counts
        (27, ['t0', 't1', 't2', 't3'], [9, 7, 5, 6])
        >>> beton.image_size, beton.encoding, beton.labels.shape
        (40, 'raw', (27,))
        >>> beton.verify()  # raises BetonError where the content is damaged
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        place = path_or_url(path)
        self._open(place, place if isinstance(place, Path) else _local_copy(place))

    def _open(self, place: Path | str, local: Path) -> None:
        self.path, self.origin = local, str(place)
        self.absolute_path = place
        """For copies, which may be opened from another working folder; or the URL."""
        if isinstance(place, Path):
            self.absolute_path = Path(os.path.abspath(place))
        else:
            hold(self, local.parent.name)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.origin}: no such beton; write one with `xmix convert`")
        self._read_index()
        self.manifest = read_manifest(
            self.path, byte_length=self.byte_length, num_samples=self.num_samples
        )
        self._check_labels()

    def _fail(self, problem: str, remedy: str = "convert it again") -> BetonError:
        if self.origin != str(self.path):
            remedy = f"{remedy}, or remove the copy in {self.path.parent} and fetch it anew"
        return BetonError(f"{self.origin}: {problem}; {remedy}")

    def _read_index(self) -> None:
        self._bytes = mapped(self.path)
        self.byte_length = len(self._bytes)
        if self.byte_length < HEADER.itemsize:
            raise self._fail(f"no beton: only {self.byte_length} bytes long")
        header = self._view(0, HEADER, 1, "header")[0]
        if header["version"] != FFCV_VERSION or not 1 <= header["num_fields"] <= 1024:
            raise self._fail("no beton: it does not begin with the header of FFCV's version 2")
        table = int(header["alloc_table_ptr"])
        if table == 0:
            raise self._fail("unfinished: its writer was stopped before the end")
        self.page_size = int(header["page_size"])
        self.num_samples = int(header["num_samples"])
        if self.num_samples == 0:
            raise self._fail("it holds no samples")

        fields = self._view(HEADER.itemsize, FIELD, int(header["num_fields"]), "field list")
        kinds = [int(kind) for kind in fields["type_id"]]
        for position, kind in enumerate(kinds):
            if kind not in FIELD_METADATA:
                raise self._fail(
                    f"field {position} has type {kind}, which stock FFCV does not know",
                    "write it with FFCV's own fields",
                )
        if IMAGE_FIELD not in kinds or INT_FIELD not in kinds:
            raise self._fail(
                "it has no RGB image field and int field side by side",
                "write it with fields for the image and its label",
            )
        label = self._label_field(fields, kinds)
        row = np.dtype([("", FIELD_METADATA[kind]) for kind in kinds], align=True)
        self._index_start = HEADER.itemsize + fields.nbytes
        samples = self._view(self._index_start, row, self.num_samples, "sample metadata")
        self._index_stop = self._index_start + samples.nbytes
        image = samples[f"f{kinds.index(IMAGE_FIELD)}"]
        self.labels: npt.NDArray[np.int64] = samples[f"f{label}"]
        """(N,) int64 class id of each image."""
        self.modes: npt.NDArray[np.uint8] = image["mode"]
        """(N,) uint8 mode of each image: `JPG` or `RAW`."""
        self.heights: npt.NDArray[np.uint16] = image["height"]
        """(N,) uint16 height of each stored image, in pixels."""
        self.widths: npt.NDArray[np.uint16] = image["width"]
        """(N,) uint16 width of each stored image, in pixels."""
        self.pointers: npt.NDArray[np.uint64] = image["data_ptr"]
        """(N,) uint64 position in the file where each image's bytes begin."""
        self._table_start = table
        if table > self.byte_length or (self.byte_length - table) % ALLOCATION.itemsize:
            raise self._fail("cut short or damaged: its allocation table does not end with it")
        count = (self.byte_length - table) // ALLOCATION.itemsize
        self.sizes = self._sizes(self._view(table, ALLOCATION, count, "allocation table"))
        """(N,) uint64 number of bytes of each stored image."""
        self._check_samples(table)

    def _view(self, offset: int, dtype: np.dtype[Any], count: int, what: str) -> Any:
        if offset + count * dtype.itemsize > self.byte_length:
            raise self._fail(f"cut short or damaged: its {what} reaches beyond the end of the file")
        return np.ndarray((count,), dtype, self._bytes, offset)

    def _label_field(self, fields: Any, kinds: list[int]) -> int:
        """Find the int field that holds the class ids: it must not be guessed."""
        names = [bytes(name).split(b"\0")[0].decode("ascii", "replace") for name in fields["name"]]
        integers = [position for position, kind in enumerate(kinds) if kind == INT_FIELD]
        labels = [position for position, name in enumerate(names) if name == "label"]
        if len(labels) == 1 and labels[0] in integers:
            return labels[0]
        if labels or len(integers) > 1:
            listed = ", ".join(repr(names[position]) for position in integers)
            problem = "its field 'label' is no int" if labels else "not one of them is the label"
            raise self._fail(
                f"it has {len(integers)} int field{'s' * (len(integers) > 1)} ({listed}), and "
                f"{problem}",
                "write it again with the class ids in an int field named 'label'",
            )
        return integers[0]

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
                (self.modes == JPG) & (pixels // (3 * MAX_PIXELS_PER_BYTE) > self.sizes),
            ),
        ):
            if wrong.any():
                raise self._fail(f"damaged: image {int(np.argmax(wrong))} {problem}")

    def _check_labels(self) -> None:
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if lowest < 0:
            raise self._fail(f"sample {int(np.argmin(self.labels))} has the label {lowest}")
        if self.manifest is None:
            if highest >= max(_MAX_UNNAMED_CLASSES, self.num_samples):
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
        """Number of images of each class."""
        if self.manifest is not None and self.manifest["class_counts"] != self.class_counts:
            raise self._fail(f"its labels are not those that {self._manifest_name} counts")

    @property
    def unnamed(self) -> str:
        """That the manifest is missing and what to do; empty where it is there. For messages."""
        if self.manifest is not None:
            return ""
        return (
            f"{self.origin} has no manifest, so that its classes are numbers: put "
            f"{self._manifest_name} beside it, or convert the data set again"
        )

    @property
    def _manifest_name(self) -> str:
        return manifest_path(self.path).name

    @cached_property
    def image_size(self) -> int | None:
        """Length in pixels of every image's shorter edge; ``None`` where it varies."""
        short = np.minimum(self.heights, self.widths)
        return int(short[0]) if short.min() == short.max() else None

    @property
    def encoding(self) -> str:
        """Encoding: ``"jpg"``, ``"raw"``, ``"keep"``, or ``"mixed"``, JPEG and raw side by side."""
        if self.manifest is not None:
            return str(self.manifest["encoding"])
        kinds = {"raw" if mode == RAW else "jpg" for mode in np.unique(self.modes)}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @cached_property
    def fingerprint(self) -> str:
        """Hash that identifies the content: the manifest's, or without a manifest the index's."""
        if self.manifest is not None:
            return str(self.manifest["content_hash"])
        return f"index-sha256:{self._index_digest().hexdigest()}"

    def _index_digest(self) -> Any:
        digest = hashlib.sha256(self._bytes[: self._index_stop].data)
        digest.update(self._bytes[self._table_start :].data)
        return digest

    @property
    def shard(self) -> dict[str, Any] | None:
        """Entry ``{"index", "count", "set"}`` of a shard; ``None`` where this beton is none."""
        return None if self.manifest is None else self.manifest.get("shard")

    @property
    def address(self) -> int:
        """Address of the mapped file's first byte, valid while this object lives."""
        return int(self._bytes.ctypes.data)

    def data(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the stored bytes of one image, (K,) uint8: a view of the mapped file."""
        start = int(self.pointers[index])
        return self._bytes[start : start + int(self.sizes[index])]

    def describe(self, index: int) -> str:
        """Name a sample for an error message: file, index and class."""
        return f"{self.origin}: image {index} (class {self.class_names[int(self.labels[index])]!r})"

    def verify(self, *, progress: bool = False) -> None:
        """Check the content: its hash, and that every JPEG decodes without a warning.

        Without a manifest there is no hash: then labels and raw pixels are taken as they are.

        Args:
            progress: Show progress on stderr.

        Raises:
            BetonError: Names the first thing that is wrong, and where.
        """
        if self.manifest is not None and self._content_hash() != self.manifest["content_hash"]:
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

    def _content_hash(self, bar: Megabytes | None = None) -> str:
        digest = hashlib.sha256()
        start = int(self.pointers.min())
        for offset in range(start, self._table_start, MIN_PAGE_SIZE):
            stop = min(offset + MIN_PAGE_SIZE, self._table_start)
            digest.update(self._bytes[offset:stop].data)
            if bar is not None:
                bar.advance(stop - offset)
        return content_hash(self._index_digest(), digest)

    @classmethod
    def check_copy(cls, path: Path, url: str, wanted: str | None) -> None:
        """Check a file that was fetched.

        Args:
            path: The file.
            url: Where it is from.
            wanted: The hash of its content; ``None`` where there is no manifest that says it.

        Raises:
            BetonError: It is damaged, or another one.
        """
        beton = cls.__new__(cls)
        beton.path = path
        beton.origin = str(path)
        try:
            beton._read_index()
        except BetonError as error:
            raise BetonError(str(error).replace(str(path), url, 1)) from error
        if wanted is None:
            return
        with Megabytes(f"check {name_of(url)}", beton.byte_length) as bar:
            if beton._content_hash(bar) == wanted:
                return
        raise BetonError(
            f"{url}: what arrived is not what the hash in its manifest says; nothing was kept: run "
            "it again, or upload beton and manifest again"
        )

    @property
    def names_hash(self) -> str:
        """Hash of the class names, which `fingerprint` does not cover."""
        names = "\0".join(self.class_names).encode("utf-8", "surrogateescape")
        return hashlib.sha256(names).hexdigest()

    @classmethod
    def reopen(
        cls, path: str | os.PathLike[str], fingerprint: str, names_hash: str | None = None
    ) -> Beton:
        """Open a beton that was open before, perhaps in another process or on another machine.

        Args:
            path: Where it was: a path, or a URL.
            fingerprint: Its own, then.
            names_hash: Its own, then; ``None``: whatever it is.

        Raises:
            FileNotFoundError: It is not there.
            BetonError: It is damaged, or another one, or its classes have other names.
        """
        place = path_or_url(path)
        beton = cls.__new__(cls)
        if isinstance(place, Path):
            beton._open(place, place)
        else:  # where it is in the cache, the store is not asked
            local = kept(key_of(fingerprint), name_of(place))
            beton._open(place, local or _local_copy(place))
            if local and names_hash not in (None, beton.names_hash):
                beton = cls(place)  # the same content from another URL put its manifest there
        if beton.fingerprint != fingerprint or names_hash not in (None, beton.names_hash):
            raise BetonError(
                f"{path}: was replaced by another beton, or its classes were renamed, since what "
                "uses it was saved or copied; put the earlier one back, or make that anew"
            )
        return beton

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies map the file themselves: an address in this mapping would outlive it.
        return type(self).reopen, (str(self.absolute_path), self.fingerprint, self.names_hash)

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return (
            f"Beton({self.origin!r}: {self.num_samples} images, "
            f"{len(self.class_names)} classes, {self.encoding})"
        )


def _local_copy(url: str) -> Path:
    """Return the copy in the cache of what is at a URL, fetched if it is not there."""
    name, manifest_url = name_of(url), str(manifest_path(url))
    if name in ("", ".", ".."):
        raise ValueError(f"{url}: names no file; give the URL of a beton")
    state = state_of(url)
    manifest = wanted = None
    with suppress(FileNotFoundError):  # as of a beton that FFCV wrote
        manifest = read_bytes(manifest_url)
    key = key_of(f"{url} {sorted(state.items())}")
    if manifest is not None:
        facts = parse_manifest(manifest, manifest_url)
        wanted = facts["content_hash"]
        key = key_of(wanted)
        if facts["byte_length"] != state["size"]:
            raise BetonError(
                f"{manifest_url}: describes a beton of {facts['byte_length']} bytes, but {name} "
                f"has {state['size']}; wait if they are being uploaded, or upload both again"
            )
    return fetched(
        url,
        key,
        name=name,
        state=state,
        manifest=manifest,
        check=lambda path: Beton.check_copy(path, url, wanted),
    )
