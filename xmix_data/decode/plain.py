"""Which JPEGs every decoder takes for the same image, told by their headers and last bytes.

Comes in: an `ImageTable`. Goes out: a flag for each image; DALI is given only plain ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xmix_data.beton.layout import JPG
from xmix_data.compiled import kernel
from xmix_data.decode.llvm import bytes_at
from xmix_data.decode.table import ADDRESS, BYTES, HEIGHT, MODE, WIDTH
from xmix_data.jpeg import MAX_PIXELS_PER_BYTE

__all__ = ["plain_jpegs"]


_BASELINE, _EXTENDED, _CODES, _START, _END, _SCAN, _TABLES, _ADOBE = (
    0xC0,
    0xC1,
    0xC4,
    0xD8,
    0xD9,
    0xDA,
    0xDB,
    0xEE,
)
"""Markers of JPEG: two kinds of frames, Huffman codes, start and end of the image, a scan,
quantisation tables, Adobe's colours."""
_SAMPLINGS = 0x11, 0x21, 0x12, 0x22, 0x41
"""Sampling factors, across and down, of a first component whose chroma is sampled once: 4:4:4,
4:2:2, 4:4:0, 4:2:0 and 4:1:1. Decoders differ in others, or refuse them."""
_RED = ord("R")
"""Name of the first component in JPEG files that store RGB."""


@kernel
def plain_jpegs(images: Any, plain: Any) -> None:
    """Find the JPEGs that every decoder takes for the same image, by their headers and last bytes.

    They are whole, of the size in the index, grey or YCbCr in a usual sampling, with one scan and
    tables of their own.
    The search costs a microsecond an image. Damage between header and end is not seen.

    Args:
        images: An `ImageTable`.
        plain: (B,) bool, filled with the result.
    """
    for item in range(len(images)):
        image = images[item]
        plain[item] = image[MODE] == JPG and _is_plain(
            bytes_at(image[ADDRESS], image[BYTES]), image[HEIGHT], image[WIDTH]
        )


@kernel
def _is_plain(data: Any, height: int, width: int) -> bool:
    size = len(data)
    if size < 4 or data[0] != 0xFF or data[1] != 0xD8 or data[size - 2] != 0xFF:
        return False
    if data[size - 1] != 0xD9 or height * width > MAX_PIXELS_PER_BYTE * size:
        return False
    components, quantised, coded = 0, False, False
    at = 2
    while at + 4 <= size and data[at] == 0xFF:
        marker, length = data[at + 1], np.int64(data[at + 2]) << 8 | data[at + 3]
        if length < 2 or at + 2 + length > size:
            return False
        if marker == _SCAN:
            return quantised and coded and components > 0 and data[at + 4] == components
        if marker in (_BASELINE, _EXTENDED):
            if components > 0 or length < 11 or data[at + 4] != 8:
                return False
            components = data[at + 9]
            if (
                np.int64(data[at + 5]) << 8 | data[at + 6] != height
                or np.int64(data[at + 7]) << 8 | data[at + 8] != width
                or not (components == 1 or (components == 3 and data[at + 10] != _RED))
            ):
                return False
            if components == 3 and (
                length < 17
                or data[at + 11] not in _SAMPLINGS
                or data[at + 14] != 0x11
                or data[at + 17] != 0x11
            ):
                return False
        elif marker == _ADOBE and length >= 14 and data[at + 15] != 1:
            return False  # its colours are no YCbCr
        elif marker == _TABLES:
            quantised = True
        elif marker == _CODES:
            coded = True
        elif 0xC0 <= marker <= 0xCF or marker in (_START, _END):
            return False  # progressive, lossless, arithmetic; or another image inside
        at += 2 + length
    return False
