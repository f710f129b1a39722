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
"""The domains of a row."""


@dataclass(frozen=True)
class ImageSizes:
    """Stored heights and widths (N,) in pixels of one domain's images."""

    heights: npt.NDArray[np.uint16]
    widths: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Crops:
    """Where one domain's images of a batch are cut out, and whether they are mirrored."""

    boxes: npt.NDArray[np.int32]
    """(B, 4): top, left, height, width in pixels of the stored image."""
    flips: npt.NDArray[np.bool_]
    """(B,)"""

    def part(self, start: int, stop: int) -> Crops:
        """Those of images ``start .. stop - 1``."""
        return Crops(self.boxes[start:stop], self.flips[start:stop])


@dataclass(frozen=True)
class PlanRows:
    """What a backend has to deliver for consecutive positions of an epoch."""

    target: npt.NDArray[np.int64]
    """(B,) sample indices in the target domain."""
    target_crops: Crops
    lam: npt.NDArray[np.float32]
    """(B,) weight of the target image."""
    source: npt.NDArray[np.int64] | None = None
    """(B,) sample indices in the source domain; ``None`` where there is only one domain."""
    source_crops: Crops | None = None
    start: int = 0
    """Position in the epoch of the first row."""
    damaged: tuple[tuple[int, int], ...] = ()
    """Images that were drawn and replaced: (`TARGET` or `SOURCE`, sample index) of each."""

    def __len__(self) -> int:
        return len(self.target)

    def part(self, start: int, stop: int) -> PlanRows:
        """Rows ``start .. stop - 1`` of these."""
        return PlanRows(
            self.target[start:stop],
            self.target_crops.part(start, stop),
            self.lam[start:stop],
            None if self.source is None else self.source[start:stop],
            None if self.source_crops is None else self.source_crops.part(start, stop),
            self.start + start,
        )

    def of(self, domain: int) -> tuple[npt.NDArray[np.int64], Crops]:
        """Sample indices and crops of `TARGET` or `SOURCE`."""
        if domain == TARGET:
            return self.target, self.target_crops
        assert self.source is not None and self.source_crops is not None
        return self.source, self.source_crops

    def with_image(
        self, domain: int, item: int, index: int, box: npt.NDArray[np.int32]
    ) -> PlanRows:
        """A copy with another image in one place, because the one that was there is damaged."""
        indices, crops = self.of(domain)
        damaged = (*self.damaged, (domain, int(indices[item])))
        indices, boxes = indices.copy(), crops.boxes.copy()
        indices[item], boxes[item] = index, box
        crops = Crops(boxes, crops.flips)
        if domain == TARGET:
            return replace(self, target=indices, target_crops=crops, damaged=damaged)
        return replace(self, source=indices, source_crops=crops, damaged=damaged)


Replace = Callable[[PlanRows, int, int, int], PlanRows]
"""`EpochPlan.replaced`."""
