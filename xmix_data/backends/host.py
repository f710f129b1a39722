"""The default backend: compiled kernels decode betons on host threads, with no lock between them.

Threads take stripes of a few images from the batches that are open, in order; one more thread
asks the kernel for the bytes of the batches after them. On the CPU a kernel decodes, crops,
normalises and mixes in one go; for a GPU the host only decodes and crops, and the rest is
arithmetic on the device.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from resource import RUSAGE_THREAD, getrusage

import numpy as np
import numpy.typing as npt
import torch
from numba.core.event import Event, Listener, install_listener

from xmix_data import decode
from xmix_data.backends.device import DeviceStage, Slot
from xmix_data.backends.memory import MemoryPool
from xmix_data.backends.profiling import ProfiledRange
from xmix_data.backends.protocol import Spec, replacement
from xmix_data.backends.queue import BatchQueue, Times
from xmix_data.backends.read_ahead import ReadAhead, read_ahead
from xmix_data.backends.stream import HostStream
from xmix_data.backends.work import Job, Side
from xmix_data.beton.layout import RAW
from xmix_data.normalise import scale_and_shift
from xmix_data.plan import Crops, PlanRows, Replace

__all__ = ["HostBackend"]


_log = logging.getLogger("xmix_data")

_STRIPE = 8
"""Most images (pairs) that a thread takes at a time: a millisecond or two of work."""
_STRIPE_OF_RAW = 32
"""Most images (pairs) that a thread takes at a time where nothing is decoded."""

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
        self.read_ahead = ReadAhead(self.domains)
        raw = all(bool((domain.modes == RAW).all()) for domain in self.domains)
        self._largest_stripe = _STRIPE_OF_RAW if raw else _STRIPE
        self._outs_needed = 1 if spec.mix else len(self.domains)
        # Once, not in each thread: it takes a second for a hundred million images.
        self._most_pixels = max(
            int((d.heights.astype(np.uint32) * d.widths).max(initial=0))
            for d in dict.fromkeys(self.domains)
        )
        self._memory = MemoryPool(self._outs_needed * (spec.prefetch + 2))
        self.device_stage = DeviceStage(spec) if spec.device.type == "cuda" else None
        self._compile()

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> HostStream:
        return HostStream(self, rows, replace)

    thread_name = "xmix-decode"

    @property
    def workers(self) -> int:
        """How many threads make the batches of a stream."""
        return self.spec.num_workers

    def run(self, queue: BatchQueue, times: Times, replace: Replace | None) -> None:
        """Make stripes until there are no more; a thread.

        Args:
            queue: Has the stripes.
            times: The thread's own.
            replace: As in `stream`.
        """
        workspace = None
        try:
            workspace = self.workspace()
        except BaseException as caught:  # the consumer hears of it with the next batch
            queue.failure = caught
        while True:
            asked = time.perf_counter()
            with ProfiledRange("xmix: wait for work"):
                stripe = queue.stripes.get()
            started = time.perf_counter()
            times.waiting += started - asked
            if stripe is None:
                return
            job, start, stop = stripe
            error = None
            if workspace is not None and not queue.closed:
                error = self._timed_work(job, workspace, start, stop, times)
            is_last = job.stripe_made(error)
            if is_last and queue.closed:
                # Nobody takes it, and where a stripe was left out nobody has waited for its slot.
                job.made.set()
            elif is_last:
                self._complete(job, workspace, replace)

    def _timed_work(
        self, job: Job, workspace: decode.Workspace, start: int, stop: int, times: Times
    ) -> BaseException | None:
        """Make a stripe; returns what went wrong."""
        decoding, faults = workspace.decoding_s, getrusage(RUSAGE_THREAD).ru_majflt
        asked = started = time.perf_counter()
        try:
            if job.slot is not None:
                job.slot.wait()
            started = time.perf_counter()
            self.work(job, workspace, start, stop)
        except BaseException as caught:
            return caught
        finally:
            times.waiting += started - asked
            times.working += time.perf_counter() - started
            times.decoding += workspace.decoding_s - decoding
            times.bytes_read += sum(side.bytes_between(start, stop) for side in job.sides)
            waited = getrusage(RUSAGE_THREAD).ru_majflt - faults
            if waited:
                times.major_faults += waited
                self.read_ahead.disk_was_waited_for()
        return None

    def _complete(
        self, job: Job, workspace: decode.Workspace | None, replace: Replace | None
    ) -> None:
        """All stripes are made: replace damaged images, and let the consumer have the batch."""
        try:
            if job.error is None and workspace is not None:
                if replace is not None:
                    self.repair(job, workspace, replace)
                self.finish(job)
        except BaseException as caught:
            job.error = caught
        job.made.set()

    def workspace(self) -> decode.Workspace:
        """Make the buffers of one thread."""
        return decode.Workspace(
            self._most_pixels,
            max(int(d.heights.max(initial=0)) for d in self.domains),
            max(int(d.widths.max(initial=0)) for d in self.domains),
            self.spec.crop.shape,
            resizes=self.spec.crop.resizes,
        )

    def _compile(self) -> None:
        """Compile or load the kernels now, on an empty batch, rather than in the first real one."""
        with _compilation_said("mixing" if self.mixes else "decoding"):
            none = np.zeros(0, np.int64)
            crops = Crops(np.zeros((0, 4), np.int32), np.zeros(0, bool))
            pair = self.spec.source is not None
            rows = PlanRows(none, crops, np.zeros(0, np.float32), *((none, crops) if pair else ()))
            outs = [self._empty(0) for _ in self.domains]
            workspace = decode.Workspace(0, 0, 0, (1, 1), resizes=False)
            job = self._job(rows, outs, None)
            self._work(job, workspace, 0, 0)
            read_ahead(*np.zeros((2, 0), np.uint64))

    def _empty(self, count: int) -> torch.Tensor:
        """Return host memory for the images of a batch."""
        dtype = torch.uint8 if self.device_stage else self.spec.dtype
        shape = (count, *self.spec.crop.shape, 3)
        stored = _STORED_AS.get(dtype)
        memory = torch.from_numpy(self._memory.array(shape, stored or np.uint16))
        return memory if stored else memory.view(dtype)

    def open(self, rows: PlanRows, whole: bool = False) -> Job:
        """Reserve the memory that a batch needs, and describe its images to the kernels.

        Args:
            rows: Rows of the batch.
            whole: Whether one thread makes all of it.
        """
        if self.device_stage is None:
            outs = [self._empty(len(rows)) for _ in range(self._outs_needed)]
            return self._job(rows, outs, None, whole)
        slot = self.device_stage.free_slot(len(rows))
        return self._job(rows, [crops[: len(rows)] for crops in slot.host_crops], slot, whole)

    def _job(
        self, rows: PlanRows, outs: list[torch.Tensor], slot: Slot | None, whole: bool = False
    ) -> Job:
        sides = [self._side(number, rows) for number in range(len(self.domains))]
        stripe = max(1, len(rows)) if whole else self._stripe(len(rows))
        return Job(rows, sides, outs, slot, stripe, -(-len(rows) // stripe))

    def _stripe(self, count: int) -> int:
        """Return how many images of a batch of ``count`` a thread takes at a time."""
        # As many stripes in the open batches as there are threads, so that all have work; not more:
        # each takes the GIL, for which a training waits that launches its kernels one by one.
        share = self.spec.prefetch * count // self.spec.num_workers
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
        with ProfiledRange("xmix: decode and mix" if self.mixes else "xmix: decode"):
            self._work(job, workspace, start, stop)

    @property
    def mixes(self) -> bool:
        """Whether the kernels mix; a GPU does it itself."""
        return self.spec.mix and self.device_stage is None

    def _work(self, job: Job, workspace: decode.Workspace, start: int, stop: int) -> None:
        height, width = self.spec.crop.shape
        kind = _KINDS.get(job.outs[0].dtype)
        if self.mixes:
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
def _compilation_said(what: str) -> Iterator[None]:
    """Log one line if the block compiles, for those who wait and wonder.

    Nothing is said where kernels are loaded from numba's cache, however slow the machine is.
    """
    listener = _CompilationListener(what)
    with install_listener("numba:compile", listener):
        yield


class _CompilationListener(Listener):
    """Listener to numba's compiler, which logs its first event."""

    def __init__(self, what: str) -> None:
        self._what, self._said = what, False

    def on_start(self, event: Event) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "compiling the %s kernels for this machine, once; it takes about ten seconds",
                self._what,
            )

    def on_end(self, event: Event) -> None:
        pass
