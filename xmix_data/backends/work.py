"""A batch on its way through the host's threads: what it needs, and what is done of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

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
    """Domain of the images."""
    indices: npt.NDArray[np.int64]
    """(B,) int64 sample indices in the domain."""
    images: decode.ImageTable
    """(B, 11) int64 table that the kernels read."""
    status: npt.NDArray[np.uint8]
    """(B,) uint8 status of each image, see `xmix_data.jpeg`; `xmix_data.jpeg.OK` to begin with."""

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
        """Describe a domain's part of a batch to the kernels.

        Args:
            domain: The domain.
            indices: (B,) sample indices in the domain.
            crops: Crops of these images.
            shape: Height and width of the crops.
            flip: Whether the kernels mirror crops.
        """
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
        """Count the stored bytes of images ``start .. stop - 1``."""
        return int(self.images[start:stop, decode.BYTES].sum())

    @property
    def damaged(self) -> npt.NDArray[np.int64]:
        """Places (K,) in the batch of the images that could not be made."""
        return np.flatnonzero(self.status)

    def raise_if_damaged(self) -> None:
        """Raise an error if an image of the batch could not be made.

        Raises:
            BetonError: An image is damaged; names beton, index and class of the first.
        """
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
    """Rows of the batch."""
    sides: list[Side]
    """Parts of the target and, where there is one, of the source."""
    outs: list[torch.Tensor]
    """Tensors (B, H, W, 3) on the host that the threads write to."""
    slot: Slot | None
    """Buffers on the way to a GPU; ``None`` on the CPU."""
    stripe: int
    """Number of images (pairs) that a thread takes at a time."""
    stripes_left: int
    """Stripes that are not made yet."""
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    made: threading.Event = field(default_factory=threading.Event)
    """Set when it may be delivered, or has failed."""

    def stripe_made(self, error: BaseException | None) -> bool:
        """Note that a stripe is made, or has failed; whether it was the last one."""
        with self.lock:
            self.error = self.error or error
            self.stripes_left -= 1
            return self.stripes_left == 0
