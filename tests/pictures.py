"""Pictures made from nothing, datasets of them, and betons of these, for all tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from xmix_data import Beton, write_beton
from xmix_data.beton.layout import JPG

Pixels = npt.NDArray[np.uint8]


def picture(
    height: int, width: int, seed: int = 0, *, coarse: int = 4, shades: tuple[int, int] = (0, 256)
) -> Pixels:
    """Smooth random pixels, of as few numbers as ``coarse`` squared: JPEG costs them little."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(*shades, (coarse, coarse, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image | Pixels, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels_of(beton: Beton, index: int) -> Pixels:
    """What a beton holds, JPEGs as Pillow decodes them."""
    if beton.modes[index] == JPG:
        return np.asarray(Image.open(io.BytesIO(beton.data(index).tobytes())).convert("RGB"))
    return np.array(beton.data(index)).reshape(beton.heights[index], beton.widths[index], 3)


def written(images: Any, path: Path, **options: Any) -> Beton:
    """A beton that this process writes by itself, and in silence."""
    return write_beton(images, path, **{"num_workers": 0, "progress": False, **options})


class Images:
    """A map-style dataset of smooth random pictures: JPEG keeps them nearly as they are."""

    def __init__(
        self, counts: Sequence[int], prefix: str, size: tuple[int, int] = (40, 40), seed: int = 0
    ) -> None:
        self.classes = [f"{prefix}{i}" for i in range(len(counts))]
        self.targets = [label for label, count in enumerate(counts) for _ in range(count)]
        random = np.random.default_rng(seed)
        self.pixels = []
        for _ in self.targets:
            coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
            self.pixels.append(np.asarray(image))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        return self.pixels[index], self.targets[index]


class Numbered:
    """Images that tell which they are: the first two channels hold the index."""

    def __init__(self, counts: Sequence[int], prefix: str, size: int = 24) -> None:
        self.classes = [f"{prefix}{i}" for i in range(len(counts))]
        self.targets = [label for label, count in enumerate(counts) for _ in range(count)]
        self._size = size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Pixels, int]:
        image = np.zeros((self._size, self._size, 3), np.uint8)
        image[..., 0], image[..., 1] = index % 256, index // 256
        return image, self.targets[index]

    @staticmethod
    def indices(images: torch.Tensor) -> list[int]:
        """Which images a uint8 batch (B, 3, H, W) shows."""
        corner = images[:, :2, 0, 0].long()
        return (corner[:, 0] + 256 * corner[:, 1]).tolist()
