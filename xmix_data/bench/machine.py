"""What a figure must name: the machine it was measured on, and the versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xmix_data.cores import usable_cores

__all__ = ["describe"]


_PACKAGES = (
    "xmix_data",
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "ffcv",
    "pillow",
    "faiss-cpu",
    "faiss-gpu",
    "nvidia-dali-cuda130",
    "spdl",
    "torchcodec",
    "turboloader",
)
_FLAGS = ("sse4_2", "avx", "avx2", "avx512f", "avx512bw", "avx512_vbmi", "asimd")
"""Instruction sets that decide how fast a CPU moves pixels."""


def describe() -> dict[str, Any]:
    """Describe CPU, cores, memory, GPU and versions, without anything that names the host."""
    known = (_of_cpu("flags") or _of_cpu("Features")).split()  # x86 and ARM
    return {
        "cpu": _of_cpu("model name") or platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if flag in known],
        "cores": usable_cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "gpu": _gpu(),
        "system": f"Linux, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _of_cpu(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return ""


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
