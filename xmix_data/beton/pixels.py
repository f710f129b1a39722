"""An image as it comes, to upright RGB pixels of 8 bits; docs/images.md says why each rule is so.

Comes in: encoded bytes, a PIL image, an array or a tensor. Goes out: an RGB image of Pillow's.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from xmix_data.beton.decoder_errors import libtiff_errors
from xmix_data.errors import ImageError
from xmix_data.jpeg import decode_jpeg

__all__ = [
    "decoded_jpeg",
    "is_jpeg",
    "keep_pillow_silent",
    "loaded_rgb",
    "named_decoder_errors",
    "open_image",
    "orientation",
    "own_image",
    "silent_pillow",
    "upright",
]


_logger, _NOWHERE = logging.getLogger("PIL"), logging.NullHandler()

_ORIENTATION = 0x0112
"""EXIF's and TIFF's tag of an image's orientation."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each orientation upright."""
_NUMBERS = {1: "B", 3: "H", 4: "I"}
"""TIFF's types of an orientation: 8, 16 or 32 bits."""

_DEPTHS = (8, 10, 12, 14, 16)
"""Numbers of bits that cameras and scanners store in 16."""
_PHOTOMETRIC, _MIN_IS_WHITE = 0x0106, 0
"""TIFF's tag of what values mean, and its value for negatives."""


def keep_pillow_silent() -> None:
    """Keep what Pillow warns of and logs off the terminal, from now on: it names no file.

    What makes an image unreadable is in the error that names it.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _logger.addHandler(_NOWHERE)


@contextmanager
def silent_pillow() -> Iterator[None]:
    """Keep Pillow silent in a block, in all threads: warnings' filters belong to the process."""
    with warnings.catch_warnings():
        keep_pillow_silent()
        try:
            yield
        finally:
            _logger.removeHandler(_NOWHERE)


@contextmanager
def named_decoder_errors() -> Iterator[None]:
    """Turn whatever Pillow and libtiff say of an image into an `ImageError`.

    Raises:
        ImageError: The block raised any exception, as Pillow does of damaged files.
    """
    with libtiff_errors() as told:
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except UnidentifiedImageError:
            raise ImageError("not an image in a format that Pillow reads") from None
        except Image.DecompressionBombError as error:
            raise ImageError(f"{error}; resize it first") from None
        except Exception as error:
            words = told[0] if told else str(error)
            raise ImageError(f"unreadable or truncated image ({words})") from error


def open_image(image: Any) -> Image.Image:
    """Open an image as one of Pillow's, without decoding it.

    Args:
        image: Encoded ``bytes``, a PIL image, a uint8 or uint16 array (H, W) or (H, W, C), or a
            tensor (C, H, W) of these, with C = 1, 3 or 4.

    Raises:
        ImageError: It is nothing of these.
    """
    if isinstance(image, bytes):
        opened = Image.open(io.BytesIO(image))
        if opened.format == "EPS":  # decoding it would run Ghostscript
            raise ImageError("EPS is a program that draws; store what it draws as PNG")
        return opened
    if isinstance(image, Image.Image):
        return image
    if hasattr(image, "detach"):  # a tensor (C, H, W), without importing torch for its type
        array = image.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype not in (np.uint8, np.uint16) or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    ):
        raise ImageError(
            f"an image of type {type(image).__name__}, dtype {array.dtype}, shape {array.shape} "
            "cannot be stored; give bytes, a PIL image, or uint8 pixels (H, W, 3) "
            "(leave out ToTensor and normalisation)"
        )
    if array.dtype == np.uint16:
        array = _eight_bits(array if array.ndim == 2 else array[..., :3])
    return Image.fromarray(np.ascontiguousarray(array))


def is_jpeg(opened: Image.Image) -> bool:
    """Tell whether an opened file is a JPEG, alone or with others in one file (MPO)."""
    return opened.format in ("JPEG", "MPO")


def decoded_jpeg(data: bytes, shrink: int) -> Image.Image:
    """Decode a whole JPEG at 1/``shrink`` of its size.

    Raises:
        ImageError: It is damaged, however little.
    """
    pixels = decode_jpeg(data, shrink)
    height, width, channels = pixels.shape
    if channels == 3:
        return Image.fromarray(pixels)
    # As Pillow: the programs that write CMYK JPEGs store their inverse.
    inverse = Image.frombytes("CMYK", (width, height), pixels.tobytes(), "raw", "CMYK;I")
    return inverse.convert("RGB")


def loaded_rgb(opened: Image.Image) -> Image.Image:
    """Decode an image, if it is not, and convert it to RGB of 8 bits.

    Raises:
        ImageError: The range of its values is not known, or it is a JPEG that is damaged.
    """
    stream = _unread_stream(opened) if is_jpeg(opened) else None
    if stream is not None:
        return decoded_jpeg(stream, 1)
    deep_colour = len(opened.getbands()) > 1 and any(
        _has_sixteen_bits(tile[0], tile[3]) for tile in getattr(opened, "tile", ())
    )
    opened.load()
    if deep_colour:
        _check_high_bytes(opened)
    if opened.mode == "F":
        raise ImageError("floating point pixels have no fixed range; convert it to 8 or 16 bits")
    if opened.mode == "I" or opened.mode.startswith("I;16"):
        grey = np.asarray(opened)
        negative = getattr(opened, "tag_v2", {}).get(_PHOTOMETRIC) == _MIN_IS_WHITE
        return Image.fromarray(_eight_bits(grey, negative=negative)).convert("RGB")
    if opened.mode in ("La", "RGBa"):  # premultiplied
        opened = opened.convert(opened.mode.upper())
    return opened.convert("RGB")


def own_image(image: Any) -> Any:
    """Take an image out of its dataset's hands, before the next one is read.

    A PIL image may read its file only when it is decoded; an array or a tensor may be a buffer that
    the next sample overwrites.

    Args:
        image: As for `open_image`; anything else is returned as it is.

    Raises:
        ImageError: It cannot be decoded.
    """
    if isinstance(image, Image.Image):
        stream = _unread_stream(image)
        if stream is not None:  # as it is: decoded, it would not tell of damage or of its depth
            return Image.open(io.BytesIO(stream))
        with named_decoder_errors():
            image.load()
    elif isinstance(image, np.ndarray):
        return image.copy()
    elif hasattr(image, "detach"):  # a tensor, without importing torch for its type
        return image.detach().clone()
    return image


def _unread_stream(opened: Image.Image) -> bytes | None:
    """Return the bytes of a file that `Image.open` gave and of which nothing is decoded yet."""
    if not isinstance(opened, ImageFile.ImageFile) or opened.fp is None or not opened.tile:
        return None
    if getattr(opened, "decoderconfig", ()) or opened.tell() != 0:
        return None  # to be decoded in part, or another image of the file
    opened.fp.seek(0)
    stream: bytes = opened.fp.read()
    return stream


def _eight_bits(values: npt.NDArray[Any], *, negative: bool = False) -> npt.NDArray[np.uint8]:
    """Scale integers to 8 bits, from the least of `_DEPTHS` that holds the image's greatest."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65_535:
        raise ImageError(
            f"integer pixels from {low} to {high} have no fixed range; convert it to 8 or 16 bits"
        )
    depth = next(bits for bits in _DEPTHS if high < 1 << bits)
    scaled = (values.astype(np.uint16) >> (depth - 8)).astype(np.uint8)
    return 255 - scaled if negative else scaled


def _has_sixteen_bits(decoder: str, arguments: Any) -> bool:
    """Tell whether a part of a file holds 16 bits, by what Pillow decodes it with."""
    if decoder.startswith("ppm"):  # (mode, greatest value): a smaller one is the range itself
        return not isinstance(arguments, str) and int(arguments[-1]) >= 1 << _DEPTHS[-2]
    return ";16" in str(arguments if isinstance(arguments, str) else arguments[:1])


def _check_high_bytes(image: Image.Image) -> None:
    """Refuse colours of 16 bits of which only the low bits are used: Pillow keeps the high byte."""
    colours = np.asarray(image)[..., : len(image.getbands()) - ("A" in image.getbands())]
    if int(colours.max(initial=0)) < 1 << (_DEPTHS[-2] - 8):
        raise ImageError(
            f"colours of 16 bits that use {_DEPTHS[-2]} bits at most have no fixed range; scale "
            "them to all 16 bits, or convert it to 8 bits"
        )


def orientation(opened: Image.Image) -> int:
    """Return an image's orientation, 1 (upright) to 8; whatever else its EXIF says is left alone.

    Args:
        opened: The image; decoded, but for a JPEG: a PNG may have its EXIF behind the pixels, and
            Pillow turns a TIFF while it decodes it.
    """
    try:
        found = opened.getexif().get(_ORIENTATION)
    except Exception:  # whatever Pillow raises of damaged EXIF: the pixels are none the worse
        found = None
    if found is None:
        found = _orientation_in(opened.info.get("exif"))
    return found if found in _TURNS else 1


def _orientation_in(exif: Any) -> int | None:
    """Find the orientation in EXIF of which Pillow understands less than it needs."""
    if not isinstance(exif, bytes):
        return None
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, at)
            if tag == _ORIENTATION and kind in _NUMBERS:
                return int(struct.unpack_from(f"{order}{_NUMBERS[kind]}", exif, at + 8)[0])
    except struct.error:  # it ends before the tag
        return None
    return None


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Turn an image of an orientation upright."""
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image
