"""The machine's own limits: libjpeg-turbo alone, and copies of crops alone.

Comes in: an `ImageTable`. Goes out: nothing; the time is what counts.
"""

from __future__ import annotations

from typing import Any

from xmix_data.compiled import kernel
from xmix_data.decode.llvm import address_of, jpeg_close, jpeg_open, jpeg_read, memcpy
from xmix_data.decode.table import ADDRESS, BYTES, HEIGHT, LEFT, TOP, WIDTH

__all__ = ["copy_crops", "decode_whole"]


@kernel
def decode_whole(start: int, stop: int, images: Any, work: Any) -> None:
    """Decode whole images into the window's buffer, one over the other.

    A benchmark calls this the decode limit. The arguments are those of `crop_images`.
    """
    decoder, _, _, window, _, _, state = work
    for item in range(start, stop):
        image = images[item]
        height, width = image[HEIGHT], image[WIDTH]
        jpeg_open(
            decoder, image[ADDRESS], image[BYTES], height, width, 1, 0, 0, width, address_of(state)
        )
        jpeg_read(decoder, address_of(window), height)
        jpeg_close(decoder)


@kernel
def copy_crops(start: int, stop: int, images: Any, height: int, width: int, out: int) -> None:
    """Copy the rows of raw crops, and nothing else.

    A benchmark calls this the copy limit. The arguments are those of `crop_images`.
    """
    count = width * 3
    for item in range(start, stop):
        image = images[item]
        row_bytes = image[WIDTH] * 3
        at = image[ADDRESS] + image[TOP] * row_bytes + image[LEFT] * 3
        for row in range(height):
            memcpy(out + (item * height + row) * count, at + row * row_bytes, count)
