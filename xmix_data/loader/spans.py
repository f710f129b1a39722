"""From an epoch's length to the positions of each batch, for one rank of many.

Comes in: how many samples an epoch has, and where to begin. Goes out: spans of positions, and the
plan's rows for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xmix_data.plan import EpochPlan, PlanRows

__all__ = ["Span", "batch_spans", "planned_rows"]

_PLANNED_AT_ONCE = 512
"""Number of positions that are planned at once; the last batch may reach beyond."""


class Span(NamedTuple):
    """Positions ``start .. stop - 1`` of an epoch: one rank's batch."""

    start: int
    """First position of the batch."""
    stop: int
    """Position behind the last of the batch."""
    end: int
    """Position in the epoch of all ranks together after this batch."""


def batch_spans(
    samples: int, position: int, *, batch_size: int, rank: int, world_size: int, drop_last: bool
) -> Iterator[Span]:
    """Yield the batches of a rank from a position on.

    Args:
        samples: Number of samples of the epoch.
        position: Number of samples that all ranks together have had.
        batch_size: Samples of a batch of each rank.
        rank, world_size: The rank, and how many there are.
        drop_last: Leave out an incomplete last batch; otherwise it is padded, so that no rank
            waits for another.
    """
    step = batch_size * world_size
    while position < samples:
        count = min(step, samples - position)
        if count < step and drop_last:
            return
        share = -(-count // world_size)
        start = position + rank * share
        position += count
        yield Span(start, start + share, position)


def planned_rows(plan: EpochPlan, spans: Iterator[Span], *, contiguous: bool) -> Iterator[PlanRows]:
    """Yield the rows of each batch; plan several at once, as a call costs more than its rows.

    Args:
        plan: Plan of the epoch.
        spans: Positions of the batches, in order.
        contiguous: Whether each span begins where the one before stops. Between the batches of one
            of many ranks lie those of the others, and each is planned alone.
    """
    at_once = _PLANNED_AT_ONCE if contiguous else 1
    ahead: list[Span] = []
    while True:
        for span in spans:
            ahead.append(span)
            if span.stop - ahead[0].start >= at_once:
                break
        if not ahead:
            return
        first = ahead[0].start
        rows = plan.rows(first, ahead[-1].stop)
        for span in ahead:
            yield rows.part(span.start - first, span.stop - first)
        ahead.clear()
