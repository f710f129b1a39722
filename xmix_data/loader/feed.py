"""Batches made ahead, from one epoch into the next.

Comes in: a backend, a plan, and where to begin. Goes out: batch after batch with its place in the
epochs. What is prefetched at an epoch's end is the next epoch's beginning, so that nobody waits
there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import torch

from xmix_data.backends import STREAM_STATS, Backend, ImageStream
from xmix_data.loader.spans import Share, Span
from xmix_data.plan import Epochs, Plan, PlanRows

__all__ = ["Feed"]

_PLANNED_AT_ONCE = 512
"""Positions of an epoch; the last batch may reach beyond."""

Made = tuple[PlanRows, tuple[torch.Tensor, ...]]


class Feed:
    """An open stream of a backend, and where it is.

    Args:
        backend: Makes the batches.
        plan: Which they are.
        share: How an epoch is cut.
        epoch, position: Where the first batch begins.
        replaces: Whether another image takes the place of a damaged one.
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        share: Share,
        epoch: int,
        position: int,
        *,
        replaces: bool,
    ) -> None:
        self.backend, self.plan, self.share = backend, plan, share
        self.process = os.getpid()
        self._epochs = Epochs(plan)
        self._replaced = self._epochs.replaced if replaces else None
        # Without a new order each epoch is a reading of its own: an evaluation, features.
        self._last = None if plan.shuffle else epoch
        self._at = epoch, position
        """Where the next batch begins."""
        self._spans = _spans(share, epoch, position, self._last)
        self._next = next(self._spans, None)
        self._stream = self._opened()
        self._failed = False
        """Whether the stream has gone past what it failed at."""
        self._earlier = dict.fromkeys(STREAM_STATS, 0.0)
        """Stats of the streams before it."""
        self._peeked: Made | None = None
        self._made_on: torch.cuda.Stream | None = None
        """The CUDA stream that its images were made on."""

    def _opened(self) -> ImageStream:
        """Begin to make the batches from the next one on."""
        spans = _spans(self.share, *self._at, self._last)
        rows = _planned(self._epochs, spans, self.share.world_size == 1)
        return self.backend.stream(rows, self._replaced)

    def begins_at(self, plan: Plan, share: Share, epoch: int, position: int) -> bool:
        """Whether its next batch is the one there, as that plan has it, and in this process."""
        if plan is not self.plan or share != self.share or self.process != os.getpid():
            return False
        if self._next is None:
            return False
        first = next(share.spans(epoch, position), None)
        return first is not None and first == self._next

    @property
    def is_over(self) -> bool:
        """Whether it has no further batch."""
        return self._next is None

    @property
    def is_at_an_epochs_start(self) -> bool:
        """Whether its next batch is an epoch's first one."""
        return self._next is not None and self._next.end <= self.share.step

    def peek(self) -> Made:
        """Return the next batch, which stays the next one, also where it could not be made."""
        if self._peeked is None:
            if self._failed:
                self._earlier, self._stream = self.stats(), self._opened()
                self._failed = False
            try:
                with torch.inference_mode(False):  # a training may have the images after a look
                    self._peeked = next(self._stream)
            except BaseException:
                self._failed = True
                self._end_stream()
                raise
            self._made_on = _current_stream(self._peeked)
        elif self._made_on is not None:
            _follow(self._peeked, self._made_on)
        return self._peeked

    def take(self) -> tuple[Span, PlanRows, tuple[torch.Tensor, ...]]:
        """Return the next batch; what went wrong with it is raised now, and not before."""
        rows, images = self.peek()
        self._peeked = None
        span = self._next
        assert span is not None
        self._at, self._next = (span.epoch, span.end), next(self._spans, None)
        return span, rows, images

    def close(self) -> None:
        """End its threads, and throw away what they made ahead."""
        self._failed = False  # nothing begins anew
        self._end_stream()

    def _end_stream(self) -> None:
        if self.process == os.getpid():
            self._stream.close()

    def stats(self) -> dict[str, float]:
        """`STREAM_STATS` so far."""
        now = self._stream.stats()
        return {key: value + now[key] for key, value in self._earlier.items()}


def _current_stream(made: Made) -> torch.cuda.Stream | None:
    image = made[1][0]
    return torch.cuda.current_stream(image.device) if image.is_cuda else None


def _follow(made: Made, made_on: torch.cuda.Stream) -> None:
    """Let the caller's stream wait for the one that peeked, which may be another."""
    now = _current_stream(made)
    if now is None or now == made_on:
        return
    now.wait_stream(made_on)
    for image in made[1]:
        image.record_stream(now)


def _spans(share: Share, epoch: int, position: int, last: int | None) -> Iterator[Span]:
    """Yield the batches from a position on, epoch after epoch."""
    if not len(share):
        return
    for number in itertools.count(epoch):
        yield from share.spans(number, position)
        position = 0
        if number == last:
            return


def _planned(epochs: Epochs, spans: Iterator[Span], contiguous: bool) -> Iterator[PlanRows]:
    """Yield the rows of each batch; plan several at once, as a call costs more than its rows.

    Args:
        epochs: The plans.
        spans: The batches, in order.
        contiguous: Whether a span begins where the one before stops. Between the batches of one of
            many ranks lie those of the others, and each is planned alone.
    """
    at_once = _PLANNED_AT_ONCE if contiguous else 1
    for epoch, of_epoch in itertools.groupby(spans, lambda span: span.epoch):
        plan = epochs.of(epoch)
        ahead: list[Span] = []
        for span in of_epoch:
            ahead.append(span)
            if span.stop - ahead[0].start >= at_once:
                yield from _cut(plan.rows(ahead[0].start, span.stop), ahead)
                ahead = []
        if ahead:
            yield from _cut(plan.rows(ahead[0].start, ahead[-1].stop), ahead)


def _cut(rows: PlanRows, spans: list[Span]) -> Iterator[PlanRows]:
    first = spans[0].start
    for span in spans:
        yield rows.part(span.start - first, span.stop - first)
