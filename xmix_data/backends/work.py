"""A batch on its way through the host's threads: what it needs, and what is done of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xmix_data import decode, jpeg
from xmix_data.backends.device import Slot
from xmix_data.beton import Domain
from xmix_data.errors import BetonError
from xmix_data.plan import Crops, PlanRows

__all__ = ["Job", "Side"]


@dataclass
class Side:
    """One domain's part of a batch."""

    domain: Domain
    indices: npt.NDArray[np.int64]
    images: decode.ImageTable
    status: npt.NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        domain: Domain,
        indices: npt.NDArray[np.int64],
        crops: Crops,
        shape: tuple[int, int],
        *,
        flip: bool,
    ) -> Side:
        images = decode.image_table(
            domain.addresses(indices),
            domain.sizes[indices],
            domain.modes[indices],
            domain.heights[indices],
            domain.widths[indices],
            crops.boxes,
            crops.flips & flip,
            shape,
        )
        return cls(domain, indices, images, np.zeros(len(indices), np.uint8))

    def bytes_between(self, start: int, stop: int) -> int:
        """Stored bytes of a stripe's images."""
        return int(self.images[start:stop, decode.BYTES].sum())

    @property
    def damaged(self) -> npt.NDArray[np.int64]:
        """Which images of the batch could not be made."""
        return np.flatnonzero(self.status)

    def raise_if_damaged(self) -> None:
        for item in self.damaged[:1]:
            where = self.domain.describe(int(self.indices[item]))
            problem = (
                "is not of the size in the index"
                if self.status[item] == jpeg.WRONG_SIZE
                else "cannot be decoded without a warning"
            )
            raise BetonError(f"{where} {problem}; convert it again")


@dataclass
class Job:
    """One batch on its way through the threads."""

    rows: PlanRows
    sides: list[Side]
    outs: list[torch.Tensor]
    """(B, H, W, 3) each, on the host."""
    slot: Slot | None
    stripe: int
    """Images (pairs) that a thread takes at a time."""
    stripes_left: int
    """Stripes that are not made yet."""
    done: bool
    """Whether it may be delivered."""
    error: BaseException | None = None
