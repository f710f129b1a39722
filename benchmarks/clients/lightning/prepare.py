"""The data set as MNIST: grey images of 28 pixels in files that torchvision takes for MNIST's.

Comes in: the folder that `tiny.make` made. Goes out, in ``lightning`` in it: ``MNIST/raw``, and
betons: the images that the template trains on, and those of the source.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import torch
from tiny import Pictures
from torch.utils.data import random_split

from xmix_data import write_beton

SIDE = 28
SEED = 42
"""Of the template's own split."""


def make(folder: Path) -> None:
    """Make all of it."""
    work = folder / "lightning"
    raw = work / "MNIST" / "raw"
    raw.mkdir(parents=True)
    train, test = (Pictures.read(folder / part, SIDE, "L") for part in ("train", "val"))
    for name, part in (("train", train), ("t10k", test)):
        head = struct.pack(">iiii", 0x803, len(part), SIDE, SIDE)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + part.pixels.tobytes())
        head = struct.pack(">ii", 0x801, len(part))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + bytes(part.labels))
    both = Pictures(
        np.concatenate([train.pixels, test.pixels]), train.labels + test.labels, train.classes
    )
    lengths = len(train), len(test) // 2, len(test) - len(test) // 2
    split, *_ = random_split(range(len(both)), lengths, torch.Generator().manual_seed(SEED))
    chosen = list(split.indices)
    target = Pictures(both.pixels[chosen], [both.labels[i] for i in chosen], both.classes)
    for name, images in (
        ("target", target),
        ("source", Pictures.read(folder / "source", SIDE, "L")),
    ):
        path = work / f"{name}.beton"
        write_beton(images, path, image_size=SIDE, encoding="raw", progress=False)
    shutil.copy(folder / "pairing.json", work)
