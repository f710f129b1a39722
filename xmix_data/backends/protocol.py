"""Backends: from the plan's rows to image tensors on the device, behind one small protocol.

Comes in: an iterator of `PlanRows`, one a batch. Goes out: for each of them, in order, the
images. All backends read the same betons and follow the same plan; they differ in who decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xmix_data.errors import BetonError

if TYPE_CHECKING:
    import torch

    from xmix_data.beton import Domain
    from xmix_data.plan import Crop, PlanRows, Replace

__all__ = ["STREAM_STATS", "Backend", "ImageStream", "Spec", "replacement"]


STREAM_STATS = (
    "consumer_waited_s",
    "loader_waited_s",
    "decode_s",
    "copy_s",
    "bytes_read",
    "disk_waits",
)
"""Names of the numbers that a stream counts; the loader's ``stats`` explains them."""


@dataclass(frozen=True)
class Spec:
    """Options of a backend, checked by the loader."""

    target: Domain
    """Domain that an epoch passes over."""
    source: Domain | None
    """Domain that is mixed in; ``None`` for a loader of one domain."""
    crop: Crop
    """Crop of the images."""
    mix: bool
    """Whether target and source become one image."""
    device: torch.device
    """Device that batches arrive on."""
    dtype: torch.dtype
    """Type of the images; uint8 for crops as they are decoded."""
    mean: tuple[float, float, float]
    """Mean of each channel, in 0..1 units."""
    std: tuple[float, float, float]
    """Standard deviation of each channel, in 0..1 units."""
    num_workers: int
    """Number of decoding threads."""
    prefetch: int
    """Number of batches made ahead."""


class ImageStream(Protocol):
    """Protocol of one pass: its batches, in order."""

    def __next__(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        """Return the next rows with their images: (mixed,), (target,) or (target, source).

        Raises:
            StopIteration: The rows are exhausted.
            BetonError: An image is damaged (and so are all that might replace it); names beton,
                index and class.
        """

    def close(self) -> None:
        """Stop all work and free what it used; may be called twice."""

    def stats(self) -> dict[str, float]:
        """Return the `STREAM_STATS` of the pass so far."""


class Backend(Protocol):
    """Protocol of a backend: it makes image streams, and holds no thread while none is open."""

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> ImageStream:
        """Begin a pass.

        Args:
            rows: Rows of the batches, one item a batch.
            replace: Function that names another image for one that is damaged; ``None`` stops at
                it. The rows that the stream gives back have the replacements, and name in
                ``damaged`` what they stand for.
        """


def replacement(
    replace: Replace, rows: PlanRows, side: int, item: int, attempt: int, domain: Domain
) -> PlanRows:
    """Return rows with another image in the place of a damaged one, as ``replace`` names it.

    Raises:
        BetonError: There is no other image.
    """
    try:
        return replace(rows, side, item, attempt)
    except IndexError:
        where = domain.describe(int(rows.of(side)[0][item]))
        raise BetonError(
            f"{where} cannot be decoded, and so cannot the {attempt} others of its class that "
            "might replace it; convert the class again"
        ) from None
