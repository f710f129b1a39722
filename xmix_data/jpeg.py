"""JPEG images, whole or a window of them, decoded row by row: the Python side of ``_jpeg.c``.

Comes in: a JPEG stream in memory, and which window of the image is wanted. Goes out: RGB rows,
bit for bit those that Pillow decodes, or what libjpeg warns of. Kernels call the functions by
address, without Python.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.errors import ImageError, MissingDependencyError

__all__ = [
    "DAMAGED",
    "MAX_PIXELS_PER_BYTE",
    "OK",
    "WRONG_SIZE",
    "Decoder",
    "decode_jpeg",
    "jpeg_problem",
    "library",
]

OK, DAMAGED, WRONG_SIZE = 0, 1, 2
"""Statuses of an image: decoded; not decodable without a warning; not of the size in the index."""

MAX_PIXELS_PER_BYTE = 1024
"""Most pixels that a byte of a Huffman-coded stream can hold.

Each block takes at least one bit, and 32 x 32 pixels have at least eight blocks, even with the
sparsest sampling factors. A header that promises more pixels asks for memory in vain.
"""
_STRIP = 64
"""Number of rows that `jpeg_problem` decodes at a time."""


@cache
def library() -> ctypes.CDLL:
    """Load the compiled functions of ``_jpeg.c``.

    Raises:
        MissingDependencyError: They were not built, or libjpeg-turbo is missing.
    """
    paths = sorted(Path(__file__).parent.glob("_jpeg*.so"))
    if not paths:
        raise MissingDependencyError(
            "xmix_data's JPEG decoder is not built: run `pip install .` in its source folder"
        )
    try:
        loaded = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        raise MissingDependencyError(
            f"xmix_data's JPEG decoder cannot be loaded ({error}): "
            "`sudo apt-get install libjpeg-dev`, then install xmix_data again. Of an undefined "
            "symbol the cause is another package's libjpeg (torchvision before 0.21 has one): "
            "update that package"
        ) from error
    integer, status = ctypes.c_int64, ctypes.c_int32
    signatures: dict[str, tuple[Any, int]] = {
        "new": (integer, 0),
        "free": (None, 1),
        "message": (ctypes.c_char_p, 1),
        "open": (status, 10),
        "open_whole": (status, 5),
        "read": (status, 3),
        "close": (status, 1),
    }
    for name, (result, count) in signatures.items():
        function = loaded[f"xmix_jpeg_{name}"]
        function.restype, function.argtypes = result, [integer] * count
        setattr(loaded, f"xmix_jpeg_{name}", function)
    return loaded


class Decoder:
    """A libjpeg-turbo decompressor; one thread at a time may use it."""

    def __init__(self) -> None:
        self._free = library().xmix_jpeg_free
        self.handle: int = library().xmix_jpeg_new()
        if self.handle == 0:
            raise MemoryError("no memory for a JPEG decoder")

    def __del__(self) -> None:
        if getattr(self, "handle", 0):
            self._free(self.handle)

    def message(self) -> str:
        """Return what was wrong with the last image, in libjpeg's words."""
        return str(library().xmix_jpeg_message(self.handle).decode(errors="replace"))


_of_this_thread = threading.local()


def _decoder() -> Decoder:
    if not hasattr(_of_this_thread, "decoder"):
        _of_this_thread.decoder = Decoder()
    decoder: Decoder = _of_this_thread.decoder
    return decoder


def decode_jpeg(data: bytes, shrink: int = 1) -> npt.NDArray[np.uint8]:
    """Decode a whole JPEG, and accept no damage; bytes between the parts of its header are none.

    A decoder sees all the damage at any fraction of the size: each bit of the stream is read.

    Args:
        data: The stream.
        shrink: Divisor of both sides, 1, 2, 4 or 8, which are rounded up.

    Returns:
        (H, W, 3) RGB, bit for bit as Pillow decodes it, or (H, W, 4) CMYK as it is stored.

    Raises:
        ImageError: libjpeg warns of something, or cannot decode the stream.

    Examples:
        >>> import io
        >>> from PIL import Image
        >>> from xmix_data.jpeg import decode_jpeg
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (30, 20), "red").save(file, "JPEG")
        >>> decode_jpeg(file.getvalue(), 2).shape
        (10, 15, 3)
    """
    stream, shape = np.frombuffer(data, np.uint8), np.zeros(3, np.int64)
    decoder, functions = _decoder(), library()
    status = functions.xmix_jpeg_open_whole(
        decoder.handle, stream.ctypes.data, stream.size, shrink, shape.ctypes.data
    )
    height, width, channels = shape.tolist()
    # A fraction's sides are rounded up: to less than twice what they are.
    if status == OK and height * width * shrink**2 > 4 * MAX_PIXELS_PER_BYTE * stream.size:
        raise ImageError(f"its {width}x{height} pixels do not fit into {stream.size} bytes")
    pixels = np.empty((height, width, channels) if status == OK else 0, np.uint8)
    if status == OK:
        status = functions.xmix_jpeg_read(decoder.handle, pixels.ctypes.data, height)
    if status == OK:
        status = functions.xmix_jpeg_close(decoder.handle)
    if status != OK:
        raise ImageError(f"unreadable or truncated image ({decoder.message()})")
    return pixels


def jpeg_problem(data: bytes | npt.NDArray[np.uint8], height: int, width: int) -> str | None:
    """Find what is wrong with a JPEG stream.

    Args:
        data: The stream.
        height: Height in pixels that the image must have.
        width: Width in pixels that the image must have.

    Returns:
        The problem in words, or ``None`` where the stream decodes without a warning.
    """
    stream = np.frombuffer(data, np.uint8)
    decoder = _decoder()
    functions, handle = library(), decoder.handle
    height, width, layout = int(height), int(width), np.empty(2, np.int64)
    window = (height, width, 1, 0, 0, width, layout.ctypes.data)
    status = functions.xmix_jpeg_open(handle, stream.ctypes.data, stream.size, *window)
    if status == OK and height * width > MAX_PIXELS_PER_BYTE * stream.size:
        return f"{width}x{height} pixels do not fit into {stream.size} bytes"
    rows = np.empty(min(height, _STRIP) * width * 3 if status == OK else 0, np.uint8)
    for top in range(0, height, _STRIP):
        if status == OK:
            count = min(_STRIP, height - top)
            status = functions.xmix_jpeg_read(handle, rows.ctypes.data, count)
    if status == OK:
        status = functions.xmix_jpeg_close(handle)
    return None if status == OK else decoder.message()
