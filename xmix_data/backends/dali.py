"""NVIDIA DALI decodes the JPEGs, on the GPU where the device is one; all else is as in `ffcv`.

One thread feeds the bytes of a batch's JPEGs, as they lie in the mapped betons, and the plan's
boxes to a DALI pipeline, and takes back the crops of the batch before. Raw images, and JPEGs that
do not look whole, are cut out on the host by the kernels of `decode`; so is a whole batch that
DALI refuses: which image is at fault, and what then happens, is decided there.

DALI is loaded when a backend is made, never on import.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from resource import RUSAGE_THREAD, getrusage
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xmix_data import decode
from xmix_data.backends import Spec
from xmix_data.backends.device import Made
from xmix_data.backends.ffcv import FfcvBackend, FfcvStream, _Job, _Queue, _Times
from xmix_data.errors import MissingDependencyError
from xmix_data.plan import PlanRows, Replace

__all__ = ["DaliBackend", "load"]

_log = logging.getLogger("xmix_data")

_BATCHES = 2
"""How many DALI works on at once: one on the host, one on the GPU."""
_CUDA = "13"
"""What DALI is to be built for where torch knows no CUDA; on a CPU any will do."""


def load(device: torch.device) -> Any:
    """The module `nvidia.dali`.

    Raises:
        MissingDependencyError: It is not installed, or for another CUDA than torch; says how to
            install the right one.
    """
    wanted = (torch.version.cuda or _CUDA).split(".")[0]
    install = f"pip install nvidia-dali-cuda{wanted}0"
    try:
        dali = importlib.import_module("nvidia.dali")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"backend 'dali' needs NVIDIA DALI ({error}): `{install}`"
        ) from error
    found = str(dali.__cuda_version__)[:2]
    if device.type == "cuda" and found != wanted:
        raise MissingDependencyError(
            f"NVIDIA DALI is installed for CUDA {found}, torch for CUDA {wanted}: "
            f"`pip uninstall -y nvidia-dali-cuda{found}0 && {install}`"
        )
    _take_care_of_ends(dali)
    return dali


_passes: weakref.WeakSet[FfcvStream] = weakref.WeakSet()


@cache
def _take_care_of_ends(dali: Any) -> None:
    """At exit DALI ends the pipelines that there are: let our passes end before.

    A forked child has none of their threads, and must not try.
    """
    atexit.register(_end_passes)  # the last one registered is the first to run
    os.register_at_fork(after_in_child=getattr(dali.Pipeline, "_pipes", set()).clear)


def _end_passes() -> None:
    for one in list(_passes):
        one.close()


@dataclass
class _Batch:
    """A batch, and which of its images DALI decodes."""

    job: _Job
    items: list[npt.NDArray[np.int64]]
    """Of each side."""
    jpegs: list[npt.NDArray[np.uint8]]
    """(K,) their bytes, side after side: views of the mapped betons."""
    boxes: npt.NDArray[np.int32]
    """(K, 4)"""
    bytes_read: int
    """Stored bytes of all images, DALI's or not."""


class DaliBackend(FfcvBackend):
    """See the module; what the host does is `FfcvBackend`'s work."""

    def __init__(self, spec: Spec) -> None:
        self.dali = load(spec.device)
        self.refused = 0
        """Batches that DALI could not decode."""
        super().__init__(spec)

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> FfcvStream:
        stream = super().stream(rows, replace)
        _passes.add(stream)
        return stream

    def threads(self, queue: _Queue, replace: Replace | None) -> list[threading.Thread]:
        run = threading.Thread(
            target=_run, args=(queue, self, replace), name="xmix-dali", daemon=True
        )
        return [run]

    def _compile(self) -> None:
        super()._compile()
        decode.plain_jpegs(decode.no_images(), np.zeros(0, bool))

    def _stripe(self, count: int) -> int:
        return max(1, count)  # one thread does all of it

    def shared_out(self, job: _Job) -> _Batch:
        """Decide who decodes what."""
        items, jpegs, boxes = [], [], []
        for number, side in enumerate(job.sides):
            plain = np.zeros(len(job.rows), bool)
            decode.plain_jpegs(side.images, plain)
            items.append(np.flatnonzero(plain))
            boxes.append(job.rows.of(number)[1].boxes[plain])
            for index in side.indices[plain].tolist():
                beton, local = side.domain.locate(index)
                jpegs.append(beton.data(local))
        size = sum(side.bytes_between(0, len(job.rows)) for side in job.sides)
        return _Batch(job, items, jpegs, np.concatenate(boxes), size)

    def make(
        self,
        batch: _Batch,
        crops: torch.Tensor | None,
        workspace: decode.Workspace,
        replace: Replace | None,
    ) -> None:
        """The host's part of a batch, and what then goes to the device.

        Args:
            batch: Of `shared_out`.
            crops: (K, H, W, 3) uint8 of ``batch.jpegs``; ``None`` leaves all to the host.
            workspace: The thread's.
            replace: As in `stream`.
        """
        job, shape = batch.job, self.spec.crop.shape
        parts: Sequence[torch.Tensor] = ()
        if crops is not None:
            parts = torch.split(crops, [len(items) for items in batch.items])
        for side, items, part in zip(job.sides, batch.items, parts, strict=False):
            address = part.data_ptr() if self.device_stage is None else None
            decode.point_at_crops(side.images, items, address, shape)
        self.work(job, workspace, 0, len(job.rows))
        if replace is not None:
            self.repair(job, workspace, replace)
        if self.device_stage is not None and job.slot is not None:
            made = [
                Made(part, *decode.made_elsewhere(side.images))
                for side, part in zip(job.sides, parts, strict=False)
            ]
            self.device_stage.copy(job.slot, job.rows, made)


class _Decoder:
    """A DALI pipeline, and after a failure another one; batches come out in order.

    It belongs to one thread.
    """

    def __init__(self, backend: DaliBackend) -> None:
        self._backend = backend
        self._pipeline: Any = None
        self._largest = 0
        self._inside: deque[_Batch] = deque()
        self._error: Exception | None = None
        self.faults = getrusage(RUSAGE_THREAD).ru_majflt
        """How often the thread had waited for the disk when the last batch came out."""

    def __len__(self) -> int:
        """Batches inside."""
        return len(self._inside)

    def begin(self, batch: _Batch) -> None:
        """Let DALI decode a batch while the caller does something else."""
        self._inside.append(batch)
        # The first batch of a pass is a whole one, and DALI wants to know the largest.
        self._largest = max(self._largest, len(batch.job.rows) * len(batch.job.sides))
        self._feed(batch)

    def finish(self) -> tuple[_Batch, torch.Tensor | None]:
        """The oldest batch, with its crops (K, H, W, 3) uint8 unless the host has to make them."""
        batch = self._inside.popleft()
        if not batch.jpegs:
            return batch, None
        crops = None
        if self._error is None:
            try:
                (made,) = self._pipeline.outputs()
                crops = torch.utils.dlpack.from_dlpack(made.as_tensor())
            except Exception as error:
                self._error = error
        if self._error is not None:
            self._say_refused(self._error)
            self._pipeline = self._error = None  # after an error it can only be thrown away
            for other in self._inside:
                self._feed(other)
        return batch, crops

    def _say_refused(self, error: Exception) -> None:
        count = self._backend.refused = self._backend.refused + 1
        if count & (count - 1) == 0:
            reason = " ".join(str(error).split())
            _log.warning("DALI refused %d batches, which the host decodes: %s", count, reason)

    def _feed(self, batch: _Batch) -> None:
        if not batch.jpegs or self._error is not None:
            return
        first = self._pipeline is None
        if first:
            self._pipeline = self._built()
        try:
            if first:
                # The first run begins as many batches as may be inside: one image, and this one.
                self._put(batch.jpegs[:1], batch.boxes[:1])
            self._put(batch.jpegs, batch.boxes)
            self._pipeline.schedule_run()
            if first:
                self._pipeline.outputs()
        except Exception as error:
            self._error = error

    def _put(self, jpegs: list[npt.NDArray[np.uint8]], boxes: npt.NDArray[np.int32]) -> None:
        self._pipeline.feed_input("jpegs", jpegs)
        self._pipeline.feed_input("starts", np.ascontiguousarray(boxes[:, :2]))
        self._pipeline.feed_input("shapes", np.ascontiguousarray(boxes[:, 2:]))

    def _built(self) -> Any:
        spec, dali = self._backend.spec, self._backend.dali
        fn, types, gpu = dali.fn, dali.types, spec.device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=self._largest,
            num_threads=spec.num_workers,
            device_id=spec.device.index if gpu else None,
            prefetch_queue_depth=_BATCHES,
            exec_dynamic=True,  # what it gives out stays ours
        )
        with pipeline:
            # The bytes stay where they are: the betons are mapped for as long as the domain lives.
            jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1, no_copy=True)
            starts, shapes = (
                fn.external_source(name=name, dtype=types.INT32, ndim=1)
                for name in ("starts", "shapes")
            )
            crops = fn.decoders.image_slice(
                jpegs,
                starts,
                shapes,
                device="mixed" if gpu else "cpu",
                axes=[0, 1],
                normalized_anchor=False,
                normalized_shape=False,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
                affine=False,  # other processes of this machine would use the same cores
            )
            if spec.crop.resizes:
                crops = fn.resize(
                    crops, size=spec.crop.shape, interp_type=types.INTERP_LINEAR, antialias=True
                )
            pipeline.set_outputs(crops)
        pipeline.build()
        return pipeline


def _run(queue: _Queue, backend: DaliBackend, replace: Replace | None) -> None:
    """The thread."""
    try:
        workspace, decoder = backend.workspace(), _Decoder(backend)
        while True:
            while len(decoder) < _BATCHES:
                stripe = queue.take(wait=len(decoder) == 0)
                if stripe is None:
                    break
                decoder.begin(backend.shared_out(stripe[0]))
            if len(decoder) == 0:
                return
            _complete(queue, backend, workspace, decoder, replace)
    except BaseException as caught:
        queue.fail(caught)


def _complete(
    queue: _Queue,
    backend: DaliBackend,
    workspace: decode.Workspace,
    decoder: _Decoder,
    replace: Replace | None,
) -> None:
    """Finish the oldest batch."""
    error: BaseException | None = None
    asked, on_host = time.perf_counter(), workspace.decoding_s
    batch, crops = decoder.finish()
    decoded = started = time.perf_counter()
    by_dali = decoded - asked if batch.jpegs else 0.0
    try:
        if batch.job.slot is not None:
            batch.job.slot.copied.synchronize()  # what the slot held before has left it
        started = time.perf_counter()
        backend.make(batch, crops, workspace, replace)
    except BaseException as caught:
        error = caught
    finished = time.perf_counter()
    faults = getrusage(RUSAGE_THREAD).ru_majflt
    times = _Times(
        working=decoded - asked + finished - started,
        waiting=started - decoded,
        decoding=by_dali + workspace.decoding_s - on_host,
        major_faults=faults - decoder.faults,
        bytes_read=batch.bytes_read,
    )
    decoder.faults = faults
    queue.stripe_done(batch.job, times, error)
    queue.job_done(batch.job, error)
