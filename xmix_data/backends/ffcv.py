"""The default backend: compiled kernels decode betons on host threads, with no lock between them.

Threads take stripes of a few images from the batches that are open, in order. On the CPU a kernel
decodes, crops, normalises and mixes in one go; for a GPU the host only decodes and crops, and the
rest is arithmetic on the device.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xmix_data import decode, mixing
from xmix_data.backends import Spec
from xmix_data.beton import Domain
from xmix_data.errors import BetonError
from xmix_data.plan import Crops, PlanRows

__all__ = ["FfcvBackend"]

_log = logging.getLogger("xmix_data")

_STRIPE = 8
"""Images (pairs) that a thread takes at a time."""
_SLOW_COMPILATION_S = 2.0


@dataclass
class _Side:
    """One domain's part of a batch."""

    domain: Domain
    indices: npt.NDArray[np.int64]
    images: decode.Images
    crops: Crops
    status: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, domain: Domain, indices: npt.NDArray[np.int64], crops: Crops) -> _Side:
        images = (
            domain.addresses(indices),
            domain.sizes[indices],
            domain.modes[indices],
            domain.heights[indices],
            domain.widths[indices],
        )
        return cls(domain, indices, images, crops, np.zeros(len(indices), np.uint8))

    def raise_if_damaged(self) -> None:
        wrong = np.flatnonzero(self.status)
        if len(wrong):
            where = self.domain.describe(int(self.indices[wrong[0]]))
            problem = (
                "is not of the size in the index"
                if self.status[wrong[0]] == decode.WRONG_SIZE
                else "cannot be decoded without a warning"
            )
            raise BetonError(f"{where} {problem}; convert it again")


@dataclass
class _Job:
    """One batch on its way through the threads."""

    rows: PlanRows
    sides: list[_Side]
    outs: list[torch.Tensor]
    """(B, H, W, 3) each: float32 or uint8 on the host."""
    slot: _Slot | None
    remaining: int
    """Stripes that are not finished."""
    error: BaseException | None = None


@dataclass
class _Slot:
    """Pinned host memory for one batch on its way to a GPU."""

    crops: list[torch.Tensor]
    copied: torch.cuda.Event = field(default_factory=torch.cuda.Event)


class _Recycler:
    """Host memory for the caller's batches, given out again once nobody holds the batch.

    Fresh memory costs a page fault every 4 KB, more than mixing does. A tensor made of an array
    holds a reference to it for as long as any view of the tensor lives; so an array that only
    this pool refers to is free, and a batch that the caller keeps is never touched.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._arrays: list[npt.NDArray[Any]] = []

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array with arbitrary content."""
        for place in range(len(self._arrays)):
            if _references(self._arrays, place) == _FREE and self._arrays[place].shape == shape:
                return self._arrays[place]
        array = np.empty(shape, dtype)
        self._arrays.append(array)
        if len(self._arrays) > self._kept:
            del self._arrays[0]
        return array


def _references(arrays: Sequence[Any], place: int) -> int:
    return sys.getrefcount(arrays[place])


_FREE = _references([np.empty(0)], 0)
"""What `_references` says of an array that only its list refers to (Python's versions differ)."""


class FfcvBackend:
    """See the module; buffers that outlive a pass live here, threads live with their stream."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        domains = [spec.target] if spec.source is None else [spec.target, spec.source]
        self._largest = max(
            int((d.heights.astype(np.int64) * d.widths).max(initial=0)) for d in domains
        )
        self._tallest = max(int(d.heights.max(initial=0)) for d in domains)
        self.on_gpu = spec.device.type == "cuda"
        self._scale, self._shift = mixing.scale_and_shift(spec.mean, spec.std)
        self._recycler = _Recycler(2 * (spec.prefetch + 2))
        self._free_slots: deque[_Slot] = deque()
        if self.on_gpu:
            self.copy_stream = torch.cuda.Stream(spec.device)  # type: ignore[no-untyped-call]
            self.device_scale, self.device_shift = (
                torch.from_numpy(x).float().to(spec.device) for x in (self._scale, self._shift)
            )
        self._compile()

    def stream(self, rows: Iterator[PlanRows]) -> FfcvStream:
        return FfcvStream(self, rows)

    def workspace(self) -> decode.Workspace:
        return decode.Workspace(self._largest, self._tallest, self.spec.crop.shape)

    def _compile(self) -> None:
        """Compile or load the kernel now, on an empty batch, rather than in the first real one."""
        started = time.monotonic()
        none = np.zeros(0, np.int64)
        crops = Crops(np.zeros((0, 4), np.int32), np.zeros(0, bool))
        pair = self.spec.source is not None
        rows = PlanRows(none, crops, np.zeros(0, np.float32), *((none, crops) if pair else ()))
        self.work(self._job(rows, [self._empty(0) for _ in range(2)], None), self.workspace(), 0, 0)
        seconds = time.monotonic() - started
        if seconds > _SLOW_COMPILATION_S:
            _log.info("compiled the decoding kernels in %.0f s; later runs load them", seconds)

    def _empty(self, count: int) -> torch.Tensor:
        """Host memory for the images of a batch."""
        shape = (count, *self.spec.crop.shape, 3)
        if self.on_gpu:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        dtype = np.uint8 if self.spec.dtype == torch.uint8 else np.float32
        return torch.from_numpy(self._recycler.array(shape, dtype))

    def open(self, rows: PlanRows) -> _Job:
        """Reserve what the batch needs."""
        outs_needed = 1 if (self.spec.mix and not self.on_gpu) or self.spec.source is None else 2
        if not self.on_gpu:
            return self._job(rows, [self._empty(len(rows)) for _ in range(outs_needed)], None)
        if self._free_slots:
            slot = self._free_slots.popleft()
            slot.copied.synchronize()
        else:
            slot = _Slot([])
        if not slot.crops or len(slot.crops[0]) < len(rows):
            slot.crops = [self._empty(len(rows)) for _ in range(outs_needed)]
        return self._job(rows, [crops[: len(rows)] for crops in slot.crops], slot)

    def _job(self, rows: PlanRows, outs: list[torch.Tensor], slot: _Slot | None) -> _Job:
        sides = [_Side.of(self.spec.target, rows.target, rows.target_crops)]
        if self.spec.source is not None:
            assert rows.source is not None and rows.source_crops is not None
            sides.append(_Side.of(self.spec.source, rows.source, rows.source_crops))
        return _Job(rows, sides, outs, slot, -(-len(rows) // _STRIPE))

    def work(self, job: _Job, workspace: decode.Workspace, start: int, stop: int) -> None:
        """Make images ``start .. stop - 1`` of a batch; runs without the GIL."""
        handle = workspace.decompressor.handle
        buffers = (workspace.target, workspace.source)
        outs = [out.numpy() for out in job.outs]
        if self.spec.mix and not self.on_gpu:
            target, source = job.sides
            decode.mix_images(
                handle, start, stop,
                target.images, target.crops.boxes, target.crops.flips, workspace.target,
                source.images, source.crops.boxes, source.crops.flips, workspace.source,
                job.rows.lam, self._scale, self._shift, outs[0], target.status, source.status,
            )  # fmt: skip
            return
        for side, work, out in zip(job.sides, buffers, outs, strict=False):
            flips = np.zeros_like(side.crops.flips) if self.on_gpu else side.crops.flips
            if out.dtype == np.uint8:
                decode.crop_images(
                    handle, start, stop, side.images, side.crops.boxes, flips, work, out,
                    side.status,
                )  # fmt: skip
            else:
                decode.normalise_images(
                    handle, start, stop, side.images, side.crops.boxes, flips, work, self._scale,
                    self._shift, out, side.status,
                )  # fmt: skip

    def deliver(self, job: _Job) -> tuple[torch.Tensor, ...]:
        """The finished batch's images (B, 3, H, W) on the device, owned by the caller."""
        if not self.on_gpu:
            return tuple(out.permute(0, 3, 1, 2).to(self.spec.dtype) for out in job.outs)
        assert job.slot is not None
        device, dtype = self.spec.device, self.spec.dtype
        consumer = torch.cuda.current_stream(device)
        with torch.cuda.stream(self.copy_stream):
            crops = [out.to(device, non_blocking=True) for out in job.outs]
            job.slot.copied.record(self.copy_stream)
        consumer.wait_event(job.slot.copied)
        for copy in crops:
            copy.record_stream(consumer)
        self._free_slots.append(job.slot)
        flips = [torch.from_numpy(side.crops.flips).to(device) for side in job.sides]
        scale, shift = self.device_scale, self.device_shift
        if self.spec.mix:
            lam = torch.from_numpy(job.rows.lam).to(device)
            return (mixing.mix(crops[0], crops[1], flips[0], flips[1], lam, scale, shift, dtype),)
        return tuple(
            mixing.normalise(crop, flip, scale, shift, dtype)
            for crop, flip in zip(crops, flips, strict=True)
        )


class _Queue:
    """Open batches in order, and the stripes of them that no thread has taken yet."""

    def __init__(
        self, rows: Iterator[PlanRows], open_job: Callable[[PlanRows], _Job], prefetch: int
    ) -> None:
        self._rows, self._open_job, self._prefetch = rows, open_job, prefetch
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._stripes: deque[tuple[_Job, int, int]] = deque()
        self._exhausted = self._stopped = False
        self._error: BaseException | None = None
        self.consumer_waited = self.threads_waited = 0.0

    def take(self) -> tuple[_Job, int, int] | None:
        """For a thread: a stripe to work on, or ``None`` when there will be no more."""
        with self._changed:
            while not self._stopped:
                if self._stripes:
                    return self._stripes.popleft()
                if self._exhausted:
                    return None
                if len(self._jobs) < self._prefetch:
                    self._open_next()
                else:
                    started = time.perf_counter()
                    self._changed.wait()
                    self.threads_waited += time.perf_counter() - started
            return None

    def _open_next(self) -> None:
        try:
            job = self._open_job(next(self._rows))
        except StopIteration:
            self._exhausted = True
        except BaseException as error:
            self._error, self._exhausted = error, True
        else:
            self._jobs.append(job)
            count = len(job.rows)
            self._stripes.extend(
                (job, i, min(i + _STRIPE, count)) for i in range(0, count, _STRIPE)
            )
        self._changed.notify_all()

    def finish(self, job: _Job, error: BaseException | None) -> None:
        """For a thread: one stripe of the batch is done, or has failed."""
        with self._changed:
            job.error = job.error or error
            job.remaining -= 1
            if job.remaining == 0:
                self._changed.notify_all()

    def next_job(self) -> _Job:
        """For the consumer: wait for the next batch.

        Raises:
            StopIteration: All batches were delivered.
        """
        started = time.perf_counter()
        with self._changed:
            while not (self._jobs and self._jobs[0].remaining == 0):
                if self._stopped:
                    raise RuntimeError("this pass over the loader is closed; begin a new one")
                if self._exhausted and not self._jobs:
                    if self._error is not None:
                        raise self._error
                    raise StopIteration
                self._changed.wait()
            job = self._jobs.popleft()
            self._changed.notify_all()
        self.consumer_waited += time.perf_counter() - started
        return job

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._jobs.clear()
            self._stripes.clear()
            self._changed.notify_all()


def _run(queue: _Queue, backend: FfcvBackend) -> None:
    """A worker thread."""
    workspace = backend.workspace()
    while (stripe := queue.take()) is not None:
        error: BaseException | None = None
        try:
            backend.work(stripe[0], workspace, stripe[1], stripe[2])
        except BaseException as caught:
            error = caught
        queue.finish(stripe[0], error)


def _end(queue: _Queue, threads: Sequence[threading.Thread], process: int) -> None:
    if os.getpid() != process:
        return  # a forked child has none of the threads, and perhaps a lock that stays held
    queue.stop()
    for thread in threads:
        thread.join()


class FfcvStream:
    """One pass: its threads end with it, at the latest when it is garbage or the process exits."""

    def __init__(self, backend: FfcvBackend, rows: Iterator[PlanRows]) -> None:
        self._backend = backend
        self._queue = _Queue(rows, backend.open, backend.spec.prefetch)
        self._threads = [
            threading.Thread(
                target=_run, args=(self._queue, backend), name=f"xmix-decode-{i}", daemon=True
            )
            for i in range(backend.spec.num_workers)
        ]
        for thread in self._threads:
            thread.start()
        self._end = weakref.finalize(self, _end, self._queue, self._threads, os.getpid())

    def __next__(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        job = self._queue.next_job()
        if job.error is not None:
            raise RuntimeError("a decoding thread failed") from job.error
        for side in job.sides:
            side.raise_if_damaged()
        return job.rows, self._backend.deliver(job)

    def close(self) -> None:
        self._end()

    def stats(self) -> dict[str, Any]:
        threads = max(len(self._threads), 1)
        return {
            "consumer_waited_s": self._queue.consumer_waited,
            "loader_waited_s": self._queue.threads_waited / threads,
        }
