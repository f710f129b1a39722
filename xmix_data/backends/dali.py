"""NVIDIA DALI decodes the JPEGs, on the GPU where the device is one; all else is as in `host`.

One thread feeds the bytes of a batch's JPEGs, as they lie in the mapped betons, and the plan's
boxes to a DALI pipeline, and takes back the crops of the batch before. Raw images, and JPEGs that
do not look whole, are cut out on the host by the kernels of `decode`; so is a whole batch that
DALI refuses: which image is at fault, and what then happens, is decided there.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import Empty
from resource import RUSAGE_THREAD, getrusage

import numpy as np
import torch

from xmix_data import decode
from xmix_data.backends.dali_pipeline import BATCHES, DaliDecoder, SharedBatch, load, open_passes
from xmix_data.backends.device import Made
from xmix_data.backends.host import HostBackend
from xmix_data.backends.profiling import ProfiledRange
from xmix_data.backends.protocol import Spec
from xmix_data.backends.queue import BatchQueue, Times
from xmix_data.backends.stream import HostStream
from xmix_data.backends.work import Job
from xmix_data.plan import PlanRows, Replace

__all__ = ["DaliBackend"]

_log = logging.getLogger("xmix_data")


class DaliBackend(HostBackend):
    """Backend that has DALI decode the JPEGs; what the host does is `HostBackend`'s work."""

    def __init__(self, spec: Spec) -> None:
        self.dali = load(spec.device)
        self.refused = 0
        """Number of batches that DALI could not decode."""
        self._idle: deque[DaliDecoder] = deque(maxlen=1)
        """What the last pass decoded with, for the next one."""
        super().__init__(spec)

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> HostStream:
        stream = super().stream(rows, replace)
        open_passes.add(stream)
        return stream

    thread_name = "xmix-dali"

    @property
    def workers(self) -> int:
        return 1

    def run(self, queue: BatchQueue, times: Times, replace: Replace | None) -> None:
        """Feed DALI and finish what it gives back; the only thread."""
        begun: deque[Job] = deque()  # and not made yet
        try:
            self._run(queue, times, replace, begun)
        except BaseException as caught:  # the consumer hears of it with the next batch
            queue.failure = caught
            rest = iter(queue.stripes.get, None)
            for job in itertools.chain(begun, (job for job, _, _ in rest)):
                job.made.set()

    def _run(
        self, queue: BatchQueue, times: Times, replace: Replace | None, begun: deque[Job]
    ) -> None:
        workspace = self.workspace()
        decoder = self._decoder()
        ended = False
        while not ended or len(decoder):
            while not ended and len(decoder) < BATCHES:
                asked = time.perf_counter()
                try:
                    with ProfiledRange("xmix: wait for work"):
                        stripe = queue.stripes.get(block=len(decoder) == 0)
                except Empty:
                    break
                times.waiting += time.perf_counter() - asked
                if stripe is None:
                    ended = True
                elif queue.closed:
                    stripe[0].made.set()
                else:
                    begun.append(stripe[0])
                    decoder.begin(self.shared_out(stripe[0]))
            if len(decoder):
                self._finish_oldest(decoder, workspace, times, replace)
                begun.popleft().made.set()
        self._idle.append(decoder)

    def _decoder(self) -> DaliDecoder:
        """Take up what an earlier pass in this process decoded with, or begin anew."""
        with suppress(IndexError):
            decoder = self._idle.pop()
            if decoder.process == os.getpid():
                decoder.faults = getrusage(RUSAGE_THREAD).ru_majflt
                return decoder
        return DaliDecoder(self.spec, self.dali, self.note_refusal)

    def _finish_oldest(
        self,
        decoder: DaliDecoder,
        workspace: decode.Workspace,
        times: Times,
        replace: Replace | None,
    ) -> None:
        """Take the oldest batch out of DALI, and do the host's part of it."""
        asked, on_host = time.perf_counter(), workspace.decoding_s
        with ProfiledRange("xmix: wait for DALI"):
            batch, crops = decoder.finish()
        decoded = started = time.perf_counter()
        job = batch.job
        try:
            if job.slot is not None:
                job.slot.wait()
            started = time.perf_counter()
            self.make(batch, crops, workspace, replace)
        except BaseException as caught:
            job.error = caught
        faults = getrusage(RUSAGE_THREAD).ru_majflt
        times.working += decoded - asked + time.perf_counter() - started
        times.waiting += started - decoded
        times.decoding += workspace.decoding_s - on_host + (decoded - asked if batch.jpegs else 0)
        times.bytes_read += batch.bytes_read
        if faults > decoder.faults:
            times.major_faults += faults - decoder.faults
            decoder.faults = faults
            self.read_ahead.disk_was_waited_for()

    def note_refusal(self, error: Exception) -> None:
        """Count a batch that the host has to decode; the log gets fewer and fewer lines."""
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:
            reason = " ".join(str(error).split())
            _log.warning(
                "DALI refused %d batches, which the host decodes: %s", self.refused, reason
            )

    def _compile(self) -> None:
        super()._compile()
        decode.plain_jpegs(decode.no_images(), np.zeros(0, bool))

    def _stripe(self, count: int) -> int:
        return max(1, count)  # one thread does all of it

    def shared_out(self, job: Job) -> SharedBatch:
        """Decide which images of a batch DALI decodes."""
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
        return SharedBatch(job, items, jpegs, np.concatenate(boxes), size)

    def make(
        self,
        batch: SharedBatch,
        crops: torch.Tensor | None,
        workspace: decode.Workspace,
        replace: Replace | None,
    ) -> None:
        """Make the host's part of a batch, and send it to the device.

        Args:
            batch: The batch, of `shared_out`.
            crops: (K, H, W, 3) uint8 crops of ``batch.jpegs``; ``None`` leaves all to the host.
            workspace: Buffers of the thread.
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
