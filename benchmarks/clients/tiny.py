"""A data set that trains in seconds: made up pictures, with a colour for each class.

Comes in: an empty folder. Goes out, in it: ``train`` and ``val`` (target) and ``source`` as class
folders, ``target.beton``, ``test.beton``, ``source.beton`` and ``pairing.json`` made of them, and
lists of the target's images as Transfer-Learning-Library's EuroSAT has them.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from typing_extensions import Self

from xmix_data import PairedClass, Pairing, write_beton
from xmix_data.bench import Photographs

TARGET_CLASSES, SOURCE_CLASSES = 10, 12
TRAIN, VAL, SOURCE = 16, 4, 16
"""Number of images of each class."""


class Pictures:
    """A map-style dataset of pictures of one size."""

    def __init__(
        self, pixels: npt.NDArray[np.uint8], labels: list[int], classes: list[str]
    ) -> None:
        self.pixels, self.labels, self.classes = pixels, labels, classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]).convert("RGB"), self.labels[index]

    @classmethod
    def read(cls, folder: Path, side: int, mode: str) -> Self:
        """Read a class folder; modes are Pillow's."""
        classes = sorted(path.name for path in folder.iterdir())
        paths = sorted(folder.glob("*/*.jpg"))
        images = [Image.open(path).convert(mode).resize((side, side)) for path in paths]
        labels = [classes.index(path.parent.name) for path in paths]
        return cls(np.stack([np.asarray(image) for image in images]), labels, classes)


def make(folder: Path) -> None:
    """Make all of it."""
    parts = (
        ("train", "target", TARGET_CLASSES, TRAIN),
        ("val", "target", TARGET_CLASSES, VAL),
        ("source", "source", SOURCE_CLASSES, SOURCE),
    )
    for seed, (part, domain, classes, images) in enumerate(parts):
        _pictures(folder / part, domain, classes, images, seed)
    for part, beton in (("train", "target"), ("val", "test"), ("source", "source")):
        write_beton(folder / part, folder / f"{beton}.beton", progress=False)
    pairs = {
        f"target{c:02}": [PairedClass(f"source{c:02}", 1.0, SOURCE)] for c in range(TARGET_CLASSES)
    }
    Pairing(pairs).save(folder / "pairing.json")
    _lists(folder)


def _pictures(folder: Path, domain: str, classes: int, images: int, seed: int) -> None:
    noise = Photographs(classes, images, seed=seed)
    for index in range(len(noise)):
        pixels, label = noise[index]
        colour = 255 * np.array(colorsys.hsv_to_rgb(label / classes, 0.8, 0.8))
        mixed = (0.7 * pixels + 0.3 * colour).astype(np.uint8)
        path = folder / f"{domain}{label:02}" / f"{index:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mixed).save(path, quality=90)


def _lists(folder: Path) -> None:
    lists = folder / "eurosat" / "imagelist"
    lists.mkdir(parents=True)
    for part, name in (("train", "train[:21600].txt"), ("val", "train[21600:].txt")):
        paths = sorted((folder / part).glob("*/*.jpg"))
        labels = [int(path.parent.name[-2:]) for path in paths]
        lines = [f"{path} {label}\n" for path, label in zip(paths, labels, strict=True)]
        (lists / name).write_text("".join(lines))
