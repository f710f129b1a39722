"""`PlanRows`: what a backend has to deliver for consecutive positions of an epoch.

Plain arrays: sample indices, boxes, flips and λ. Everything between plan and backends speaks them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = ["SOURCE", "TARGET", "Crops", "ImageSizes", "PlanRows", "Replace"]


TARGET, SOURCE = range(2)
"""Domains of a row: the target, and the source that is mixed in."""


@dataclass(frozen=True)
class ImageSizes:
    """Heights and widths (N,) of one domain's stored images, in pixels."""

    heights: npt.NDArray[np.uint16]
    widths: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Crops:
    """Crops of one domain's images in a batch: their boxes, and whether they are mirrored."""

    boxes: npt.NDArray[np.int32]
    """(B, 4) int32 boxes: top, left, height, width in pixels of the stored image."""
    flips: npt.NDArray[np.bool_]
    """(B,) bool: whether each image is mirrored."""

    def part(self, start: int, stop: int) -> Crops:
        """Return the crops of images ``start .. stop - 1``."""
        return Crops(self.boxes[start:stop], self.flips[start:stop])


@dataclass(frozen=True)
class PlanRows:
    """Rows of a plan: what a backend has to deliver for consecutive positions of an epoch."""

    target: npt.NDArray[np.int64]
    """(B,) int64 sample indices in the target domain."""
    target_crops: Crops
    """Crops of the target images."""
    lam: npt.NDArray[np.float32]
    """(B,) float32 weight λ of each target image."""
    source: npt.NDArray[np.int64] | None = None
    """(B,) int64 sample indices in the source domain; ``None`` where there is only one domain."""
    source_crops: Crops | None = None
    """Crops of the source images; ``None`` where there is only one domain."""
    start: int = 0
    """Position in the epoch of the first row."""
    epoch: int = 0
    """The epoch that the rows are of."""
    damaged: tuple[tuple[int, int], ...] = ()
    """Images that were drawn and replaced: (`TARGET` or `SOURCE`, sample index) of each."""

    def __len__(self) -> int:
        return len(self.target)

    def part(self, start: int, stop: int) -> PlanRows:
        """Return rows ``start .. stop - 1`` of these."""
        return PlanRows(
            self.target[start:stop],
            self.target_crops.part(start, stop),
            self.lam[start:stop],
            None if self.source is None else self.source[start:stop],
            None if self.source_crops is None else self.source_crops.part(start, stop),
            self.start + start,
            self.epoch,
        )

    def of(self, domain: int) -> tuple[npt.NDArray[np.int64], Crops]:
        """Return the sample indices and crops of a domain, `TARGET` or `SOURCE`."""
        if domain == TARGET:
            return self.target, self.target_crops
        assert self.source is not None and self.source_crops is not None
        return self.source, self.source_crops

    def with_image(
        self, domain: int, item: int, index: int, box: npt.NDArray[np.int32]
    ) -> PlanRows:
        """Return a copy with another image in the place of one that is damaged.

        Args:
            domain: Domain of the image, `TARGET` or `SOURCE`.
            item: Place of the image in the rows.
            index: Sample index of the other image.
            box: (4,) int32 box of the other image.
        """
        indices, crops = self.of(domain)
        damaged = (*self.damaged, (domain, int(indices[item])))
        indices, boxes = indices.copy(), crops.boxes.copy()
        indices[item], boxes[item] = index, box
        crops = Crops(boxes, crops.flips)
        if domain == TARGET:
            return replace(self, target=indices, target_crops=crops, damaged=damaged)
        return replace(self, source=indices, source_crops=crops, damaged=damaged)


Replace = Callable[[PlanRows, int, int, int], PlanRows]
"""Function that replaces a damaged image: (rows, domain, item, attempt) -> rows.

`EpochPlan.replaced` is one.
"""
