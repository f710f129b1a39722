"""The default backend: compiled kernels decode betons on host threads, with no lock between them.

Threads take stripes of a few images from the batches that are open, in order; one more thread
asks the kernel for the bytes of the batches after them. On the CPU a kernel decodes, crops,
normalises and mixes in one go; for a GPU the host only decodes and crops, and the rest is
arithmetic on the device.
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
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from resource import RUSAGE_THREAD, getrusage
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xmix_data import decode, jpeg
from xmix_data.backends import Spec, replacement
from xmix_data.backends.device import DeviceStage, Slot
from xmix_data.beton import Domain
from xmix_data.encoding import RAW
from xmix_data.errors import BetonError
from xmix_data.mixing import scale_and_shift
from xmix_data.plan import Crops, PlanRows, Replace

__all__ = ["FfcvBackend"]

_log = logging.getLogger("xmix_data")

_STRIPE = 8
"""The most images (pairs) that a thread takes at a time: a millisecond or two of work."""
_STRIPE_OF_RAW = 32
"""The same where nothing is decoded."""
_READ_AHEAD_BATCHES = 4
"""How many batches, beyond those that are being decoded, the kernel is asked to read."""
_SLOW_COMPILATION_S = 1.0
_KINDS = {
    torch.float32: decode.FLOAT32,
    torch.float16: decode.FLOAT16,
    torch.bfloat16: decode.BFLOAT16,
}
_STORED_AS: dict[torch.dtype, npt.DTypeLike] = {torch.float32: np.float32, torch.uint8: np.uint8}
"""NumPy's type of the memory of a batch; 16-bit floats are bits to it."""


@dataclass
class _Side:
    """One domain's part of a batch."""

    domain: Domain
    indices: npt.NDArray[np.int64]
    images: decode.ImageTable
    status: npt.NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        domain: Domain,
        indices: npt.NDArray[np.int64],
        crops: Crops,
        shape: tuple[int, int],
        *,
        flip: bool,
    ) -> _Side:
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
        """Stored bytes of a stripe's images."""
        return int(self.images[start:stop, decode.BYTES].sum())

    @property
    def damaged(self) -> npt.NDArray[np.int64]:
        """Which images of the batch could not be made."""
        return np.flatnonzero(self.status)

    def raise_if_damaged(self) -> None:
        for item in self.damaged[:1]:
            where = self.domain.describe(int(self.indices[item]))
            problem = (
                "is not of the size in the index"
                if self.status[item] == jpeg.WRONG_SIZE
                else "cannot be decoded without a warning"
            )
            raise BetonError(f"{where} {problem}; convert it again")


@dataclass
class _Job:
    """One batch on its way through the threads."""

    rows: PlanRows
    sides: list[_Side]
    outs: list[torch.Tensor]
    """(B, H, W, 3) each, on the host."""
    slot: Slot | None
    stripe: int
    """Images (pairs) that a thread takes at a time."""
    stripes_left: int
    """Stripes that are not made yet."""
    done: bool
    """Whether it may be delivered."""
    error: BaseException | None = None


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
        """An array with arbitrary content, at the start of a cache line."""
        for place in range(len(self._arrays)):
            if _references(self._arrays, place) == _FREE and self._arrays[place].shape == shape:
                return self._arrays[place]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.empty(size + _CACHE_LINE, np.uint8)
        start = -memory.ctypes.data % _CACHE_LINE
        self._arrays.append(memory[start : start + size].view(dtype).reshape(shape))
        if len(self._arrays) > self._kept:
            del self._arrays[0]
        return self._arrays[-1]


_CACHE_LINE = 64


def _references(arrays: Sequence[Any], place: int) -> int:
    return sys.getrefcount(arrays[place])


_FREE = _references([np.empty(0)], 0)
"""What `_references` says of an array that only its list refers to (Python's versions differ)."""


class FfcvBackend:
    """See the module; buffers that outlive a pass live here, threads live with their stream."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.domains = [spec.target] if spec.source is None else [spec.target, spec.source]
        self._scale, self._shift = scale_and_shift(spec.mean, spec.std)
        self.asked = [np.zeros(len(domain), bool) for domain in self.domains]
        raw = all(bool((domain.modes == RAW).all()) for domain in self.domains)
        self._largest_stripe = _STRIPE_OF_RAW if raw else _STRIPE
        self._outs_needed = 1 if spec.mix else len(self.domains)
        self._recycler = _Recycler(self._outs_needed * (spec.prefetch + 2))
        self.device_stage = DeviceStage(spec) if spec.device.type == "cuda" else None
        self._compile()

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> FfcvStream:
        return FfcvStream(self, rows, replace)

    def threads(self, queue: _Queue, replace: Replace | None) -> list[threading.Thread]:
        """What makes the batches of a pass."""
        return [
            threading.Thread(
                target=_run, args=(queue, self, replace), name=f"xmix-decode-{i}", daemon=True
            )
            for i in range(self.spec.num_workers)
        ]

    def workspace(self) -> decode.Workspace:
        """Buffers for one thread."""
        pixels = [d.heights.astype(np.int64) * d.widths for d in self.domains]
        return decode.Workspace(
            max(int(p.max(initial=0)) for p in pixels),
            max(int(d.heights.max(initial=0)) for d in self.domains),
            max(int(d.widths.max(initial=0)) for d in self.domains),
            self.spec.crop.shape,
            resizes=self.spec.crop.resizes,
        )

    def _compile(self) -> None:
        """Compile or load the kernels now, on an empty batch, rather than in the first real one."""
        with _said_if_slow():
            none = np.zeros(0, np.int64)
            crops = Crops(np.zeros((0, 4), np.int32), np.zeros(0, bool))
            pair = self.spec.source is not None
            rows = PlanRows(none, crops, np.zeros(0, np.float32), *((none, crops) if pair else ()))
            outs = [self._empty(0) for _ in self.domains]
            workspace = decode.Workspace(0, 0, 0, (1, 1), resizes=False)
            self.work(self._job(rows, outs, None), workspace, 0, 0)
            decode.read_ahead(*np.zeros((2, 0), np.uint64))

    def _empty(self, count: int) -> torch.Tensor:
        """Host memory for the images of a batch on the CPU."""
        dtype = torch.uint8 if self.device_stage else self.spec.dtype
        shape = (count, *self.spec.crop.shape, 3)
        memory = self._recycler.array(shape, _STORED_AS.get(dtype, np.uint16))
        return torch.from_numpy(memory).view(dtype)

    def open(self, rows: PlanRows) -> _Job:
        """Reserve what the batch needs."""
        if self.device_stage is None:
            outs = [self._empty(len(rows)) for _ in range(self._outs_needed)]
            return self._job(rows, outs, None)
        slot = self.device_stage.free_slot(len(rows))
        return self._job(rows, [crops[: len(rows)] for crops in slot.host_crops], slot)

    def _job(self, rows: PlanRows, outs: list[torch.Tensor], slot: Slot | None) -> _Job:
        sides = [self._side(number, rows) for number in range(len(self.domains))]
        stripe = self._stripe(len(rows))
        return _Job(rows, sides, outs, slot, stripe, -(-len(rows) // stripe), done=False)

    def _stripe(self, count: int) -> int:
        """How many images of a batch of ``count`` a thread takes at a time."""
        # Twice as many stripes in the open batches as there are threads, so that all have work.
        share = self.spec.prefetch * count // (2 * self.spec.num_workers)
        return max(1, min(self._largest_stripe, share))

    def _side(self, number: int, rows: PlanRows) -> _Side:
        # On a GPU crops are mirrored where they are mixed.
        flip, shape = self.device_stage is None, self.spec.crop.shape
        return _Side.of(self.domains[number], *rows.of(number), shape, flip=flip)

    def repair(self, job: _Job, workspace: decode.Workspace, replace: Replace) -> None:
        """Make other images in the place of damaged ones, as the plan says."""
        for number, side in enumerate(job.sides):
            for item in side.damaged.tolist():
                attempt = 0
                while side.status[item]:
                    job.rows = replacement(
                        replace, job.rows, number, item, attempt, self.domains[number]
                    )
                    side.indices, _ = job.rows.of(number)
                    side.images[item] = self._side(number, job.rows.part(item, item + 1)).images[0]
                    self.work(job, workspace, item, item + 1)
                    attempt += 1

    def work(self, job: _Job, workspace: decode.Workspace, start: int, stop: int) -> None:
        """Make images ``start .. stop - 1`` of a batch; runs without the GIL."""
        height, width = self.spec.crop.shape
        kind = _KINDS.get(job.outs[0].dtype)
        if self.spec.mix and self.device_stage is None:
            target, source = job.sides
            decode.mix_images(
                start,
                stop,
                target.images,
                source.images,
                job.rows.lam,
                height,
                width,
                workspace.target,
                workspace.source,
                self._scale,
                self._shift,
                kind,
                job.outs[0].data_ptr(),
                target.status,
                source.status,
            )
            return
        buffers = (workspace.target, workspace.source)
        for side, work, out in zip(job.sides, buffers, job.outs, strict=False):
            if kind is None:
                decode.crop_images(
                    start, stop, side.images, height, width, work, out.data_ptr(), side.status
                )
            else:
                decode.normalise_images(
                    start,
                    stop,
                    side.images,
                    height,
                    width,
                    work,
                    self._scale,
                    self._shift,
                    kind,
                    out.data_ptr(),
                    side.status,
                )

    def finish(self, job: _Job) -> None:
        """All images of a batch are made: on a GPU, begin to copy them."""
        if self.device_stage is not None and job.slot is not None:
            self.device_stage.copy(job.slot, job.rows)

    def deliver(self, job: _Job) -> tuple[torch.Tensor, ...]:
        """The finished batch's images (B, 3, H, W) on the device, owned by the caller."""
        if self.device_stage is None or job.slot is None:
            return tuple(out.permute(0, 3, 1, 2) for out in job.outs)
        return self.device_stage.deliver(job.slot, len(job.rows))


@contextmanager
def _said_if_slow() -> Iterator[None]:
    """One line for who waits for the compiler and wonders."""
    line = "compiling the decoding kernels for this machine, once; it takes about ten seconds"
    timer = threading.Timer(_SLOW_COMPILATION_S, _log.warning, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _ReadAhead:
    """Hands out the rows of batches, and has a thread ask the kernel for later batches' bytes.

    A page that is not in memory stops a decoding thread for as long as the disk takes; the plan
    knows early which pages it will be. Asking costs time as well, so nothing is asked for twice,
    until a thread had to wait for the disk: then the memory does not hold it all.

    Args:
        rows: Of the batches, in order.
        domains: Target, and source if there is one.
        asked: For each domain (N,) bool, which samples have been asked for; changed here.
    """

    def __init__(
        self,
        rows: Iterator[PlanRows],
        domains: Sequence[Domain],
        asked: Sequence[npt.NDArray[np.bool_]],
    ) -> None:
        self._rows, self._domains, self._asked = rows, domains, asked
        self._ahead: deque[PlanRows] = deque()
        self._wanted: SimpleQueue[PlanRows | None] = SimpleQueue()
        self._stopped = False

    def __next__(self) -> PlanRows:
        while len(self._ahead) <= _READ_AHEAD_BATCHES:
            rows = next(self._rows, None)
            if rows is None:
                break
            self._ahead.append(rows)
            if any(len(new) for _, new in self._not_asked(rows)):
                self._wanted.put(rows)
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft()

    def run(self) -> None:
        """The thread."""
        while (rows := self._wanted.get()) is not None and not self._stopped:
            for number, new in self._not_asked(rows):
                self._asked[number][new] = True
                domain = self._domains[number]
                decode.read_ahead(domain.addresses(new), domain.sizes[new])

    def _not_asked(self, rows: PlanRows) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """For each domain its number, and the samples that have not been asked for."""
        for number, asked in enumerate(self._asked):
            wanted = rows.target if number == 0 else rows.source
            assert wanted is not None
            yield number, wanted[~asked[wanted]]

    def disk_was_waited_for(self) -> None:
        """What was asked for may be gone again."""
        for asked in self._asked:
            asked.fill(False)

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wanted.put(None)


@dataclass
class _Times:
    """Where the threads' seconds went."""

    working: float = 0.0
    decoding: float = 0.0
    waiting: float = 0.0
    major_faults: int = 0
    """How often a thread had to wait for a page from the disk."""
    bytes_read: int = 0


class _Queue:
    """Open batches in order, and the stripes of them that no thread has taken yet."""

    def __init__(
        self,
        rows: _ReadAhead,
        open_job: Callable[[PlanRows], _Job],
        prefetch: int,
    ) -> None:
        self.read_ahead, self._open_job, self._prefetch = rows, open_job, prefetch
        self._lock = threading.Lock()
        self._has_room = threading.Condition(self._lock)
        """Threads wait for it: a batch may be opened."""
        self._has_batch = threading.Condition(self._lock)
        """The consumer waits for it: a batch is made, or there will be none."""
        self._jobs: deque[_Job] = deque()
        self._stripes: deque[tuple[_Job, int, int]] = deque()
        self._exhausted = self._stopped = False
        self._error: BaseException | None = None
        self.consumer_waited = 0.0
        self.times = _Times()

    def take(self, *, wait: bool = True) -> tuple[_Job, int, int] | None:
        """For a thread: a stripe to work on, or ``None`` when there will be no more.

        Args:
            wait: For room for another batch; otherwise ``None`` where there is none yet.
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
        """No more batches will be opened; all who wait hear of it."""
        self._error, self._exhausted = error, True
        self._wake_all()

    def _wake_all(self) -> None:
        self._has_room.notify_all()
        self._has_batch.notify_all()

    def stripe_done(self, job: _Job, times: _Times, error: BaseException | None) -> bool:
        """For a thread: a stripe is made, or has failed. Says whether the batch is complete."""
        with self._lock:
            job.error = job.error or error
            job.stripes_left -= 1
            for name, value in vars(times).items():
                setattr(self.times, name, getattr(self.times, name) + value)
            if times.major_faults:
                self.read_ahead.disk_was_waited_for()
            return job.stripes_left == 0

    def fail(self, error: BaseException) -> None:
        """For a thread: it cannot work; the consumer hears of it."""
        with self._lock:
            self._jobs.clear()
            self._stripes.clear()
            self._exhaust(error)

    def job_done(self, job: _Job, error: BaseException | None) -> None:
        """For a thread: the batch may be delivered."""
        with self._lock:
            job.error = job.error or error
            job.done = True
            self._has_batch.notify_all()

    def next_job(self) -> _Job:
        """For the consumer: wait for the next batch.

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
        self.read_ahead.stop()
        with self._lock:
            self._stopped = True
            self._jobs.clear()
            self._stripes.clear()
            self._wake_all()


def _run(queue: _Queue, backend: FfcvBackend, replace: Replace | None) -> None:
    """A decoding thread."""
    try:
        workspace = backend.workspace()
    except BaseException as caught:
        queue.fail(caught)
        return
    while (stripe := queue.take()) is not None:
        job, start, stop = stripe
        error: BaseException | None = None
        decoding, faults = workspace.decoding_s, getrusage(RUSAGE_THREAD).ru_majflt
        asked = started = time.perf_counter()
        try:
            if job.slot is not None:
                job.slot.copied.synchronize()  # what the slot held before has left it
            started = time.perf_counter()
            backend.work(job, workspace, start, stop)
        except BaseException as caught:
            error = caught
        times = _Times(
            working=time.perf_counter() - started,
            waiting=started - asked,
            decoding=workspace.decoding_s - decoding,
            major_faults=getrusage(RUSAGE_THREAD).ru_majflt - faults,
            bytes_read=sum(side.bytes_between(start, stop) for side in job.sides),
        )
        if queue.stripe_done(job, times, error):
            try:
                if replace is not None and job.error is None:
                    backend.repair(job, workspace, replace)
                backend.finish(job)
            except BaseException as caught:
                error = caught
            queue.job_done(job, error)


def _end(
    queue: _Queue,
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
    queue.stop()
    for thread in threads:
        if thread.ident is not None:  # it may not have started
            thread.join()
    if device_stage is not None:
        device_stage.recover()


class FfcvStream:
    """One pass: its threads end with it, at the latest when it is garbage or the process exits."""

    def __init__(
        self, backend: FfcvBackend, rows: Iterator[PlanRows], replace: Replace | None
    ) -> None:
        self._backend = backend
        ahead = _ReadAhead(rows, backend.domains, backend.asked)
        self._queue = _Queue(ahead, backend.open, backend.spec.prefetch)
        self._threads = [
            threading.Thread(target=ahead.run, name="xmix-read-ahead", daemon=True),
            *backend.threads(self._queue, replace),
        ]
        self._process = os.getpid()
        self._end = weakref.finalize(
            self, _end, self._queue, self._threads, backend.device_stage, self._process
        )
        for thread in self._threads:
            thread.start()

    def __next__(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        if os.getpid() != self._process:
            raise RuntimeError("this pass belongs to the process that forked; begin a new one")
        job = self._queue.next_job()
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
        return {
            "consumer_waited_s": self._queue.consumer_waited,
            "loader_waited_s": times.waiting / (len(self._threads) - 1),
            "decode_s": times.decoding,
            "copy_s": times.working - times.decoding,
            "bytes_read": times.bytes_read,
            "disk_waits": times.major_faults,
        }
