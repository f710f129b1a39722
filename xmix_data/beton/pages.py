"""Samples into FFCV's pages, in order: the same input gives the same bytes.

Comes in: encoded samples. Goes out: the file, and a hash of its content.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from xmix_data.beton.encoding import StoredImage
from xmix_data.beton.layout import (
    ALLOCATION,
    FFCV_VERSION,
    FIELD,
    HEADER,
    IMAGE_FIELD,
    INT_FIELD,
    MAX_PAGE_SIZE,
    MIN_PAGE_SIZE,
    SAMPLE,
    align,
    content_hash,
)
from xmix_data.errors import ImageError

__all__ = ["PageWriter"]


class PageWriter:
    """Writer of samples, in order, into FFCV's pages; a sample never crosses a page's end.

    Pages have the smallest power of two of bytes, from 8 MiB, that holds the largest sample.

    Args:
        stream: The beton, open for reading and writing.
        folder: Folder for a temporary copy, should the pages grow.
        capacity: Most samples that will be written.
    """

    def __init__(self, stream: BinaryIO, folder: Path, capacity: int) -> None:
        self._stream, self._folder = stream, folder
        self._samples = np.zeros(capacity, SAMPLE)
        self._sizes = np.zeros(capacity, np.uint64)
        self._count = 0
        self._index_stop = HEADER.itemsize + 2 * FIELD.itemsize + self._samples.nbytes
        self._start_pages(MIN_PAGE_SIZE)

    def _start_pages(self, page_size: int) -> None:
        self._page_size = page_size
        self._start = self._end = align(self._index_stop, page_size)
        self._digest = hashlib.sha256()
        self._stream.seek(self._start)

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) int64 class ids of the samples so far."""
        return np.asarray(self._samples["f1"][: self._count])

    def append(self, label: int, image: StoredImage) -> None:
        """Write the next sample.

        Raises:
            ImageError: The image is larger than the largest page.
        """
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
        page_stop = align(self._end + 1, self._page_size)
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
        """Lay all samples out anew on larger pages: a sample of ``size`` bytes may come late."""
        page_size = 1 << (size - 1).bit_length()
        if page_size > MAX_PAGE_SIZE:
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
        """Write everything but the pages, and return the content hash."""
        self._write(bytes(-self._end % 8))
        samples = self._samples[: self._count]
        header = np.zeros(1, HEADER)
        header[0] = (FFCV_VERSION, 2, self._page_size, self._count, self._end)
        fields = np.zeros(2, FIELD)
        for field, kind, name in zip(
            fields, (IMAGE_FIELD, INT_FIELD), (b"image", b"label"), strict=True
        ):
            field["type_id"] = kind
            field["name"][: len(name)] = np.frombuffer(name, np.uint8)
        table = np.zeros(self._count, ALLOCATION)
        table["sample_id"] = np.arange(self._count)
        table["ptr"] = samples["f0"]["data_ptr"]
        table["size"] = self._sizes[: self._count]
        index = header.tobytes() + fields.tobytes() + samples.tobytes()
        self._stream.seek(0)
        self._stream.write(index)
        self._stream.seek(self._end)
        self._stream.write(table.tobytes())
        return content_hash(hashlib.sha256(index + table.tobytes()), self._digest)
