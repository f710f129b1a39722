"""From an epoch's length to the positions of each batch, for one rank of many.

Comes in: how many samples an epoch has, and where to begin. Goes out: spans of positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Share", "Span"]


class Span(NamedTuple):
    """Positions ``start .. stop - 1`` of an epoch: one rank's batch."""

    epoch: int
    start: int
    """First position of the batch."""
    stop: int
    """Position behind the last of the batch."""
    end: int
    """Position in the epoch of all ranks together after this batch."""


@dataclass(frozen=True)
class Share:
    """How an epoch is cut into batches, and which part of each is this rank's.

    Args:
        samples: Of an epoch.
        batch_size: Samples of a batch, in each process.
        rank, world_size: Which process of how many.
        drop_last: Leave out an incomplete last batch; otherwise it is padded, so that no rank
            waits for another.
    """

    samples: int
    batch_size: int
    rank: int
    world_size: int
    drop_last: bool

    @property
    def step(self) -> int:
        """Samples of a step, over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches that each process gets in an epoch."""
        return self.batches_from(0)

    def batches_from(self, position: int) -> int:
        """Batches that each process gets in an epoch from a position on."""
        left = self.samples - position
        return left // self.step if self.drop_last else -(-left // self.step)

    @property
    def own_samples(self) -> int:
        """Samples that each process gets in an epoch, padding included."""
        full, rest = divmod(self.samples, self.step)
        tail = 0 if self.drop_last else -(-rest // self.world_size)
        return full * self.batch_size + tail

    def has_batch(self, position: int) -> bool:
        """Whether an epoch has a batch from a position on."""
        return self.batches_from(position) > 0

    def spans(self, epoch: int, position: int = 0) -> Iterator[Span]:
        """Yield the batches of an epoch from a position on, at which all ranks together are."""
        while self.has_batch(position):
            count = min(self.step, self.samples - position)
            share = -(-count // self.world_size)
            start = position + self.rank * share
            position += count
            yield Span(epoch, start, start + share, position)
