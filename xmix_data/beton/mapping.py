"""A file's bytes as an array that reads them when they are looked at; no descriptor stays open.

Comes in: a path. Goes out: (N,) uint8 over all of the file. `numpy.memmap` keeps a descriptor for
each file, and a domain of many shards would meet the limit of open files.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["mapped"]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


class _Mapping:
    """A mapped file, as NumPy takes it: mapped until no array shows it any more."""

    def __init__(self, descriptor: int, length: int) -> None:
        # Private: to a reader it is the same, and some network file systems refuse a shared one.
        address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (length,),
            "data": (address, True),
        }
        # Not at the interpreter's end: threads may still read then.
        weakref.finalize(self, _libc.munmap, address, length).atexit = False


def mapped(path: Path) -> npt.NDArray[np.uint8]:
    """Map a file for reading.

    The bytes are those of the file that stood under the path then, also after another one was
    renamed to it. They are not safe from a process that cuts or overwrites that file in place.

    Args:
        path: The file.

    Returns:
        (N,) uint8, read-only; empty for an empty file.

    Raises:
        OSError: The file cannot be opened or mapped; names it, and the limit that was met.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            length = os.fstat(descriptor).st_size
            if length == 0:
                return np.empty(0, np.uint8)
            return np.asarray(_Mapping(descriptor, length))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise type(error)(
            error.errno, f"{path}: cannot be opened ({error.strerror}); {_remedy(error, path)}"
        ) from error


def _remedy(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOMEM:
        return (
            f"its {path.stat().st_size} bytes are mapped into memory as a whole, which a limit of "
            "address space forbids: raise it (ulimit -v)"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open in this process or system: raise the limit (ulimit -n)"
    if error.errno in (errno.ENODEV, errno.EACCES, errno.EPERM):
        return "give a file that may be read, on a file system that maps files"
    return "mend the disk, or copy the file to another one"
