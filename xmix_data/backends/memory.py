"""Host memory for the caller's batches, used again once nobody holds the batch.

Comes in: a shape and a type. Goes out: an array with arbitrary content, the caller's own for as
long as it, a tensor made of it, or any view of either lives.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MemoryPool"]

_CACHE_LINE = 64


class MemoryPool:
    """Memory that comes back when the array that was made of it is garbage.

    Fresh memory costs a page fault every 4 KB, more than mixing does. A tensor made of an array
    holds a reference to it for as long as any view of the tensor lives; so what comes back is held
    by nobody, and a batch that the caller keeps is never touched.

    Args:
        kept: Most pieces of memory that wait here to be used again.
    """

    def __init__(self, kept: int) -> None:
        self._free: deque[npt.NDArray[np.uint8]] = deque(maxlen=kept)

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array with arbitrary content, at the start of a cache line."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._take(size + _CACHE_LINE)
        start = -memory.ctypes.data % _CACHE_LINE
        array = memory[start : start + size].view(dtype).reshape(shape)
        # By a weak reference: a batch that outlives its loader does not keep the others' memory.
        end = weakref.finalize(array, _give_back, weakref.ref(self._free), memory)
        end.atexit = False
        return array

    def _take(self, size: int) -> npt.NDArray[np.uint8]:
        """Return memory of that size; let go what is of another, the tail of an epoch say."""
        while self._free:
            memory = self._free.pop()  # what was used last is the likeliest to be in a cache
            if memory.nbytes == size:
                return memory
        return np.empty(size, np.uint8)


def _give_back(
    free: weakref.ref[deque[npt.NDArray[np.uint8]]], memory: npt.NDArray[np.uint8]
) -> None:
    pool = free()
    if pool is not None:
        pool.append(memory)
