"""The data set as Accelerate's example has it: a folder of images named by their class.

Comes in: the folder that `tiny.make` made. Goes out, in ``accelerate`` in it: ``pets``, and a beton
of those of its images that the example trains on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from xmix_data import write_beton

SEED, SHARE = 42, 0.8
"""Of the example's own split."""


class Named:
    """Images whose names begin with their class."""

    def __init__(self, paths: list[Path], classes: list[str]) -> None:
        self.paths, self.classes = paths, classes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        return Image.open(path), self.classes.index(path.name.rpartition("_")[0])


def make(folder: Path) -> None:
    """Make all of it."""
    work = folder / "accelerate"
    pets = work / "pets"
    pets.mkdir(parents=True)
    for path in sorted((folder / "train").glob("*/*.jpg")):
        shutil.copy(path, pets / f"{path.parent.name}_{path.stem}.jpg")
    names = os.listdir(pets)  # in the order in which the example finds them
    np.random.seed(SEED)
    chosen = np.random.permutation(len(names))[: int(SHARE * len(names))]
    classes = sorted({name.rpartition("_")[0] for name in names})
    images = Named([pets / names[index] for index in chosen], classes)
    write_beton(images, work / "target.beton", progress=False)
    for path in (*folder.glob("source.beton*"), folder / "pairing.json"):
        shutil.copy(path, work)
