"""What `xmix doctor` looks for, one probe a thing: packages, memory, FAISS, kernels, GPUs."""

from __future__ import annotations

import ctypes
import math
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from xmix_data.cores import cpu_quota, lines_of, usable_cores

__all__ = ["Check", "Found", "examine", "tried"]


_NO_VALUES: Mapping[str, Any] = MappingProxyType({})


class Check(NamedTuple):
    """Check of one thing: a line of `xmix doctor`."""

    name: str
    """Name of the thing."""
    ok: bool
    """Whether the thing is there, and enough."""
    found: str
    """What was found, or what to do, in words."""
    optional: bool = False
    """Whether xmix_data can do without the thing."""
    values: Mapping[str, Any] = _NO_VALUES
    """What was found as numbers and names, for programs."""

    @property
    def mark(self) -> str:
        """Mark of the line: ``ok``, ``missing`` (needed), ``absent`` (optional) or ``weak``."""
        if self.ok:
            return "ok"
        return "missing" if not self.optional else "weak" if self.values else "absent"

    def document(self) -> dict[str, Any]:
        """Return the check as plain values, for JSON."""
        return {**self._asdict(), "values": dict(self.values)}


Found = tuple[str, Mapping[str, Any]]
"""Type of what a probe finds: words, and the same as numbers and names."""


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
        tried("memory", _memory, optional=True),
        _shared_memory(),
        tried("torch", _torch),
        *(_package(name) for name in ("torchvision", "numpy", "numba", "scipy", "pillow")),
        tried("libjpeg-turbo", _libjpeg),
        tried("faiss", _faiss),
        tried("kernels", _kernels),
        tried("cuda", _cuda, optional=True),
        tried("mixing kernel", _mixing_kernel, optional=True),
        tried("dali", _dali, optional=True),
        *(_package(name, optional=True) for name in ("timm", "datasets", "tensorboard")),
        _package("ffcv", optional=True, extra="ffcv"),
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


def tried(name: str, probe: Callable[[], Found], *, optional: bool = False) -> Check:
    """Make a check of what a probe finds, or of why it fails."""
    try:
        found, values = probe()
    except Exception as error:
        return Check(name, False, " ".join(str(error).split()), optional)
    return Check(name, True, found, optional, values)


def _cores() -> Check:
    count, quota = usable_cores(), cpu_quota()
    words = "" if math.isinf(quota) else f", by a quota of {quota:g} (control group)"
    return Check("cores", True, f"{count} for this process{words}", values={"count": count})


def _memory() -> Found:
    lines = lines_of(Path("/proc/meminfo"))
    table = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    total, free = table["MemTotal"], table["MemAvailable"]
    return f"{_gb(total)}, {_gb(free)} of it free", {"total_bytes": total, "free_bytes": free}


def _shared_memory() -> Check:
    from xmix_data.beton.workers import shared_memory

    name = "/dev/shm"
    try:
        usage = shutil.disk_usage(name)
    except OSError as error:
        return Check(name, False, f"{error.strerror}: convert with --workers 0", True)
    found = f"{_gb(usage.total)}, {_gb(usage.free)} of it free"
    enough = usage.free >= shared_memory(usable_cores())
    if not enough:
        found += ": too little for the workers of a conversion; `docker run --shm-size 64m`, or "
        found += "convert with --workers 0"
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
    """Find the file that is mapped at an address of memory."""
    for line in lines_of(Path("/proc/self/maps")):
        span, *_, path = line.split(maxsplit=5)
        start, stop = (int(end, 16) for end in span.split("-"))
        if start <= address < stop:
            return Path(path)
    raise OSError(f"no file is mapped at {address:#x}")


def _faiss() -> Found:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"{error}: pip install faiss-cpu") from error
    for_gpus, count = hasattr(faiss, "StandardGpuResources"), getattr(faiss, "get_num_gpus", int)()
    built = f"built for GPUs, and finds {count}" if for_gpus else "built for CPUs only"
    if count:
        _try_faiss_on_gpu()
    return f"{faiss.__version__}, {built}", {
        "version": faiss.__version__,
        "built_for_gpus": for_gpus,
        "gpus": count,
    }


def _try_faiss_on_gpu() -> None:
    """Multiply two small matrices in a process that FAISS may end: it does, at some errors."""
    code = (
        "import faiss, numpy; x = numpy.ones((2, 8), numpy.float32); "
        "faiss.pairwise_distance_gpu(faiss.StandardGpuResources(), x, x)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.split("details:")[-1].strip().splitlines() or ["no reason given"])[0]
        raise RuntimeError(
            f"cannot use this GPU ({reason}), and may end the process: "
            "pip uninstall faiss-gpu; pip install faiss-cpu"
        )


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

    from xmix_data.backends.mixing import device_stage

    if not torch.cuda.is_available():
        return "compiled by numba, on the CPU", {"compiler": "numba"}
    _, reason = device_stage(torch.device("cuda"))
    if reason is not None:
        raise RuntimeError(f"Triton's cannot run ({reason}); plain torch operations mix instead")
    return "compiled by Triton, on the GPU", {"compiler": "triton"}


def _dali() -> Found:
    import torch

    from xmix_data.backends.dali_pipeline import load

    # On a GPU it refuses one that is built for another CUDA than torch.
    dali = load(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    cuda = str(dali.__cuda_version__)[:2]
    return f"{dali.__version__}, for CUDA {cuda}", {"version": dali.__version__, "cuda": cuda}
