"""Open batches in order, and the stripes of them that no thread has taken yet."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from xmix_data.backends.read_ahead import ReadAhead
from xmix_data.backends.work import Job
from xmix_data.plan import PlanRows

__all__ = ["StripeQueue", "Times"]


@dataclass
class Times:
    """Seconds and counts of what the threads did."""

    working: float = 0.0
    """Seconds of making batches, decoding included."""
    decoding: float = 0.0
    """Seconds of decoding JPEG."""
    waiting: float = 0.0
    """Seconds of waiting for room to work in."""
    major_faults: int = 0
    """Number of times that a thread had to wait for a page from the disk."""
    bytes_read: int = 0
    """Number of stored bytes of the images."""


class StripeQueue:
    """Open batches in order, and the stripes of them that no thread has taken yet.

    Args:
        rows: Rows of the batches.
        open_job: Function that makes a job of a batch's rows.
        prefetch: Most batches that are open at once.
    """

    def __init__(
        self,
        rows: ReadAhead,
        open_job: Callable[[PlanRows], Job],
        prefetch: int,
    ) -> None:
        self.read_ahead, self._open_job, self._prefetch = rows, open_job, prefetch
        self._lock = threading.Lock()
        self._has_room = threading.Condition(self._lock)
        """Condition that threads wait for: a batch may be opened."""
        self._has_batch = threading.Condition(self._lock)
        """Condition that the consumer waits for: a batch is made, or there will be none."""
        self._jobs: deque[Job] = deque()
        self._stripes: deque[tuple[Job, int, int]] = deque()
        self._exhausted = self._stopped = False
        self._error: BaseException | None = None
        self.consumer_waited = 0.0
        self.times = Times()

    def take(self, *, wait: bool = True) -> tuple[Job, int, int] | None:
        """Take a stripe to work on, or ``None`` when there will be no more. Called by a thread.

        Args:
            wait: Wait for room for another batch; otherwise return ``None`` where there is none.
        """
        with self._lock:
            while not self._stopped:
                if self._stripes:
                    return self._stripes.popleft()
                if self._exhausted:
                    return None
                if len(self._jobs) < self._prefetch:
                    self._open_next()
                elif not wait:
                    return None
                else:
                    started = time.perf_counter()
                    self._has_room.wait()
                    self.times.waiting += time.perf_counter() - started
            return None

    def _open_next(self) -> None:
        try:
            job = self._open_job(next(self.read_ahead))
        except StopIteration:
            self._exhaust(None)
        except BaseException as error:
            self._exhaust(error)
        else:
            self._jobs.append(job)
            count, size = len(job.rows), job.stripe
            self._stripes.extend((job, i, min(i + size, count)) for i in range(0, count, size))

    def _exhaust(self, error: BaseException | None) -> None:
        """Note that no more batches will be opened, and wake all who wait."""
        self._error, self._exhausted = error, True
        self._wake_all()

    def _wake_all(self) -> None:
        self._has_room.notify_all()
        self._has_batch.notify_all()

    def stripe_done(self, job: Job, times: Times, error: BaseException | None) -> bool:
        """Note that a stripe is made or has failed. Called by a thread.

        Returns:
            Whether the batch is complete.
        """
        with self._lock:
            job.error = job.error or error
            job.stripes_left -= 1
            for name, value in vars(times).items():
                setattr(self.times, name, getattr(self.times, name) + value)
            if times.major_faults:
                self.read_ahead.disk_was_waited_for()
            return job.stripes_left == 0

    def fail(self, error: BaseException) -> None:
        """Note that a thread cannot work; the consumer gets its error. Called by that thread."""
        with self._lock:
            self._jobs.clear()
            self._stripes.clear()
            self._exhaust(error)

    def job_done(self, job: Job, error: BaseException | None) -> None:
        """Note that a batch may be delivered. Called by a thread."""
        with self._lock:
            job.error = job.error or error
            job.done = True
            self._has_batch.notify_all()

    def next_job(self) -> Job:
        """Wait for the next batch, and return it. Called by the consumer.

        Raises:
            StopIteration: All batches were delivered.
        """
        started = time.perf_counter()
        with self._lock:
            while not (self._jobs and self._jobs[0].done):
                if self._stopped:
                    raise RuntimeError("this pass over the loader is closed; begin a new one")
                if self._exhausted and not self._jobs:
                    if self._error is not None:
                        raise self._error
                    raise StopIteration
                self._has_batch.wait()
            job = self._jobs.popleft()
            self._has_room.notify_all()
        self.consumer_waited += time.perf_counter() - started
        return job

    def stop(self) -> None:
        """Drop all batches, and wake all who wait: there will be no more."""
        self.read_ahead.stop()
        with self._lock:
            self._stopped = True
            self._jobs.clear()
            self._stripes.clear()
            self._wake_all()
