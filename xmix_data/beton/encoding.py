"""One image as it is stored: what a reader finds becomes RGB pixels, then JPEG or raw bytes."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from xmix_data.beton.layout import JPG, RAW
from xmix_data.errors import ImageError
from xmix_data.jpeg import jpeg_problem

__all__ = ["StoredImage", "encode_image"]


_MAX_SIDE = {JPG: 65_500, RAW: 65_535}
"""Longest side in pixels that can be stored: libjpeg's limit, and that of 16 bits in the beton."""
_ORIENTATION = 0x0112
"""EXIF tag of an image's orientation."""


class StoredImage(NamedTuple):
    """One image as a beton stores it."""

    mode: int
    """Mode of the image: `JPG` or `RAW`."""
    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    data: bytes
    """Stored bytes: a JPEG stream, or H*W*3 bytes of RGB."""
    enlarged: bool = False
    """Whether the image was smaller than what is stored."""


def encode_image(
    image: Any, *, encoding: str, image_size: int | None, crop: str, quality: int
) -> StoredImage:
    """Encode any image as a beton stores it.

    Orientation tags are applied; alpha is dropped; 16-bit channels keep their high byte. The
    shorter edge is resized to ``image_size`` with Pillow's antialiased bilinear filter.

    Args:
        image: Encoded ``bytes``, a PIL image, a uint8 or uint16 array (H, W) or (H, W, C), or a
            uint8 tensor (C, H, W), with C = 1, 3 or 4.
        encoding: ``"jpg"``, ``"raw"``, or ``"keep"``: a baseline JPEG that needs no change keeps
            its bytes, everything else becomes a JPEG.
        image_size: Length of the shorter edge in pixels; ``None`` keeps the image's own.
        crop: ``"square"`` keeps the centre square, ``"none"`` all.
        quality: JPEG quality, 1 to 100.

    Raises:
        ImageError: The image cannot be read, or is too long to be stored.
    """
    mode = RAW if encoding == "raw" else JPG
    try:
        opened = _open(image)
        size = _stored_size(opened, image_size, crop)
        enlarged = min(size) > min(opened.size)
        if max(size) > _MAX_SIDE[mode]:
            raise ImageError(
                f"it would be stored as {size[0]}x{size[1]}, above the limit of "
                f"{_MAX_SIDE[mode]} a side; use a square crop or a smaller image size"
            )
        if isinstance(image, bytes):
            kept = _keep(opened, image, size) if encoding == "keep" else None
            if kept is not None:
                return kept
            # Decoding a large JPEG at a fraction of its size, at least twice what is needed.
            # Only here: it would change a PIL image that belongs to the caller.
            opened.draft(None, (2 * min(size), 2 * min(size)))
        pixels = _resize(_rgb(opened), size, crop)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{error}; resize it first") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"unreadable or truncated image ({error})") from error
    width, height = size
    if mode == RAW:
        return StoredImage(RAW, height, width, pixels.tobytes(), enlarged=enlarged)
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", quality=quality, comment=None)  # the source's may be too long
    return StoredImage(JPG, height, width, stream.getvalue(), enlarged=enlarged)


def _open(image: Any) -> Image.Image:
    if isinstance(image, bytes):
        return Image.open(io.BytesIO(image))
    if isinstance(image, Image.Image):
        return image
    if hasattr(image, "detach"):  # a tensor (C, H, W), without importing torch for its type
        array = image.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        array = np.asarray(image)
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    ):
        raise ImageError(
            f"an image of type {type(image).__name__}, dtype {array.dtype}, shape {array.shape} "
            "cannot be stored; give bytes, a PIL image, or uint8 pixels (H, W, 3) "
            "(leave out ToTensor and normalisation)"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _stored_size(image: Image.Image, image_size: int | None, crop: str) -> tuple[int, int]:
    """Return the (width, height) to store.

    Called before `draft`, whose rounded sides would change it.
    """
    width, height = image.size
    if image.getexif().get(_ORIENTATION) in (5, 6, 7, 8):  # turned by 90 degrees
        width, height = height, width
    short = min(width, height)
    if short == 0:
        raise ImageError(f"the image has no pixels ({width}x{height})")
    size = image_size or short
    return (size, size) if crop == "square" else _uncropped_size(width, height, size)


def _rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        array = np.asarray(image)
        if array.min(initial=0) < 0 or array.max(initial=0) > 65_535:
            raise ImageError("32-bit grey values have no fixed range; convert it to 8 or 16 bits")
        image = Image.fromarray((array >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ImageError("floating point pixels have no fixed range; convert it to 8 or 16 bits")
    return image.convert("RGB")


def _resize(image: Image.Image, size: tuple[int, int], crop: str) -> Image.Image:
    if crop == "none":
        return image.resize(size, Image.Resampling.BILINEAR)
    width, height = image.size
    short = min(width, height)
    if short == size[0]:
        left, top = (width - short) // 2, (height - short) // 2
        return image.crop((left, top, left + short, top + short))
    x, y = (width - short) / 2, (height - short) / 2
    return image.resize(size, Image.Resampling.BILINEAR, (x, y, x + short, y + short))


def _uncropped_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return (width, height) with the shorter edge ``size``, rounded down as in torchvision."""
    if width <= height:
        return size, size * height // width
    return size * width // height, size


def _keep(image: Image.Image, data: bytes, size: tuple[int, int]) -> StoredImage | None:
    """Keep a JPEG where a stock decoder makes the stored pixels from it, else return ``None``."""
    width, height = size
    if (
        image.format != "JPEG"
        or image.mode not in ("RGB", "L")
        or image.info.get("progressive")
        or image.getexif().get(_ORIENTATION, 1) != 1
        or image.size != size
        or jpeg_problem(data, height, width) is not None
    ):
        return None
    return StoredImage(JPG, height, width, data)
