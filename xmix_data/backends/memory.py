"""Host memory for the caller's batches, used again once nobody holds the batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MemoryPool"]


class MemoryPool:
    """Host memory for the caller's batches, given out again once nobody holds the batch.

    Fresh memory costs a page fault every 4 KB, more than mixing does. A tensor made of an array
    holds a reference to it for as long as any view of the tensor lives; so an array that only
    this pool refers to is free, and a batch that the caller keeps is never touched.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._arrays: list[npt.NDArray[Any]] = []

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array with arbitrary content, at the start of a cache line."""
        for place in range(len(self._arrays)):
            if _references(self._arrays, place) == _FREE and self._arrays[place].shape == shape:
                return self._arrays[place]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.empty(size + _CACHE_LINE, np.uint8)
        start = -memory.ctypes.data % _CACHE_LINE
        self._arrays.append(memory[start : start + size].view(dtype).reshape(shape))
        if len(self._arrays) > self._kept:
            del self._arrays[0]
        return self._arrays[-1]


_CACHE_LINE = 64


def _references(arrays: Sequence[Any], place: int) -> int:
    return sys.getrefcount(arrays[place])


_FREE = _references([np.empty(0)], 0)
"""What `_references` says of an array that only its list refers to (Python's versions differ)."""
