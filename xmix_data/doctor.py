"""What is installed, found and missing on this machine, and what feeds its GPU.

Comes in: nothing, or a beton. Goes out: checks, each with words and plain values. `examine` only
looks; `feeding` measures for about three seconds and writes nothing.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from xmix_data.beton import Beton

__all__ = ["Check", "decode_rate", "examine", "feeding", "read_rate", "training_rate", "verdict"]

_NO_VALUES: Mapping[str, Any] = MappingProxyType({})
_LITTLE_SHARED_MEMORY = 256 << 20
"""Containers often have 64 MiB, which the semaphores and tensors of worker processes fill."""
_SAMPLED = 64
"""JPEGs of a beton that are decoded to measure."""
_READERS = 16
"""Reads at once: storage answers many far faster than one after the other."""
_BATCH, _SIDE = 48, 224
"""The paper's."""


class Check(NamedTuple):
    """One line of the examination."""

    name: str
    ok: bool
    found: str
    """What was found, or what to do."""
    optional: bool = False
    values: Mapping[str, Any] = _NO_VALUES
    """The same as numbers and names, for programs."""

    @property
    def mark(self) -> str:
        """``ok``; what must be there is ``missing``; what may be is ``absent``, or too ``weak``."""
        if self.ok:
            return "ok"
        return "missing" if not self.optional else "weak" if self.values else "absent"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "values": dict(self.values)}


Found = tuple[str, Mapping[str, Any]]


def examine() -> list[Check]:
    """Look for everything that xmix_data uses."""
    return [
        Check(
            "python",
            True,
            f"{platform.python_version()} on {platform.machine()}",
            values={"version": platform.python_version(), "machine": platform.machine()},
        ),
        _cores(),
        _tried("memory", _memory, optional=True),
        _shared_memory(),
        _tried("torch", _torch),
        *(_package(name) for name in ("torchvision", "numpy", "numba", "scipy", "pillow", "ffcv")),
        _tried("libjpeg-turbo", _libjpeg),
        _tried("faiss", _faiss),
        _tried("kernels", _kernels),
        _tried("cuda", _cuda, optional=True),
        _tried("mixing kernel", _mixing_kernel, optional=True),
        _tried("dali", _dali, optional=True),
        *(_package(name, optional=True) for name in ("timm", "datasets", "tensorboard")),
        _package("matplotlib", optional=True, extra="demo"),
        _package("scikit-learn", optional=True, extra="demo"),
    ]


def _package(name: str, *, optional: bool = False, extra: str = "") -> Check:
    try:
        found = version(name)
    except PackageNotFoundError:
        what = f"'xmix_data[{extra}]'" if extra else name
        return Check(name, False, f"pip install {what}", optional)
    return Check(name, True, found, optional, {"version": found})


def _tried(name: str, probe: Callable[[], Found], *, optional: bool = False) -> Check:
    try:
        found, values = probe()
    except Exception as error:
        return Check(name, False, " ".join(str(error).split()), optional)
    return Check(name, True, found, optional, values)


def _cores() -> Check:
    count = len(os.sched_getaffinity(0))
    return Check("cores", True, f"{count} for this process", values={"count": count})


def _memory() -> Found:
    lines = Path("/proc/meminfo").read_text().splitlines()
    table = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    total, free = table["MemTotal"], table["MemAvailable"]
    return f"{_gb(total)}, {_gb(free)} of it free", {"total_bytes": total, "free_bytes": free}


def _shared_memory() -> Check:
    name = "/dev/shm"
    try:
        usage = shutil.disk_usage(name)
    except OSError as error:
        return Check(name, False, f"{error.strerror}: convert with --workers 0", True)
    found = f"{_gb(usage.total)}, {_gb(usage.free)} of it free"
    enough = usage.free >= _LITTLE_SHARED_MEMORY
    if not enough:
        found += ": `docker run --shm-size 1g`, or convert with --workers 0"
    return Check(name, enough, found, True, {"total_bytes": usage.total, "free_bytes": usage.free})


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def _torch() -> Found:
    import torch

    built = torch.version.cuda
    words = f"for CUDA {built}" if built else "for CPUs only"
    return f"{torch.__version__}, built {words}", {"version": torch.__version__, "cuda": built}


def _libjpeg() -> Found:
    from xmix_data.jpeg import Decoder, library

    Decoder()  # refuses a libjpeg of another version than the one it was built with
    path = _mapped_at(ctypes.cast(library()["jpeg_std_error"], ctypes.c_void_p).value or 0)
    # It has no function that tells; cjpeg prints this text out of it.
    text = re.search(rb"libjpeg-turbo version ([\w.]+)", path.read_bytes())
    found = text[1].decode() if text else None
    return f"{found or 'of a version that it does not tell'}, {path}", {
        "version": found,
        "path": str(path),
    }


def _mapped_at(address: int) -> Path:
    """The file that lies in memory there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        start, stop = (int(end, 16) for end in span.split("-"))
        if start <= address < stop:
            return Path(path)
    raise OSError(f"no file is mapped at {address:#x}")


def _faiss() -> Found:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"{error}: pip install faiss-gpu") from error
    for_gpus, count = hasattr(faiss, "StandardGpuResources"), getattr(faiss, "get_num_gpus", int)()
    built = f"built for GPUs, and finds {count}" if for_gpus else "built for CPUs only"
    return f"{faiss.__version__}, {built}", {
        "version": faiss.__version__,
        "built_for_gpus": for_gpus,
        "gpus": count,
    }


def _kernels() -> Found:
    from xmix_data import decode

    kept = getattr(decode.mix_images, "_cache", None)
    folder = getattr(kept, "cache_path", None)
    return (
        f"kept in {folder}" if folder else "compiled anew in every process: no writable cache",
        {"folder": folder},
    )


def _cuda() -> Found:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no GPU that torch can use; batches arrive on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names), {"devices": names}


def _mixing_kernel() -> Found:
    import torch

    from xmix_data.mixing import device_stage

    if not torch.cuda.is_available():
        return "compiled by numba, on the CPU", {"compiler": "numba"}
    _, reason = device_stage(torch.device("cuda"))
    if reason is not None:
        raise RuntimeError(f"Triton's cannot run ({reason}); plain torch operations mix instead")
    return "compiled by Triton, on the GPU", {"compiler": "triton"}


def _dali() -> Found:
    import torch

    from xmix_data.backends.dali import load

    # On a GPU it refuses one that is built for another CUDA than torch.
    dali = load(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = str(dali.__cuda_version__)[:2]
    return f"{dali.__version__}, for CUDA {cuda}", {"version": dali.__version__, "cuda": cuda}


def feeding(pictures: Sequence[bytes], beton: Beton | None = None) -> list[Check]:
    """Measure whether this machine's cores and storage can feed its GPU.

    Args:
        pictures: JPEG streams, to decode where the beton has none.
        beton: Where to read from, past the page cache; ``None`` measures no storage.

    Returns:
        Decoding, storage, the GPU's step where there is a GPU, and what follows from them.
    """
    import torch

    checks = [
        _tried("decoding", lambda: _decoding(pictures, beton), optional=True),
        Check("storage", True, "not measured: `xmix doctor FILE.beton` reads a beton where it lies")
        if beton is None
        else _tried("storage", lambda: _storage(beton), optional=True),
    ]
    if torch.cuda.is_available():
        checks.append(_tried("gpu step", _step, optional=True))
    rates = {check.name: check.values.get("images_per_second") for check in checks}
    return [*checks, verdict(rates["decoding"], rates["storage"], rates.get("gpu step"))]


def verdict(decoded: float | None, read: float | None, taken: float | None) -> Check:
    """What the rates say together, in images a second; a pair is a target and a source image.

    Args:
        decoded: Of JPEGs, by all cores.
        read: From the storage; ``None`` where it was not measured.
        taken: By a training step on the GPU; ``None`` where there is none.
    """
    name = "feeding"
    if taken is None or decoded is None:
        what = "no GPU to feed; on the CPU, decoding and training share the cores"
        return Check(name, True, what if taken is None else "decoding was not measured", True)
    shares = {"jpg_jpg": decoded / 2 / taken, "raw_jpg": decoded / taken}
    text = (
        f"a step takes {taken:,.0f} mixed images a second; the cores decode "
        f"{shares['jpg_jpg']:.0%} of that for two JPEG domains, {shares['raw_jpg']:.0%} for a raw "
        "target and a JPEG source"
    )
    enough = shares["raw_jpg"] >= 1
    if not enough:
        text += ": more cores, smaller images, raw betons or backend='dali' will help"
    if read is not None:
        shares["storage"] = read / taken
        text += f"; the storage reads {shares['storage']:.0%} of the source images"
        if read < taken:
            enough = False
            text += ", until they are in memory"
    return Check(name, enough, text, True, shares)


def _decoding(pictures: Sequence[bytes], beton: Beton | None) -> Found:
    own = [] if beton is None else _some_jpegs(beton)
    cores = len(os.sched_getaffinity(0))
    rate, what = decode_rate(own or pictures, cores), "its own JPEGs" if own else "made-up JPEGs"
    size = sum(map(len, own or pictures)) / len(own or pictures)
    return (
        f"{rate:,.0f} images a second on {cores} cores, {what} of {size / 1e3:.0f} kB: at most "
        f"{rate / 2:,.0f} pairs of two JPEGs, {rate:,.0f} with a raw target",
        {"images_per_second": rate, "cores": cores, "bytes_per_image": size, "of_beton": bool(own)},
    )


def _some_jpegs(beton: Beton) -> list[bytes]:
    import numpy as np

    from xmix_data.encoding import JPG

    jpegs = np.flatnonzero(beton.modes == JPG)
    step = -(-len(jpegs) // _SAMPLED) or 1
    return [beton.data(int(index)).tobytes() for index in jpegs[::step]]


def decode_rate(jpegs: Sequence[bytes], threads: int, *, seconds: float = 0.5) -> float:
    """Images a second that libjpeg-turbo alone decodes, the bytes being in memory.

    Args:
        jpegs: Streams.
        threads: How many decode at once.
        seconds: To measure for, after one round that is not counted.
    """
    import numpy as np
    from PIL import Image

    from xmix_data import decode
    from xmix_data.encoding import JPG

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
    decode.decode_whole(0, count, table, spaces[0].target)  # compiles where nothing is kept

    def work(number: int) -> int:
        decode.decode_whole(0, count, table, spaces[number].target)
        return count

    return _rate(work, threads, seconds)


def _storage(beton: Beton) -> Found:
    rate = read_rate(beton.path, beton.pointers, beton.sizes)
    size = float(beton.sizes.mean())
    return (
        f"{rate:,.0f} images a second at random past the page cache, {rate * size / 1e6:,.0f} MB/s "
        f"({beton.path})",
        {"images_per_second": rate, "bytes_per_image": size, "path": str(beton.path)},
    )


def read_rate(path: Path, starts: Any, sizes: Any, *, seconds: float = 0.5) -> float:
    """Samples a second, at random, that the storage gives; the page cache is passed by.

    Args:
        path: The file.
        starts, sizes: (N,) where its samples lie, in bytes.
        seconds: To measure for.

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
    """What threads do together in a second; ``work`` gets a thread's number, and counts."""
    started = time.perf_counter()
    counts, errors = [0] * threads, list[BaseException]()

    def run(number: int) -> None:
        try:
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


def _step() -> Found:
    import torch
    from torchvision.models import resnet50

    rate = training_rate(resnet50(), torch.device("cuda"))
    return (
        f"{rate:,.0f} images a second: ResNet-50 forward and backward, bfloat16, batches of "
        f"{_BATCH}, {_SIDE}x{_SIDE} pixels",
        {"images_per_second": rate, "network": "resnet50", "batch_size": _BATCH, "size": _SIDE},
    )


def training_rate(
    network: nn.Module,
    device: Any,
    *,
    batch_size: int = _BATCH,
    size: int = _SIDE,
    seconds: float = 0.7,
) -> float:
    """Images a second that go forward and backward through a network in bfloat16.

    Args:
        network: Images (B, 3, size, size) -> (B, ...); moved to the device.
        device: A `torch.device`.
        batch_size: Images of a step.
        size: Side in pixels.
        seconds: To measure for, after three steps that are not counted.
    """
    import torch

    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.zeros(batch_size, 3, size, size, device=device)
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
