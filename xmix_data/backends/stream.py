"""A stream of batches by host threads, and the end of its threads.

Comes in: a backend and the rows of batches. Goes out: their images, in order. The threads end with
the stream: when it is closed, garbage, or the process exits.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from xmix_data.backends.device import DeviceStage
from xmix_data.backends.queue import BatchQueue
from xmix_data.errors import BetonError
from xmix_data.plan import PlanRows, Replace
from xmix_data.threads import name_this_thread

if TYPE_CHECKING:
    from xmix_data.backends.host import HostBackend

__all__ = ["HostStream"]


_streams: weakref.WeakSet[HostStream] = weakref.WeakSet()
"""Those whose threads may run."""


def _end_all() -> None:
    """End all threads before weakref's own function at exit goes over its register.

    The planners would change that under its hands: each batch's memory is registered there.
    """
    for stream in list(_streams):
        stream.close()


def _end(
    queue: BatchQueue,
    threads: Sequence[threading.Thread],
    device_stage: DeviceStage | None,
    process: int,
) -> None:
    if os.getpid() != process:
        return  # a forked child has none of the threads, and perhaps a lock that stays held
    if threading.current_thread() in threads:
        # The garbage collector runs anywhere, also where one of these threads is about to wait: it
        # can neither wake itself nor wait for its own end.
        rest = (queue, threads, device_stage, process)
        threading.Thread(target=_end, args=rest, name="xmix-end", daemon=True).start()
        return
    queue.close()
    for thread in threads:
        if thread.ident is not None:  # it may not have started
            thread.join()
    if device_stage is not None:
        device_stage.recover()


def _on(device: torch.device, work: Callable[..., None], *args: object) -> None:
    """Run what a thread does.

    A new thread begins on the first GPU: what it asks of an event or of pinned memory would make a
    context there, of half a gigabyte, in every process of a job.
    """
    name_this_thread()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    work(*args)


class HostStream:
    """Batches in order; the threads end with it, at the latest as garbage or with the process."""

    def __init__(
        self, backend: HostBackend, rows: Iterator[PlanRows], replace: Replace | None
    ) -> None:
        self._backend = backend
        self._queue = queue = BatchQueue(
            rows, backend.open, backend.read_ahead, backend.spec.prefetch, backend.workers
        )
        device = backend.spec.device
        # The planner first: it is what ends the others.
        self._threads = [
            threading.Thread(target=_on, args=(device, queue.plan), name="xmix-plan", daemon=True),
            *(
                threading.Thread(
                    target=_on,
                    args=(device, backend.run, queue, times, replace),
                    name=f"{backend.thread_name}-{number}",
                    daemon=True,
                )
                for number, times in enumerate(queue.times)
            ),
        ]
        self._process = os.getpid()
        if backend.device_stage is not None:
            backend.device_stage.begin()
        self._end = weakref.finalize(
            self, _end, queue, self._threads, backend.device_stage, self._process
        )
        # After weakref's, which registers with the first finalizer: the last one is called first.
        atexit.unregister(_end_all)
        atexit.register(_end_all)
        _streams.add(self)
        for thread in self._threads:
            thread.start()

    def __next__(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        if os.getpid() != self._process:
            raise RuntimeError("this pass belongs to the process that forked; begin a new one")
        job = self._queue.take()
        if isinstance(job.error, BetonError):
            raise job.error
        if job.error is not None:
            raise RuntimeError("a decoding thread failed") from job.error
        for side in job.sides:
            side.raise_if_damaged()
        return job.rows, self._backend.deliver(job)

    def close(self) -> None:
        self._end()

    def stats(self) -> dict[str, float]:
        times = self._queue.times
        decoding = sum(each.decoding for each in times)
        return {
            "consumer_waited_s": self._queue.consumer_waited,
            "loader_waited_s": sum(each.waiting for each in times) / len(times),
            "decode_s": decoding,
            "copy_s": sum(each.working for each in times) - decoding,
            "bytes_read": sum(each.bytes_read for each in times),
            "disk_waits": sum(each.major_faults for each in times),
        }
