"""Rates of a machine's parts in a second or two: decoding, storage, a training step."""

from __future__ import annotations

import io
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["STEP_BATCH_SIZE", "STEP_SIZE", "decode_rate", "read_rate", "training_rate"]


_READERS = 16
"""Number of reads at once: storage answers many far faster than one after the other."""
STEP_BATCH_SIZE, STEP_SIZE = 48, 224
"""Batch size of the paper's training, and side of its images in pixels."""


def decode_rate(jpegs: Sequence[bytes], threads: int, *, seconds: float = 0.5) -> float:
    """Measure how many images a second libjpeg-turbo alone decodes, the bytes being in memory.

    Args:
        jpegs: JPEG streams.
        threads: Number of threads that decode at once.
        seconds: Seconds to measure for, after one round that is not counted.
    """
    import numpy as np
    from PIL import Image

    from xmix_data import decode
    from xmix_data.bench.limits import decode_whole
    from xmix_data.beton.layout import JPG

    streams = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs]
    widths, heights = np.array([Image.open(io.BytesIO(jpeg)).size for jpeg in jpegs]).T
    count = len(streams)
    table = decode.image_table(
        np.array([stream.ctypes.data for stream in streams], np.uint64),
        np.array([stream.size for stream in streams], np.uint64),
        np.full(count, JPG, np.uint8),
        heights,
        widths,
        np.stack([0 * heights, 0 * widths, heights, widths], axis=1).astype(np.int32),
        np.zeros(count, bool),
        (1, 1),
    )
    largest = int((widths * heights).max()), int(heights.max()), int(widths.max())
    spaces = [decode.Workspace(*largest, (1, 1), resizes=True) for _ in range(threads)]
    decode_whole(0, count, table, spaces[0].target)  # compiles where nothing is kept

    def work(number: int) -> int:
        decode_whole(0, count, table, spaces[number].target)
        return count

    return _rate(work, threads, seconds)


def read_rate(path: Path, starts: Any, sizes: Any, *, seconds: float = 0.5) -> float:
    """Measure how many samples a second the storage gives at random, past the page cache.

    Args:
        path: The file.
        starts, sizes: (N,) positions and numbers of bytes of its samples.
        seconds: Seconds to measure for.

    Raises:
        OSError: The file system refuses direct reads, as some do that lie in memory.
    """
    import numpy as np

    page = mmap.PAGESIZE
    first = np.asarray(starts, np.int64) // page * page
    spans = -(-(np.asarray(starts, np.int64) + np.asarray(sizes, np.int64) - first) // page) * page
    randoms = [np.random.default_rng(number) for number in range(_READERS)]
    buffers = [memoryview(mmap.mmap(-1, int(spans.max()))) for _ in range(_READERS)]
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        raise OSError(f"not measured: {path} takes no direct reads ({error.strerror})") from error

    def work(number: int) -> int:
        index = int(randoms[number].integers(len(first)))
        os.preadv(file, [buffers[number][: spans[index]]], int(first[index]))
        return 1

    try:
        return _rate(work, _READERS, seconds)
    finally:
        os.close(file)


def _rate(work: Callable[[int], int], threads: int, seconds: float) -> float:
    """Measure what threads do together in a second; ``work`` takes a thread's number and counts."""
    started = time.perf_counter()
    counts, errors = [0] * threads, list[BaseException]()

    def run(number: int) -> None:
        try:
            counts[number] += work(number)  # once at least, on a machine however busy
            while time.perf_counter() - started < seconds and not errors:
                counts[number] += work(number)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    if errors:
        raise errors[0]
    return sum(counts) / (time.perf_counter() - started)


def training_rate(
    network: nn.Module,
    device: Any,
    *,
    batch_size: int = STEP_BATCH_SIZE,
    size: int = STEP_SIZE,
    seconds: float = 0.7,
) -> float:
    """Measure how many images a second go forward and backward through a network in bfloat16.

    Args:
        network: Module from images (B, 3, size, size) to (B, ...); moved to the device.
        device: A `torch.device`.
        batch_size: Number of images of a step.
        size: Side of the images in pixels.
        seconds: Seconds to measure for, after three steps that are not counted.
    """
    import torch

    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(batch_size, 3, size, size, device=device)  # of zeros it is faster
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        network.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(images).float().square().mean()
        loss.backward()
        loss.item()  # waits for the device

    for _ in range(3):
        step()
    steps, started = 0, time.perf_counter()
    while steps == 0 or time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * batch_size / (time.perf_counter() - started)
