"""One image as it is stored: what a reader finds becomes RGB pixels, then JPEG or raw bytes."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from PIL import Image

from xmix_data.beton.layout import JPG, RAW
from xmix_data.beton.pixels import (
    decoded_jpeg,
    is_jpeg,
    loaded_rgb,
    named_decoder_errors,
    open_image,
    orientation,
    upright,
)
from xmix_data.errors import ImageError
from xmix_data.jpeg import jpeg_problem

__all__ = ["StoredImage", "encode_image"]


_MAX_SIDE = {JPG: 65_500, RAW: 65_535}
"""Longest side in pixels that can be stored: libjpeg's limit, and that of 16 bits in the beton."""


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
    kept: bool = False
    """Whether they are the source's own bytes."""


def encode_image(
    image: Any, *, encoding: str, image_size: int | None, crop: str, quality: int
) -> StoredImage:
    """Encode any image as a beton stores it.

    An orientation is applied, alpha is dropped, 16 bits become 8, and a JPEG of which libjpeg
    warns is an error: docs/images.md has all rules. The shorter edge is resized to ``image_size``
    with Pillow's antialiased bilinear filter.

    Args:
        image: Encoded ``bytes``, a PIL image, a uint8 or uint16 array (H, W) or (H, W, C), or a
            tensor (C, H, W) of these, with C = 1, 3 or 4.
        encoding: ``"jpg"``, ``"raw"``, or ``"keep"``: a baseline JPEG that needs no change keeps
            its bytes, everything else becomes a JPEG.
        image_size: Length of the shorter edge in pixels; ``None`` keeps the image's own.
        crop: ``"square"`` keeps the centre square, ``"none"`` all.
        quality: JPEG quality, 1 to 100.

    Raises:
        ImageError: The image cannot be read, is damaged, has values of an unknown range, or is too
            long to be stored.

    Examples:
        >>> from xmix_data.beton.encoding import encode_image
        >>> grey = np.zeros((48, 64), np.uint8)
        >>> stored = encode_image(grey, encoding="raw", image_size=32, crop="square", quality=90)
        >>> stored.height, stored.width, len(stored.data)
        (32, 32, 3072)
    """
    mode = RAW if encoding == "raw" else JPG
    with named_decoder_errors():
        opened = open_image(image)
        streams = isinstance(image, bytes) and is_jpeg(opened)  # decoded later, perhaps shrunk
        pixels = opened if streams else loaded_rgb(opened)
        turn = orientation(opened)
        size = _stored_size(opened.size, turn, image_size, crop)
        enlarged = min(size) > min(opened.size)
        if max(size) > _MAX_SIDE[mode]:
            raise ImageError(
                f"it would be stored as {size[0]}x{size[1]}, above the limit of "
                f"{_MAX_SIDE[mode]} a side; use a square crop or a smaller image size"
            )
        if streams:
            if encoding == "keep" and turn == 1 and _keeps(opened, image, size):
                return StoredImage(JPG, size[1], size[0], image, kept=True)
            pixels = decoded_jpeg(image, _shrink(opened.size, size))
        pixels = _resize(upright(pixels, turn), size, crop)
    width, height = size
    if mode == RAW:
        return StoredImage(RAW, height, width, pixels.tobytes(), enlarged=enlarged)
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", quality=quality, comment=None)  # the source's may be too long
    return StoredImage(JPG, height, width, stream.getvalue(), enlarged=enlarged)


def _stored_size(
    found: tuple[int, int], turn: int, image_size: int | None, crop: str
) -> tuple[int, int]:
    """Return the (width, height) to store."""
    width, height = found if turn < 5 else found[::-1]  # 5 to 8: turned by 90 degrees
    short = min(width, height)
    if short == 0:
        raise ImageError(f"the image has no pixels ({width}x{height})")
    size = image_size or short
    return (size, size) if crop == "square" else _uncropped_size(width, height, size)


def _shrink(found: tuple[int, int], size: tuple[int, int]) -> int:
    """Return the divisor that leaves a JPEG at least twice what is stored; as Pillow's `draft`."""
    most = min(found) // (2 * min(size))
    return next(divisor for divisor in (8, 4, 2, 1) if divisor <= max(most, 1))


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


def _keeps(opened: Image.Image, data: bytes, size: tuple[int, int]) -> bool:
    """Tell whether a stock decoder makes the stored pixels from a JPEG's own bytes."""
    return (
        opened.format == "JPEG"
        and opened.mode in ("RGB", "L")
        and not opened.info.get("progressive")
        and opened.size == size
        and jpeg_problem(data, opened.height, opened.width) is None
    )
