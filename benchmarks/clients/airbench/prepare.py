"""The data set as CIFAR-10 in airbench's files: tensors of images of 32 pixels.

Comes in: the folder that `tiny.make` made. Goes out, in ``airbench`` in it: ``cifar10`` with
``train.pt`` and ``test.pt``, and betons: the training images, padded by two pixels as airbench pads
them, and those of the source.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny import Pictures

from xmix_data import write_beton

SIDE, PAD = 32, 2


class Padded(Pictures):
    """Images with a reflected border."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        border = (PAD, PAD), (PAD, PAD), (0, 0)
        return Image.fromarray(np.pad(self.pixels[index], border, "reflect")), self.labels[index]


def make(folder: Path) -> None:
    """Make all of it."""
    work = folder / "airbench"
    (work / "cifar10").mkdir(parents=True)
    parts = {name: Padded.read(folder / name, SIDE, "RGB") for name in ("train", "val", "source")}
    for name, part in (("train", parts["train"]), ("test", parts["val"])):
        images, labels = torch.from_numpy(part.pixels), torch.tensor(part.labels)
        saved = {"images": images, "labels": labels, "classes": part.classes}
        torch.save(saved, work / "cifar10" / f"{name}.pt")
    for name, part in (("target", parts["train"]), ("source", parts["source"])):
        path = work / f"{name}.beton"
        write_beton(part, path, image_size=None, encoding="raw", progress=False)
    shutil.copy(folder / "pairing.json", work)
