"""DALI itself: loaded when a backend is made, built into a pipeline, ended before the process.

Comes in: JPEG bytes and boxes of a batch. Goes out: its crops (K, H, W, 3) uint8.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from resource import RUSAGE_THREAD, getrusage
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xmix_data.backends.protocol import ImageStream, Spec
from xmix_data.backends.work import Job
from xmix_data.errors import MissingDependencyError

__all__ = ["BATCHES", "DaliDecoder", "SharedBatch", "load", "open_passes"]


BATCHES = 2
"""Number of batches that DALI works on at once: one on the host, one on the GPU."""
_CUDA = "13"
"""CUDA version of DALI where torch knows none; on a CPU any will do."""


def load(device: torch.device) -> Any:
    """Import the module `nvidia.dali`.

    Raises:
        MissingDependencyError: DALI is not installed, or for another CUDA than torch; says how to
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


open_passes: weakref.WeakSet[ImageStream] = weakref.WeakSet()
"""Passes that use DALI, which are ended before DALI ends itself."""


@cache
def _take_care_of_ends(dali: Any) -> None:
    """Have our passes end before DALI, at exit, ends the pipelines that there are.

    A forked child has none of their threads, and must not try.
    """
    atexit.register(_end_passes)  # the last one registered is the first to run
    pipelines: set[weakref.ref[Any]] = getattr(dali.Pipeline, "_pipes", set())

    def let_go() -> None:
        for one in list(pipelines):  # nor as garbage: it would wait for its threads
            if (pipeline := one()) is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipeline))
        pipelines.clear()

    os.register_at_fork(after_in_child=let_go)


def _end_passes() -> None:
    for one in list(open_passes):
        one.close()


@dataclass
class SharedBatch:
    """A batch, and those K of its images that DALI decodes."""

    job: Job
    """The batch."""
    items: list[npt.NDArray[np.int64]]
    """Places in the batch of the images that DALI decodes, one array for each side."""
    jpegs: list[npt.NDArray[np.uint8]]
    """Streams of these K images, side after side: views of the mapped betons."""
    boxes: npt.NDArray[np.int32]
    """(K, 4) int32 boxes of these images: top, left, height, width."""
    bytes_read: int
    """Number of stored bytes of all images, whoever decodes them."""


class DaliDecoder:
    """A DALI pipeline, and after a failure another one; batches come out in order.

    One thread uses it at a time. Building a pipeline takes a second or more on a GPU, so that it is
    kept from pass to pass.

    Args:
        spec: Options of the backend.
        dali: The module that `load` returned.
        refused: Function that is told why DALI could not decode a batch.
    """

    def __init__(self, spec: Spec, dali: Any, refused: Callable[[Exception], None]) -> None:
        self._spec, self._dali, self._refused = spec, dali, refused
        self._pipeline: Any = None
        self._largest = 0
        self.process = os.getpid()
        """In which its threads are."""
        self._inside: deque[SharedBatch] = deque()
        self._error: Exception | None = None
        self.faults = getrusage(RUSAGE_THREAD).ru_majflt
        """Number of times that the thread had waited for the disk when the last batch came out."""

    def __len__(self) -> int:
        """Return the number of batches that have not come out yet."""
        return len(self._inside)

    def begin(self, batch: SharedBatch) -> None:
        """Let DALI decode a batch while the caller does something else."""
        # DALI wants to know the largest; the first of a pass is a whole one, but for the last pass.
        images = len(batch.job.rows) * len(batch.job.sides)
        if images > self._largest:
            self._largest = images
            if not self._inside:
                self._pipeline = None
        self._inside.append(batch)
        self._feed(batch)

    def finish(self) -> tuple[SharedBatch, torch.Tensor | None]:
        """Wait for the oldest batch.

        Returns:
            The batch, and its crops (K, H, W, 3) uint8, or ``None`` where the host has to make
                them.
        """
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
            self._refused(self._error)
            self._pipeline = self._error = None  # after an error it can only be thrown away
            for other in self._inside:
                self._feed(other)
        return batch, crops

    def _feed(self, batch: SharedBatch) -> None:
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
        spec, dali = self._spec, self._dali
        fn, types, gpu = dali.fn, dali.types, spec.device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=self._largest,
            num_threads=spec.num_workers,
            device_id=spec.device.index if gpu else None,
            prefetch_queue_depth=BATCHES,
            exec_dynamic=True,  # what it gives out stays ours
        )
        with pipeline:
            # The bytes stay where they are: the betons are mapped for as long as the domain lives.
            jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1, no_copy=True)
            starts, shapes = (
                fn.external_source(name=name, dtype=types.INT32, ndim=1)
                for name in ("starts", "shapes")
            )
            window = {"axes": [0, 1], "normalized_anchor": False, "normalized_shape": False}
            decoding = {
                "device": "mixed" if gpu else "cpu",
                "adjust_orientation": False,
                "jpeg_fancy_upsampling": True,
                "affine": False,  # other processes of this machine would use the same cores
            }
            if gpu:
                # Of a window nvJPEG makes wrong chroma at the edges, so that DALI would have the
                # CPU decode it, with two lines of warning for each image.
                images = fn.decoders.image(jpegs, **decoding)
                crops = fn.slice(images, starts, shapes, **window)
            else:
                crops = fn.decoders.image_slice(jpegs, starts, shapes, **window, **decoding)
            if spec.crop.resizes:
                crops = fn.resize(
                    crops, size=spec.crop.shape, interp_type=types.INTERP_LINEAR, antialias=True
                )
            pipeline.set_outputs(crops)
        pipeline.build()
        return pipeline
