"""What libtiff says of a damaged file: for the one who opened it, not for the terminal.

Comes in: a block that decodes a TIFF with Pillow. Goes out: libtiff's words, in a list.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["libtiff_errors"]


_LONGEST = 300
"""Most bytes of an error that are kept."""

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
"""libtiff's type of a function that gets an error: where, a format, and a ``va_list``."""

_of_this_thread = threading.local()


@contextmanager
def libtiff_errors() -> Iterator[list[str]]:
    """Collect what libtiff would print on stderr while this thread is in the block.

    Other threads' errors, and those outside the block, go where they went before.
    """
    _handlers()
    told: list[str] = []
    _of_this_thread.told = told
    try:
        yield told
    finally:
        _of_this_thread.told = None


@cache
def _handlers() -> list[Any]:
    """Give each libtiff of this process a handler of ours, once; the handlers must live on."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        files = {line.split(maxsplit=5)[-1].strip() for line in maps if "libtiff" in line}
    return [_handler(ctypes.CDLL(file)) for file in sorted(files)]


def _handler(library: ctypes.CDLL) -> Any:
    before: list[Any] = []

    def handle(where: bytes | None, pattern: bytes, values: int | None) -> None:
        told = getattr(_of_this_thread, "told", None)
        if told is not None:
            text = ctypes.create_string_buffer(_LONGEST)
            ctypes.CDLL(None).vsnprintf(text, _LONGEST, pattern, ctypes.c_void_p(values))
            words = text.value.decode(errors="replace").strip(". \n")
            told.append(f"{where.decode(errors='replace')}: {words}" if where else words)
        elif before and before[0]:
            before[0](where, pattern, values)

    handler = _Handler(handle)
    library.TIFFSetErrorHandler.restype = _Handler
    library.TIFFSetErrorHandler.argtypes = [_Handler]
    before.append(library.TIFFSetErrorHandler(handler))
    return handler
