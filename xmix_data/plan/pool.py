"""`SourcePool`: for each target class the source images that it draws from (XMixup, Eq. 3).

Comes in: labels and draws. Goes out: source indices for uniform numbers in [0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xmix_data.pairing import Draw
from xmix_data.plan.rows import ImageSizes

__all__ = ["SourcePool"]


class SourcePool:
    """Source images that each target class draws from, uniformly (Eq. 3).

    Args:
        source_labels: (N,) class id of every source image.
        draws: For each target class the source classes that it draws from.
        sizes: Sizes of the source images.
        seed: Seed of the random order in which `Draw.first` counts a class's images.
    """

    def __init__(
        self,
        source_labels: npt.NDArray[np.int64],
        draws: Sequence[Sequence[Draw]],
        sizes: ImageSizes,
        seed: int = 0,
    ) -> None:
        self.sizes = sizes
        self._labels = source_labels
        order = np.argsort(source_labels, kind="stable")
        labels = np.asarray(source_labels)[order]

        shuffled: dict[int, npt.NDArray[np.int64]] = {}

        def images_of(draw: Draw) -> npt.NDArray[np.int64]:
            start, stop = np.searchsorted(labels, (draw.label, draw.label + 1))
            if draw.first is None:
                return np.asarray(order[start:stop])
            # The key knows no class ids: a beton of fewer classes draws the same images.
            if stop - start not in shuffled:
                keys = np.random.Philox(key=np.array([seed, 1], np.uint64)).random_raw(stop - start)
                shuffled[stop - start] = np.argsort(keys, kind="stable")
            part = shuffled[stop - start][draw.first : draw.first + draw.images]
            return np.asarray(order[start + np.sort(part)])

        images = [np.concatenate([images_of(draw) for draw in drawn]) for drawn in draws]
        self.counts = np.array([len(pool) for pool in images], np.int64)
        """(n,) int64 number of images that each target class draws from."""
        self._starts = np.cumsum(self.counts) - self.counts
        self.images = np.concatenate(images)
        """(K,) source sample indices, target class after target class."""

    def pick(
        self, target_labels: npt.NDArray[np.int64], uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Pick source sample indices (B,) by target labels and uniform numbers in [0, 1)."""
        offsets = np.floor(uniforms * self.counts[target_labels]).astype(np.int64)
        return np.asarray(self.images[self._starts[target_labels] + offsets])

    def alike(self, target_label: int, index: int) -> npt.NDArray[np.int64]:
        """Find the images of a source image's class that a target class draws from, (K,)."""
        start = self._starts[target_label]
        pool = self.images[start : start + self.counts[target_label]]
        return np.asarray(pool[self._labels[pool] == self._labels[index]])
