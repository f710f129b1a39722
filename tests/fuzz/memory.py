"""Memory against pages that nobody may touch: a byte too far is a signal."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from xmix_data import decode

Bytes = npt.NDArray[np.uint8]


def guarded(size: int, *, front: bool = False) -> Bytes:
    """Zeros that end (or begin) at a page that nobody may touch; there is one on both sides."""
    page = mmap.PAGESIZE
    inner = -(-max(size, 1) // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    array = np.frombuffer(memory, np.uint8)
    start = array.ctypes.data
    for at in (start, start + page + inner):
        protect(at, page, 0)
    offset = page if front else page + inner - size
    return array[offset : offset + size]


def protect(address: int, length: int, access: int) -> None:
    mprotect = ctypes.CDLL(None).mprotect
    if mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), access):
        raise OSError("mprotect failed")


def guarded_bytes(data: bytes, *, front: bool = False) -> Bytes:
    """A copy of ``data`` against a forbidden page, not to be written."""
    array = guarded(len(data), front=front)
    array[:] = np.frombuffer(data, np.uint8)
    inner = -(-max(len(data), 1) // mmap.PAGESIZE) * mmap.PAGESIZE
    protect(array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE, inner, mmap.PROT_READ)
    array.flags.writeable = False
    return array


def guarded_map(path: Path, dtype: Any, mode: str) -> Bytes:
    """In place of `np.memmap`, whose last page is longer than the file."""
    data = path.read_bytes()
    return guarded_bytes(data, front=len(data) % 4 == 0)


class GuardedWorkspace(decode.Workspace):
    """Buffers that end at forbidden pages: what is written behind them is a signal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.target, self.source = (
            tuple(self._guarded(x) for x in side) for side in (self.target, self.source)
        )

    @staticmethod
    def _guarded(buffer: Any) -> Any:
        if not isinstance(buffer, np.ndarray) or not buffer.nbytes:
            return buffer
        return guarded(buffer.nbytes).view(buffer.dtype).reshape(buffer.shape)


@contextlib.contextmanager
def guards() -> Iterator[None]:
    """Guarded memory for whatever the library maps or decodes into."""
    with (
        mock.patch.object(np, "memmap", guarded_map),
        mock.patch.object(decode, "Workspace", GuardedWorkspace),
    ):
        yield


def status_mb(key: str) -> float:
    """A line of /proc/self/status, in megabytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def forget_peak() -> None:
    """Make ``VmHWM`` begin anew."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
