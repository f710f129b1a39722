"""Part kernel: the device stage and the way to it, against what the device can do at most.

Goes out: Triton's kernels and plain torch operations beside a copy of as many bytes; host to device
from pinned and pageable memory; and what the host pays: launching, sending labels, waiting for
events. On a CPU only that plain operations run.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from gpu_parts.record import Figures, Options
from xmix_data import IMAGENET_MEAN, IMAGENET_STD
from xmix_data.backends import mixing
from xmix_data.normalise import scale_and_shift

SIDE = 224
BATCHES, BATCHES_TINY = (256, 48), (4,)

Row = dict[str, Any]


def run(options: Options) -> bool:
    """Measure the kernels, then the host's part."""
    device = torch.device("cuda", 0) if options.cuda else torch.device("cpu")
    batches = BATCHES_TINY if options.tiny else BATCHES
    configuration = {"rounds": 1, "device": options.device, "batch_sizes": batches, "crop": SIDE}
    figures = Figures("kernel", options, configuration)
    figures.save("device", torch.cuda.get_device_name() if options.cuda else "cpu")
    module: ModuleType = mixing
    if options.cuda:
        module = start(figures, device)
        figures.tried("device_copy_1GiB_GBps_read_plus_written", copy_rate, device)
        figures.tried("bf16_matmul_TFLOPs", matmul_rate, device)
    for batch in batches:
        mixed_batches(figures, module, batch, device)
        if options.cuda:
            key = f"host_us_of_a_launch {batch}"
            figures.tried(key, launch_us, module, batch, device)
    if options.cuda:
        for batch in batches:
            figures.tried(f"host_to_device {batch}", host_to_device, batch, device)
        figures.tried("labels_of_a_batch", labels_of_a_batch, max(batches), device)
        figures.tried("event_synchronize_latency_us", event_latency_us)
        key = "event_synchronize_of_a_past_event_us, 8 threads"
        figures.tried(key, past_event_us, 8)
    return not figures.failed


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Of one call: on a GPU the median of many with a cold cache, on a CPU the second one."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(function, warmup=25, rep=150, return_mode="median")) / 1000
    function()
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def start(figures: Figures, device: torch.device) -> ModuleType:
    """What a process pays once, and the module that mixes on this device."""
    started = time.perf_counter()
    torch.zeros(1, device=device).item()
    figures.save("cuda_start_s", time.perf_counter() - started)
    started = time.perf_counter()
    module, reason = mixing.device_stage(device)
    seconds = time.perf_counter() - started
    figures.save("device_stage_first_call_s", [seconds, module.__name__, reason])
    return module


def copy_rate(device: torch.device) -> float:
    """GB/s of a device copy, read and written: the ceiling of all that moves memory."""
    read = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device=device)
    written = torch.empty_like(read)
    return 2 * read.numel() / seconds_of(lambda: written.copy_(read), device) / 1e9


def matmul_rate(device: torch.device) -> float:
    """TFLOP/s of a large product: the ceiling of all that computes."""
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device) / 1e12


def arguments(batch: int, device: torch.device) -> tuple[Any, ...]:
    """Of `mixing.mix`, all but the dtype: crops, flips, λ, scale and shift."""
    random = torch.Generator().manual_seed(0)
    shape = (2, batch, SIDE, SIDE, 3)
    target, source = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8).to(device)
    target_flips, source_flips, lam = torch.rand((3, batch), generator=random).to(device)
    constants = scale_and_shift(IMAGENET_MEAN, IMAGENET_STD)
    scale, shift = (torch.from_numpy(x).float().to(device) for x in constants)
    flips = (target_flips < 0.5).float(), (source_flips < 0.5).float()
    return target, source, *flips, lam, scale, shift


def mixed_batches(figures: Figures, module: ModuleType, batch: int, device: torch.device) -> None:
    """Pairs of a batch mixed, and one side of it normalised."""
    mixed = arguments(batch, device)
    for dtype in (torch.bfloat16, torch.float32):
        key = f"mix {batch} {str(dtype).removeprefix('torch.')}"
        figures.tried(key, mix, module, mixed, dtype, device)
    target, flips, scale, shift = mixed[0], mixed[2], mixed[5], mixed[6]
    one = target, flips, scale, shift, torch.bfloat16
    moved = target.numel() * (1 + torch.bfloat16.itemsize)
    figures.tried(
        f"normalise {batch} bfloat16", speed, lambda: module.normalise(*one), moved, device
    )


def mix(
    module: ModuleType, mixed: tuple[Any, ...], dtype: torch.dtype, device: torch.device
) -> Row:
    """Triton's kernel, plain operations, and a copy that moves as many bytes."""
    started = time.perf_counter()
    ours = module.mix(*mixed, dtype)
    if device.type == "cuda":
        torch.cuda.synchronize()
    row: Row = {"first_call_s": time.perf_counter() - started}
    plain = mixing.mix(*mixed, dtype)
    row["max_error_to_plain"] = (ours.double() - plain.double()).abs().max().item()
    moved = mixed[0].numel() * (2 + dtype.itemsize)  # two crops read, one image written
    if module is not mixing:
        row["triton"] = speed(lambda: module.mix(*mixed, dtype), moved, device)
    row["plain"] = speed(lambda: mixing.mix(*mixed, dtype), moved, device)
    read = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    written = torch.empty_like(read)
    row["copy_of_as_many_bytes"] = speed(lambda: written.copy_(read), moved, device)
    return row


def speed(function: Callable[[], Any], moved: int, device: torch.device) -> Row:
    """Of a function that reads and writes so many bytes."""
    seconds = seconds_of(function, device)
    return {"us": 1e6 * seconds, "GBps": moved / seconds / 1e9}


def launch_us(module: ModuleType, batch: int, device: torch.device) -> float:
    """The host's time of a launch, whether or not the device keeps up."""
    *of_pairs, scale, shift = arguments(batch, device)
    one = [x[:1] for x in of_pairs]
    torch.cuda.synchronize()
    calls, started = 200, time.perf_counter()
    for _ in range(calls):
        module.mix(*one, scale, shift, torch.bfloat16)
    seconds = time.perf_counter() - started
    torch.cuda.synchronize()
    return 1e6 * seconds / calls


def host_to_device(batch: int, device: torch.device) -> Row:
    """Two sides of a slot from pinned memory, as `DeviceStage` sends them; and from pageable."""
    shape = (2, batch, SIDE, SIDE, 3)
    torch.cuda.synchronize()
    started = time.perf_counter()
    pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    allocated = time.perf_counter() - started
    image = torch.randint(0, 256, (1, 1, SIDE, SIDE, 3), dtype=torch.uint8)
    pinned.copy_(image.expand(shape))
    there = torch.empty(shape, dtype=torch.uint8, device=device)
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(12):
        begun.record()
        for side in range(2):
            there[side].copy_(pinned[side], non_blocking=True)
        ended.record()
        ended.synchronize()
        times.append(begun.elapsed_time(ended) / 1000)
    if not torch.equal(there.cpu(), pinned):
        raise RuntimeError("what arrived on the device is not what was sent")
    pageable = torch.empty(shape, dtype=torch.uint8).random_(0, 256)
    started = time.perf_counter()
    there.copy_(pageable)
    pageable_s = time.perf_counter() - started
    seconds = statistics.median(times)
    return {
        "MB": pinned.numel() / 1e6,
        "ms": 1e3 * seconds,
        "GBps": pinned.numel() / seconds / 1e9,
        "pinned_allocation_ms": 1e3 * allocated,
        "pageable_GBps": pinned.numel() / pageable_s / 1e9,
    }


def labels_of_a_batch(batch: int, device: torch.device) -> Row:
    """What the consumer pays for a batch's small tensors: each by itself as today, or in one."""
    labels = [*(torch.arange(batch) for _ in range(3)), torch.rand(batch)]
    pinned = torch.empty((len(labels), batch), dtype=torch.int64, pin_memory=True)
    there = torch.empty(pinned.shape, dtype=pinned.dtype, device=device)
    kept: list[torch.Tensor] = []

    def each() -> None:
        kept[:] = [x.pin_memory().to(device, non_blocking=True) for x in labels]

    def in_one() -> None:
        for row, x in zip(pinned, labels, strict=True):
            (row.view(torch.float64) if x.is_floating_point() else row).copy_(x)
        there.copy_(pinned, non_blocking=True)

    busy = torch.randn(6000, 6000, device=device)
    found = {}
    for name, function in (("pin_memory of each", each), ("one copy", in_one)):
        for stream in ("idle", "busy"):
            torch.cuda.synchronize()
            times = []
            for number in range(120):
                if stream == "busy" and number % 8 == 0:
                    busy @ busy
                started = time.perf_counter()
                function()
                times.append(1e6 * (time.perf_counter() - started))
            torch.cuda.synchronize()
            found[f"{name}, {stream} stream"] = {
                "first_us": times[0],
                "median_us": statistics.median(times[20:]),
                "max_us": max(times[1:]),
            }
    return found


def event_latency_us() -> Row:
    """How late a thread learns that a copy has ended; decoding threads wait for such events."""
    found = {}
    for name, blocking in (("blocking", True), ("spinning", False)):
        late = []
        for _ in range(30):
            event = torch.cuda.Event(blocking=blocking)
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            torch.cuda._sleep(2_000_000)  # about a millisecond
            event.record()
            ended.record()
            started = time.perf_counter()
            event.synchronize()
            waited = time.perf_counter() - started
            ended.synchronize()
            late.append(waited - begun.elapsed_time(ended) / 1000)
        found[name] = 1e6 * statistics.median(late)
    return found


def past_event_us(count: int) -> float:
    """What looking at an event costs in threads that never chose a device."""
    event = torch.cuda.Event(blocking=True)
    event.record()
    torch.cuda.synchronize()
    calls, spent = 200, []

    def look() -> None:
        started = time.perf_counter()
        for _ in range(calls):
            event.synchronize()
        spent.append((time.perf_counter() - started) / calls)

    threads = [threading.Thread(target=look) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1e6 * statistics.median(spent)
