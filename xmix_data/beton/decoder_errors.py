"""What libtiff says of a damaged file: for the one who opened it, not for the terminal.

Comes in: a block that decodes a TIFF with Pillow. Goes out: libtiff's words, in a list.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["libtiff_errors"]


_LONGEST = 300
"""Most bytes of an error that are kept."""

_PILLOWS_NAMES = b"tempfile.tif", b"filename"
"""What Pillow calls every file when it talks to libtiff."""

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
"""libtiff's type of a function that gets an error: where, a format, and a ``va_list``."""

_of_this_thread = threading.local()
_once = threading.Lock()
_handlers: list[Any] = []
"""``None``, once it is filled, and the handlers, which must live as long as the process."""


@contextmanager
def libtiff_errors() -> Iterator[list[str]]:
    """Collect what libtiff would print on stderr while this thread is in the block.

    Other threads' errors, and those outside the block, go where they went before.
    """
    _set_handlers()
    told: list[str] = []
    _of_this_thread.told = told
    try:
        yield told
    finally:
        _of_this_thread.told = None


def _set_handlers() -> None:
    """Give each libtiff of this process a handler of ours, once."""
    with _once:
        if _handlers:
            return
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            files = {line.split(maxsplit=5)[-1].strip() for line in maps if "libtiff" in line}
        _handlers.append(None)
        _handlers.extend(_handler(ctypes.CDLL(f)) for f in sorted(files) if os.path.exists(f))


def _handler(library: ctypes.CDLL) -> Any:
    before: list[Any] = []
    vsnprintf = ctypes.CDLL(None).vsnprintf

    def handle(where: bytes | None, pattern: bytes, values: int | None) -> None:
        told = getattr(_of_this_thread, "told", None)
        if told is not None:
            text = ctypes.create_string_buffer(_LONGEST)
            vsnprintf(text, ctypes.c_size_t(_LONGEST), pattern, ctypes.c_void_p(values))
            words = " ".join(text.value.decode(errors="replace").split()).rstrip(".")
            names_part = where is not None and where not in _PILLOWS_NAMES
            told.append(
                f"{(where or b'').decode(errors='replace')}: {words}" if names_part else words
            )
        elif before and before[0]:
            before[0](where, pattern, values)

    handler = _Handler(handle)
    library.TIFFSetErrorHandler.restype = _Handler
    library.TIFFSetErrorHandler.argtypes = [_Handler]
    before.append(library.TIFFSetErrorHandler(handler))
    return handler
