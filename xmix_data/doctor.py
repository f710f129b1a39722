"""What is installed, found and missing on this machine, and how to get it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

__all__ = ["Check", "examine"]


class Check(NamedTuple):
    """One line of the examination."""

    name: str
    ok: bool
    found: str
    """What was found, or what to do."""
    optional: bool = False


def examine() -> list[Check]:
    """Look for everything that xmix_data uses."""
    return [
        Check("python", True, f"{platform.python_version()} on {platform.machine()}"),
        Check("cores", True, f"{len(os.sched_getaffinity(0))} for this process"),
        *(_package(name) for name in ("torch", "torchvision", "numpy", "numba", "scipy", "pillow")),
        _package("ffcv"),
        _tried("libjpeg-turbo", _libjpeg),
        _tried("faiss", _faiss),
        _tried("kernels", _kernels),
        _tried("cuda", _cuda, optional=True),
        _tried("mixing kernel", _mixing_kernel, optional=True),
        _package("matplotlib", optional=True, extra="demo"),
        _package("scikit-learn", optional=True, extra="demo"),
    ]


def _package(name: str, *, optional: bool = False, extra: str = "") -> Check:
    try:
        return Check(name, True, version(name), optional)
    except PackageNotFoundError:
        what = f"'xmix_data[{extra}]'" if extra else name
        return Check(name, False, f"pip install {what}", optional)


def _tried(name: str, probe: Callable[[], str], *, optional: bool = False) -> Check:
    try:
        return Check(name, True, probe(), optional)
    except Exception as error:
        return Check(name, False, str(error), optional)


def _libjpeg() -> str:
    from xmix_data.jpeg import Decoder, library

    Decoder()  # refuses a libjpeg of another version than the one it was built with
    return f"through {Path(library()._name).name}"


def _faiss() -> str:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"{error}: pip install faiss-gpu") from error
    return f"{faiss.__version__}, {getattr(faiss, 'get_num_gpus', int)()} GPUs"


def _kernels() -> str:
    from xmix_data import decode

    kept = getattr(decode.mix_images, "_cache", None)
    folder = getattr(kept, "cache_path", None)
    return f"kept in {folder}" if folder else "compiled anew in every process: no writable cache"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("no GPU that torch can use; batches arrive on the CPU")
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _mixing_kernel() -> str:
    import torch

    from xmix_data.mixing import device_stage

    if not torch.cuda.is_available():
        return "compiled by numba, on the CPU"
    _, reason = device_stage(torch.device("cuda"))
    if reason is not None:
        raise RuntimeError(f"Triton's cannot run ({reason}); plain torch operations mix instead")
    return "compiled by Triton, on the GPU"
