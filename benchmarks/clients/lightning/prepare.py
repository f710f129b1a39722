"""The data set as MNIST: grey images of 28 pixels in files that torchvision takes for MNIST's.

Comes in: the folder that `tiny.make` made. Goes out, in ``lightning`` in it: ``MNIST/raw``, and
betons: the images that the template trains on, and those of the source.
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import random_split

from xmix_data import write_beton

SIDE = 28
SEED = 42
"""Of the template's own split."""


class Grey:
    """Grey images, as RGB."""

    def __init__(
        self, pixels: npt.NDArray[np.uint8], labels: list[int], classes: list[str]
    ) -> None:
        self.pixels, self.labels, self.classes = pixels, labels, classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]).convert("RGB"), self.labels[index]


def read(folder: Path) -> Grey:
    """Read a class folder."""
    classes = sorted(path.name for path in folder.iterdir())
    paths = sorted(folder.glob("*/*.jpg"))
    images = [Image.open(path).convert("L").resize((SIDE, SIDE)) for path in paths]
    labels = [classes.index(path.parent.name) for path in paths]
    return Grey(np.stack([np.asarray(image) for image in images]), labels, classes)


def make(folder: Path) -> None:
    """Make all of it."""
    work = folder / "lightning"
    raw = work / "MNIST" / "raw"
    raw.mkdir(parents=True)
    train, test = (read(folder / part) for part in ("train", "val"))
    for name, part in (("train", train), ("t10k", test)):
        head = struct.pack(">iiii", 0x803, len(part), SIDE, SIDE)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + part.pixels.tobytes())
        head = struct.pack(">ii", 0x801, len(part))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + bytes(part.labels))
    both = Grey(
        np.concatenate([train.pixels, test.pixels]), train.labels + test.labels, train.classes
    )
    lengths = len(train), len(test) // 2, len(test) - len(test) // 2
    split, *_ = random_split(range(len(both)), lengths, torch.Generator().manual_seed(SEED))
    chosen = list(split.indices)
    target = Grey(both.pixels[chosen], [both.labels[i] for i in chosen], both.classes)
    for name, images in (("target", target), ("source", read(folder / "source"))):
        path = work / f"{name}.beton"
        write_beton(images, path, image_size=SIDE, encoding="raw", progress=False)
    shutil.copy(folder / "pairing.json", work)
