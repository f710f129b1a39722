"""The host's decoding: stored bytes to cropped uint8 pixels, or straight to mixed floats.

Comes in: an `ImageTable`, a row an image. Goes out: pixels at a caller's address, and a status per
image. The kernels hold no lock and start no thread.
"""

from xmix_data.decode.kernels import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    Workspace,
    crop_images,
    mix_images,
    normalise_images,
)
from xmix_data.decode.plain import plain_jpegs
from xmix_data.decode.table import (
    BYTES,
    ImageTable,
    dct_fractions,
    image_table,
    made_elsewhere,
    no_images,
    point_at_crops,
)

__all__ = [
    "BFLOAT16",
    "BYTES",
    "FLOAT16",
    "FLOAT32",
    "ImageTable",
    "Workspace",
    "crop_images",
    "dct_fractions",
    "image_table",
    "made_elsewhere",
    "mix_images",
    "no_images",
    "normalise_images",
    "plain_jpegs",
    "point_at_crops",
]
