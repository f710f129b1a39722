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
"""What a stream counts; the loader's ``stats`` explains it."""


@dataclass(frozen=True)
class Spec:
    """What a backend needs to know, checked by the loader."""

    target: Domain
    source: Domain | None
    crop: Crop
    mix: bool
    """Whether target and source become one image."""
    device: torch.device
    dtype: torch.dtype
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_workers: int
    prefetch: int


class ImageStream(Protocol):
    """Batches of one pass, in order."""

    def __next__(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        """The next rows with their images: (mixed,), (target,) or (target, source).

        Raises:
            StopIteration: The rows are exhausted.
            BetonError: An image is damaged (and so are all that might replace it); names beton,
                index and class.
        """

    def close(self) -> None:
        """Stop all work and free what it used; may be called twice."""

    def stats(self) -> dict[str, float]:
        """`STREAM_STATS` of the pass so far."""


class Backend(Protocol):
    """Makes image streams; holds no thread while none is open."""

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> ImageStream:
        """Begin a pass.

        Args:
            rows: One item a batch.
            replace: Names another image for one that is damaged; ``None`` stops at it. The rows
                that the stream gives back have the replacements, and name in ``damaged`` what
                they stand for.
        """


def replacement(
    replace: Replace, rows: PlanRows, side: int, item: int, attempt: int, domain: Domain
) -> PlanRows:
    """What ``replace`` gives.

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
