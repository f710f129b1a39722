"""Batches in order: one thread opens them, others make their stripes, the consumer takes them.

    rows ──▶ planner ──▶ opened batches, in order ──▶ consumer
                │                  ▲ made
                └──▶ stripes ──▶ workers

Comes in: `PlanRows`, one a batch. Goes out: `Job`s whose images are made. Queues alone connect the
threads: nothing is planned, reserved or computed while a lock is held.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

from xmix_data.backends.profiling import ProfiledRange
from xmix_data.backends.work import Job
from xmix_data.plan import PlanRows

__all__ = ["BatchQueue", "Closed", "Stripe", "Times"]

_CALM_BATCHES = 16
"""After so many batches on end that were made when they were asked for, nobody is in a hurry."""
_READ_AHEAD_BATCHES = 4
"""How many batches, beyond those that are open, the system is asked to read."""

Stripe = tuple[Job, int, int]
"""Images ``start .. stop - 1`` of a batch."""


class Closed(RuntimeError):
    """The batches were closed while somebody waited for one."""


@dataclass
class Times:
    """Where a thread's seconds went."""

    working: float = 0.0
    """Seconds of making batches, decoding included."""
    decoding: float = 0.0
    """Seconds of decoding JPEG."""
    waiting: float = 0.0
    """Seconds of waiting for room to work in."""
    major_faults: int = 0
    """How often it had to wait for a page from the disk."""
    bytes_read: int = 0
    """Number of stored bytes of the images."""


class BatchQueue:
    """The open batches of a stream.

    Args:
        rows: Of the batches, in order.
        open_job: Reserves what a batch needs; is told whether one thread shall make all of it.
        read_ahead: Asks the system for a batch's bytes, without waiting for them.
        prefetch: How many batches are open at once.
        workers: How many threads take stripes.
    """

    def __init__(
        self,
        rows: Iterator[PlanRows],
        open_job: Callable[[PlanRows, bool], Job],
        read_ahead: Callable[[PlanRows], None],
        prefetch: int,
        workers: int,
    ) -> None:
        self._rows, self._open_job, self._read_ahead = rows, open_job, read_ahead
        self._workers = workers
        self._room: SimpleQueue[bool] = SimpleQueue()
        """One ``True`` for each batch that may be opened; ``False`` ends the planner."""
        for _ in range(prefetch):
            self._room.put(True)
        self._opened: SimpleQueue[Job | BaseException | None] = SimpleQueue()
        """Batches in order, what went wrong in place of the next one, ``None`` at the end."""
        self.stripes: SimpleQueue[Stripe | None] = SimpleQueue()
        """For the workers; ``None`` ends one of them."""
        self.closed = False
        self.failure: BaseException | None = None
        """Why a thread cannot work at all."""
        self.times = [Times() for _ in range(workers)]
        self.consumer_waited = 0.0
        self._calm: int | None = 0
        """Batches since the last one that came late; ``None``: fewer threads were too slow."""

    @property
    def is_calm(self) -> bool:
        """Whether batches are ready long before they are asked for.

        Then one thread may make a whole batch. To wake several for its stripes takes the
        interpreter's lock from the consumer each time, for which a training waits that launches
        its kernels one by one.
        """
        return self._calm is not None and self._calm >= _CALM_BATCHES

    def _note(self, *, late: bool) -> None:
        if self._calm is None:
            return
        if not late:
            self._calm += 1
        else:
            self._calm = None if self.is_calm else 0

    def plan(self) -> None:
        """Open batches for as long as there are some; the planner's thread."""
        ahead: deque[PlanRows] = deque()
        try:
            while not self.closed:
                # Later batches are planned and read ahead while no further one may be opened.
                while len(ahead) <= _READ_AHEAD_BATCHES and (not ahead or self._room.empty()):
                    with ProfiledRange("xmix: plan"):
                        rows = next(self._rows, None)
                        if rows is None:
                            break
                        self._read_ahead(rows)
                    ahead.append(rows)
                if not ahead or not self._has_room():
                    break
                with ProfiledRange("xmix: plan"):
                    job = self._open_job(ahead.popleft(), self.is_calm)
                self._opened.put(job)
                count = len(job.rows)
                for start in range(0, count, job.stripe):
                    self.stripes.put((job, start, min(start + job.stripe, count)))
        except BaseException as error:
            self._opened.put(error)
        finally:
            self._opened.put(None)
            for _ in range(self._workers):
                self.stripes.put(None)

    def _has_room(self) -> bool:
        """Wait until a further batch may be opened; false at the end."""
        with ProfiledRange("xmix: wait for the consumer"):
            return self._room.get()

    def take(self) -> Job:
        """Wait for the next batch.

        Raises:
            StopIteration: There are no more.
            Closed: `close` was called.
        """
        started = time.perf_counter()
        late = self._opened.empty()
        with ProfiledRange("xmix: wait for a batch"):
            job = self._opened.get()
            if isinstance(job, Job):
                self._note(late=late or not job.made.is_set())
                job.made.wait()
        self.consumer_waited += time.perf_counter() - started
        if self.closed:
            self._opened.put(None)  # whoever asks again, or waits too, hears it as well
            raise Closed("this pass over the loader is closed; begin a new one")
        if self.failure is not None:
            raise self.failure
        if job is None:
            self._opened.put(None)
            raise StopIteration
        if not isinstance(job, Job):
            raise job
        self._room.put(True)
        return job

    def close(self) -> None:
        """End all threads soon; what they still find is not made any more."""
        self.closed = True
        self._room.put(False)
