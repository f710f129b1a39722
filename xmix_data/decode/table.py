"""The image table: what the host kernels read of a batch's images, one row of numbers an image.

Comes in: addresses, sizes and boxes. Goes out: (B, 11) int64 with the columns below.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xmix_data.beton.layout import RAW

__all__ = [
    "ADDRESS",
    "BOX_H",
    "BOX_W",
    "BYTES",
    "ELSEWHERE",
    "FLIP",
    "FRACTION",
    "HEIGHT",
    "LEFT",
    "MODE",
    "TOP",
    "WIDTH",
    "ImageTable",
    "dct_fractions",
    "image_table",
    "made_elsewhere",
    "no_images",
    "point_at_crops",
]


_DCT_HEADROOM = 2
"""Factor by which a window that is decoded at a fraction of its size must exceed the output."""


def dct_fractions(boxes: npt.NDArray[np.int32], shape: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Find the fraction of its size at which each JPEG is decoded, before its box is resized.

    libjpeg leaves out the high frequencies of each block, which is faster. The window stays at
    least twice as large as the output, so that the filter still decides what is seen: for outputs
    of 64 pixels and more, the result on photographs is within a mean of 1.5 grey levels of resizing
    the whole image.

    Args:
        boxes: (B, 4) boxes: top, left, height, width.
        shape: Output height and width.

    Returns:
        (B,) int64 divisors of both sides, 1, 2, 4 or 8.
    """
    most = np.minimum(
        boxes[:, 2] // (_DCT_HEADROOM * shape[0]), boxes[:, 3] // (_DCT_HEADROOM * shape[1])
    )
    fractions = np.ones(len(boxes), np.int64)
    for fraction in (2, 4, 8):
        fractions[most >= fraction] = fraction
    return fractions


ImageTable = npt.NDArray[np.int64]
"""(B, 11) int64 table of a batch's images: one row an image, the columns below."""
_COLUMNS = 11
ADDRESS, BYTES, MODE, HEIGHT, WIDTH, TOP, LEFT, BOX_H, BOX_W, FRACTION, FLIP = range(_COLUMNS)
ELSEWHERE = 2
"""Mode of images whose crops another device makes; the address is the crop's place there."""


def image_table(
    addresses: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.uint64],
    modes: npt.NDArray[np.uint8],
    heights: npt.NDArray[np.uint16],
    widths: npt.NDArray[np.uint16],
    boxes: npt.NDArray[np.int32],
    flips: npt.NDArray[np.bool_],
    shape: tuple[int, int],
) -> ImageTable:
    """Make the table that the kernels read a batch's images from.

    Args:
        addresses, sizes, modes, heights, widths: (B,) each, as the beton's index has them.
        boxes: (B, 4) boxes: top, left, height, width.
        flips: (B,) bool: whether each image is mirrored.
        shape: Height and width of the crops.
    """
    table = np.empty((len(addresses), _COLUMNS), np.int64)
    for column, values in (
        (ADDRESS, addresses),
        (BYTES, sizes),
        (MODE, modes),
        (HEIGHT, heights),
        (WIDTH, widths),
        (FRACTION, dct_fractions(boxes, shape)),
        (FLIP, flips),
    ):
        table[:, column] = values
    table[:, TOP : BOX_W + 1] = boxes
    return table


def no_images() -> ImageTable:
    """Make a table without rows, to compile kernels with."""
    return np.empty((0, _COLUMNS), np.int64)


def point_at_crops(
    images: ImageTable,
    items: npt.NDArray[np.int64],
    address: int | None,
    shape: tuple[int, int],
) -> None:
    """Point the table at crops that are made, all but mirrored, for some of its images.

    Args:
        images: The table, which is changed.
        items: (K,) rows of these images in the table.
        address: Address of the crops (K, height, width, 3) uint8 on the host; ``None`` for crops
            on a device, which the host has nothing to do with.
        shape: Height and width of the crops.
    """
    height, width = shape
    places, size = np.arange(len(items)), height * width * 3
    images[items, ADDRESS] = places if address is None else address + places * size
    images[items, MODE] = ELSEWHERE if address is None else RAW
    images[items, BYTES] = size
    images[items, HEIGHT : FRACTION + 1] = height, width, 0, 0, height, width, 1


def made_elsewhere(
    images: ImageTable,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the images whose crops a device made: rows of the table (K,), and places there (K,)."""
    items = np.flatnonzero(images[:, MODE] == ELSEWHERE)
    return items, images[items, ADDRESS]
