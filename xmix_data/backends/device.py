"""The way to a GPU: crops in pinned host memory, a copy stream of its own, then one pass over both.

Comes in: uint8 crops that host threads wrote into a `Slot`. Goes out: images on the device, in
fresh memory that belongs to the caller. Backends that decode on the host share this stage.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from xmix_data.backends import mixing
from xmix_data.backends.profiling import ProfiledRange
from xmix_data.backends.protocol import Spec
from xmix_data.normalise import scale_and_shift
from xmix_data.plan import PlanRows

__all__ = ["DeviceStage", "Made", "Slot", "in_one_copy", "packed", "pinned", "unpacked"]

_ALIGNMENT = 8
"""Bytes; a tensor of any type may begin there."""


def in_one_copy(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Send small tensors to a GPU together, without waiting for what it has to do.

    From memory that is not pinned the host would wait; and each copy costs as much as its launch.

    Args:
        tensors: Contiguous, on the CPU.
        device: A CUDA device.

    Returns:
        The same on the device, in memory of their own.
    """
    with ProfiledRange("xmix: copy"):
        there = packed(tensors).pin_memory().to(device, non_blocking=True)
        return unpacked(there, tensors)


def packed(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Lay tensors one behind the other, as bytes."""
    parts = []
    for tensor in tensors:
        parts.append(tensor.reshape(-1).view(torch.uint8))
        parts.append(parts[-1].new_zeros(-parts[-1].numel() % _ALIGNMENT))
    return torch.cat(parts)


def unpacked(block: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors that `packed` laid into a block, wherever the block is now."""
    tensors, start = [], 0
    for tensor in like:
        size = tensor.numel() * tensor.element_size()
        part = block[start : start + size]
        tensors.append(part.view(tensor.dtype).reshape(tensor.shape))
        start += size + -size % _ALIGNMENT
    return tensors


def pinned(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return uint8 host memory that a GPU copies from at full speed.

    torch's own allocator takes the next power of two: up to twice as much of what the whole machine
    cannot swap out. This takes whole pages, and gives them back with the last view of them.
    """
    size = math.prod(shape)
    if size == 0:
        return torch.empty(shape, dtype=torch.uint8, device="cpu")
    # Shared: a fork would leave the pages that the GPU knows to the child, on older kernels.
    memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    address, runtime = memory.ctypes.data, torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(address, size, 0)):
        with suppress(RuntimeError):  # or the next kernel would be told of it
            torch.ones(1, device=device)
        return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=True)
    end = weakref.finalize(memory, _unpin, address, device)
    end.atexit = False  # the process gives all of it back
    return torch.from_numpy(memory).view(shape)


def _unpin(address: int, device: torch.device) -> None:
    with torch.cuda.device(device):
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


class Made(NamedTuple):
    """Crops of one side of a batch that the device made itself."""

    crops: torch.Tensor
    """(K, H, W, 3) uint8 crops on the device."""
    items: npt.NDArray[np.int64]
    """(M,) images of the batch, ascending, that are taken from here and not from the host."""
    places: npt.NDArray[np.int64]
    """(M,) places of these images in ``crops``."""

    def put_together(self, host_crops: torch.Tensor, out: torch.Tensor) -> None:
        """Fill ``out`` (B, H, W, 3) with these crops and the host's (B, H, W, 3) for the rest."""
        if len(self.items) < len(out):
            out.copy_(host_crops, non_blocking=True)
        crops = self.crops
        if len(self.items) == len(crops) == len(out):
            out.copy_(crops, non_blocking=True)
        elif len(self.items):
            items, places = (torch.from_numpy(x).to(out.device) for x in self[1:])
            out.index_copy_(0, items, crops[places])


class Slot:
    """Room for one batch on its way: the same buffers on the host, pinned, and on the device.

    Args:
        count: Number of images (pairs).
        shape: Height and width of the crops.
        sides: Number of domains, 1 or 2.
        device: The CUDA device.
    """

    def __init__(
        self, count: int, shape: tuple[int, int], sides: int, device: torch.device
    ) -> None:
        crops = (sides, count, *shape, 3)
        self.host_crops = pinned(crops, device)
        self.crops = torch.empty(crops, dtype=torch.uint8, device=device)
        # Mirror the target, mirror the source, λ.
        self.host_numbers = torch.empty(
            (3, count), dtype=torch.float32, device="cpu", pin_memory=True
        )
        self.numbers = torch.empty((3, count), dtype=torch.float32, device=device)
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        """Event after which the host's buffers have been read, and the device's are full."""
        self.released = torch.cuda.Event()  # type: ignore[no-untyped-call]
        """Event after which the device's buffers have been read."""
        self.made: Sequence[Made] = ()
        """Crops that the device made, kept until ``copied``."""

    def wait(self) -> None:
        """Wait until what the host's buffers held before has left them."""
        with ProfiledRange("xmix: wait for the device"):
            self.copied.synchronize()


class DeviceStage:
    """Slots of a loader on a GPU, which are used again and again, over passes."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._stream = torch.cuda.Stream(spec.device)  # type: ignore[no-untyped-call]
        self._slots: list[Slot] = []
        self._free: deque[Slot] = deque()
        self._lock = threading.Lock()
        self._passes = 0
        self._mixing, _ = mixing.device_stage(spec.device)
        scale, shift = scale_and_shift(spec.mean, spec.std)
        if spec.dtype == torch.uint8:  # the crops as they are
            scale, shift = np.ones(3), np.zeros(3)
        self._scale = torch.from_numpy(scale).float().to(spec.device)
        self._shift = torch.from_numpy(shift).float().to(spec.device)

    def free_slot(self, count: int) -> Slot:
        """Return a slot for ``count`` images, whose host buffers are free once it is ``copied``."""
        with self._lock:
            slot = self._free.popleft() if self._free else None
        if slot is not None and slot.host_crops.shape[1] >= count:
            return slot
        if slot is not None:
            slot.released.synchronize()  # before its memory is given back
            self._slots.remove(slot)
        sides = 1 if self._spec.source is None else 2
        # A new thread would begin on the first device; and memory belongs to the stream that it
        # was asked for on, which is the first to write it.
        with torch.cuda.device(self._spec.device), torch.cuda.stream(self._stream):
            slot = Slot(count, self._spec.crop.shape, sides, self._spec.device)
        self._slots.append(slot)
        return slot

    def begin(self) -> None:
        """Note that a pass begins."""
        with self._lock:
            self._passes += 1

    def recover(self) -> None:
        """Take back the slots of batches that a pass made and did not deliver.

        Where another pass has begun meanwhile, which may hold some of them, it does so at its end.
        """
        self._stream.synchronize()
        with self._lock:
            self._passes -= 1
            if self._passes == 0:
                self._free = deque(self._slots)

    def copy(self, slot: Slot, rows: PlanRows, made: Sequence[Made] = ()) -> None:
        """Send a slot's filled crops on their way; called by the thread that finished them.

        Args:
            slot: Slot whose host buffers hold what the host made.
            rows: Rows of the batch.
            made: For each side the crops that the device made, which need not be sent.
        """
        with ProfiledRange("xmix: copy"):
            self._copy(slot, rows, made)

    def _copy(self, slot: Slot, rows: PlanRows, made: Sequence[Made]) -> None:
        count = len(rows)
        slot.made = made
        slot.host_numbers[0, :count] = torch.from_numpy(rows.target_crops.flips)
        if rows.source_crops is not None:
            slot.host_numbers[1, :count] = torch.from_numpy(rows.source_crops.flips)
        slot.host_numbers[2, :count] = torch.from_numpy(rows.lam)
        with torch.cuda.device(self._spec.device), torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.released)
            for side in range(len(slot.crops)):
                host_crops, crops = slot.host_crops[side, :count], slot.crops[side, :count]
                if made:
                    made[side].put_together(host_crops, crops)
                else:
                    crops.copy_(host_crops, non_blocking=True)
            slot.numbers.copy_(slot.host_numbers, non_blocking=True)
            slot.copied.record(self._stream)

    def deliver(self, slot: Slot, count: int) -> tuple[torch.Tensor, ...]:
        """Make (mixed,), (target,) or (target, source) on the caller's current stream."""
        with torch.cuda.device(self._spec.device):  # Triton launches on the current one
            consumer = torch.cuda.current_stream()
            consumer.wait_event(slot.copied)
            with ProfiledRange("xmix: mix" if self._spec.mix else "xmix: normalise"):
                images = self._mixed(slot.crops[:, :count], slot.numbers[:, :count])
            slot.released.record(consumer)
            slot.crops.record_stream(consumer)
            slot.numbers.record_stream(consumer)
        with self._lock:
            self._free.append(slot)
        return images

    def _mixed(self, crops: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flips, lam = numbers[:2], numbers[2]
        constants = self._scale, self._shift, self._spec.dtype
        if self._spec.mix:
            return (self._mixing.mix(crops[0], crops[1], flips[0], flips[1], lam, *constants),)
        return tuple(
            self._mixing.normalise(crop, flip, *constants)
            for crop, flip in zip(crops, flips, strict=False)
        )
