"""The default backend: compiled kernels decode betons on host threads, with no lock between them.

Threads take stripes of a few images from the batches that are open, in order; one more thread
asks the kernel for the bytes of the batches after them. On the CPU a kernel decodes, crops,
normalises and mixes in one go; for a GPU the host only decodes and crops, and the rest is
arithmetic on the device.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from resource import RUSAGE_THREAD, getrusage

import numpy as np
import numpy.typing as npt
import torch

from xmix_data import decode
from xmix_data.backends.device import DeviceStage, Slot
from xmix_data.backends.memory import MemoryPool
from xmix_data.backends.protocol import Spec, replacement
from xmix_data.backends.queue import StripeQueue, Times
from xmix_data.backends.read_ahead import ReadAhead, read_ahead
from xmix_data.backends.work import Job, Side
from xmix_data.beton.layout import RAW
from xmix_data.errors import BetonError
from xmix_data.normalise import scale_and_shift
from xmix_data.plan import Crops, PlanRows, Replace

__all__ = ["HostBackend", "HostStream"]


_log = logging.getLogger("xmix_data")

_STRIPE = 8
"""Most images (pairs) that a thread takes at a time: a millisecond or two of work."""
_STRIPE_OF_RAW = 32
"""Most images (pairs) that a thread takes at a time where nothing is decoded."""

_SLOW_COMPILATION_S = 1.0
_KINDS = {
    torch.float32: decode.FLOAT32,
    torch.float16: decode.FLOAT16,
    torch.bfloat16: decode.BFLOAT16,
}
_STORED_AS: dict[torch.dtype, npt.DTypeLike] = {torch.float32: np.float32, torch.uint8: np.uint8}
"""NumPy's type for the memory of a batch; to NumPy 16-bit floats are bits."""


class HostBackend:
    """Backend of compiled kernels; it keeps the buffers over passes, and a pass its threads."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.domains = [spec.target] if spec.source is None else [spec.target, spec.source]
        self._scale, self._shift = scale_and_shift(spec.mean, spec.std)
        self.asked = [np.zeros(len(domain), bool) for domain in self.domains]
        raw = all(bool((domain.modes == RAW).all()) for domain in self.domains)
        self._largest_stripe = _STRIPE_OF_RAW if raw else _STRIPE
        self._outs_needed = 1 if spec.mix else len(self.domains)
        self._memory = MemoryPool(self._outs_needed * (spec.prefetch + 2))
        self.device_stage = DeviceStage(spec) if spec.device.type == "cuda" else None
        self._compile()

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> HostStream:
        return HostStream(self, rows, replace)

    def threads(self, queue: StripeQueue, replace: Replace | None) -> list[threading.Thread]:
        """Return the threads, not started, that make the batches of a pass."""
        return [
            threading.Thread(
                target=_run, args=(queue, self, replace), name=f"xmix-decode-{i}", daemon=True
            )
            for i in range(self.spec.num_workers)
        ]

    def workspace(self) -> decode.Workspace:
        """Make the buffers of one thread."""
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
            read_ahead(*np.zeros((2, 0), np.uint64))

    def _empty(self, count: int) -> torch.Tensor:
        """Return host memory for the images of a batch."""
        dtype = torch.uint8 if self.device_stage else self.spec.dtype
        shape = (count, *self.spec.crop.shape, 3)
        memory = self._memory.array(shape, _STORED_AS.get(dtype, np.uint16))
        return torch.from_numpy(memory).view(dtype)

    def open(self, rows: PlanRows) -> Job:
        """Reserve the memory that a batch needs, and describe its images to the kernels."""
        if self.device_stage is None:
            outs = [self._empty(len(rows)) for _ in range(self._outs_needed)]
            return self._job(rows, outs, None)
        slot = self.device_stage.free_slot(len(rows))
        return self._job(rows, [crops[: len(rows)] for crops in slot.host_crops], slot)

    def _job(self, rows: PlanRows, outs: list[torch.Tensor], slot: Slot | None) -> Job:
        sides = [self._side(number, rows) for number in range(len(self.domains))]
        stripe = self._stripe(len(rows))
        return Job(rows, sides, outs, slot, stripe, -(-len(rows) // stripe), done=False)

    def _stripe(self, count: int) -> int:
        """Return how many images of a batch of ``count`` a thread takes at a time."""
        # Twice as many stripes in the open batches as there are threads, so that all have work.
        share = self.spec.prefetch * count // (2 * self.spec.num_workers)
        return max(1, min(self._largest_stripe, share))

    def _side(self, number: int, rows: PlanRows) -> Side:
        # On a GPU crops are mirrored where they are mixed.
        flip, shape = self.device_stage is None, self.spec.crop.shape
        return Side.of(self.domains[number], *rows.of(number), shape, flip=flip)

    def repair(self, job: Job, workspace: decode.Workspace, replace: Replace) -> None:
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

    def work(self, job: Job, workspace: decode.Workspace, start: int, stop: int) -> None:
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

    def finish(self, job: Job) -> None:
        """Begin to copy a batch, whose images are all made, to the GPU, if there is one."""
        if self.device_stage is not None and job.slot is not None:
            self.device_stage.copy(job.slot, job.rows)

    def deliver(self, job: Job) -> tuple[torch.Tensor, ...]:
        """Return the finished batch's images (B, 3, H, W) on the device, owned by the caller."""
        if self.device_stage is None or job.slot is None:
            return tuple(out.permute(0, 3, 1, 2) for out in job.outs)
        return self.device_stage.deliver(job.slot, len(job.rows))


@contextmanager
def _said_if_slow() -> Iterator[None]:
    """Log one line if the block takes long, for those who wait for the compiler and wonder."""
    line = "compiling the decoding kernels for this machine, once; it takes about ten seconds"
    timer = threading.Timer(_SLOW_COMPILATION_S, _log.warning, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _run(queue: StripeQueue, backend: HostBackend, replace: Replace | None) -> None:
    """Make stripes of batches until there are no more; run by each decoding thread."""
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
        times = Times(
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
    queue: StripeQueue,
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


class HostStream:
    """Pass whose threads end with it, at the latest when it is garbage or the process exits."""

    def __init__(
        self, backend: HostBackend, rows: Iterator[PlanRows], replace: Replace | None
    ) -> None:
        self._backend = backend
        ahead = ReadAhead(rows, backend.domains, backend.asked)
        self._queue = StripeQueue(ahead, backend.open, backend.spec.prefetch)
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
