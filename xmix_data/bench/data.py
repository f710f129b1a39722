"""Pictures to measure with: made up with the statistics of photographs, or a beton's, repeated."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xmix_data.beton import Beton

__all__ = ["MIN_IMAGES", "STORED_SIZE", "Photographs", "Repeated"]


STORED_SIZE = 256
"""Side in pixels of the images that are stored, squares."""
MIN_IMAGES = 2000
"""Least images of an epoch: its start and end should weigh as little as with a real target set."""


class Photographs:
    """A map-style dataset of pictures that JPEG finds as hard as photographs.

    Natural images have amplitudes that fall with frequency (Field, "Relations between the
    statistics of natural images", 1987); colour varies less than brightness.

    Args:
        classes: Number of classes.
        per_class: Number of images of each class.
        size: Side of the images in pixels.
        seed: Seed of the pictures.
    """

    def __init__(self, classes: int = 8, per_class: int = 64, size: int = 256, seed: int = 0):
        self.classes = [f"class {c}" for c in range(classes)]
        self.targets = [c for c in range(classes) for _ in range(per_class)]
        self._size, self._seed = size, seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        random = np.random.default_rng([self._seed, index])
        frequencies = np.hypot(
            np.fft.fftfreq(self._size)[:, None], np.fft.rfftfreq(self._size)[None, :]
        )
        amplitudes = 1 / np.maximum(frequencies, 1 / self._size) ** 1.5
        noise = random.standard_normal((3, 2, *amplitudes.shape))
        planes = np.fft.irfft2((noise[:, 0] + 1j * noise[:, 1]) * amplitudes, s=(self._size,) * 2)
        planes /= planes.std(axis=(1, 2), keepdims=True)
        grey, *colour = planes * np.array([55.0, 14.0, 14.0])[:, None, None]
        rgb = np.stack([grey + colour[0], grey - colour[0] / 2, grey + colour[1]], axis=-1)
        return np.clip(rgb + 118, 0, 255).astype(np.uint8), self.targets[index]


class Repeated:
    """A map-style dataset of a beton's images, several times over."""

    def __init__(self, beton: Beton, times: int) -> None:
        labels = np.tile(beton.labels, times)
        self._beton, self._order = beton, np.argsort(labels, kind="stable")
        self.classes, self.targets = beton.class_names, labels[self._order].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        data = self._beton.data(int(self._order[index]) % self._beton.num_samples)
        return data.tobytes(), self.targets[index]
