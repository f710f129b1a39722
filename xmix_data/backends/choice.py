"""A backend by name, and what ``"auto"`` stands for on a machine.

Comes in: a name and a `Spec`. Goes out: a `Backend`, its module imported only now.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from xmix_data.backends.protocol import Backend, Spec
from xmix_data.beton.layout import JPG
from xmix_data.errors import MissingDependencyError

if TYPE_CHECKING:
    from xmix_data.beton import Domain

__all__ = ["AUTO", "BACKENDS", "PIXELS_PER_THREAD", "choose", "make_backend"]


_log = logging.getLogger("xmix_data")

BACKENDS = {"host": "HostBackend", "dali": "DaliBackend", "reference": "ReferenceBackend"}
"""Class of each backend, by the name of the backend, which is its module's too."""

EARLIER_NAMES = {"ffcv": "host", "torch": "reference"}
"""Present name of each backend, by the name that it had earlier, which is accepted for good."""

AUTO = "auto"
"""Name that stands for the backend that `choose` finds."""

PIXELS_PER_THREAD = 50_000
"""JPEG pixels of a sample, for each of the process's decoding threads, above which DALI is chosen.

Measured between 33,000, which the host feeds an H100's ResNet-50 as fast as it trains, and 66,000,
where DALI's steps were a tenth shorter (docs/dali.md).
"""


def choose(
    device: str, pixels: float, threads: int, problem: Callable[[], str | None]
) -> tuple[str, str]:
    """Choose the backend that ``"auto"`` stands for.

    Args:
        device: Type of the device that batches arrive on.
        pixels: JPEG pixels of a sample, as stored, on average; of a pair those of both images.
        threads: Number of the process's decoding threads.
        problem: Function that says why DALI cannot be had, or ``None``; called only where DALI
            would be chosen.

    Returns:
        Name of the backend, and the reason in words.
    """
    if device != "cuda":
        return "host", "batches arrive on the CPU"
    share = f"{pixels:,.0f} JPEG pixels a sample for {threads} threads"
    if pixels <= PIXELS_PER_THREAD * threads:
        return "host", f"{share} are at most {PIXELS_PER_THREAD:,} a thread"
    reason = f"{share} are more than {PIXELS_PER_THREAD:,} a thread"
    found = problem()
    return ("dali", reason) if found is None else ("host", f"{reason}, but {found}")


def _jpeg_pixels(domain: Domain) -> float:
    """Compute the mean number of JPEG pixels of a domain's images; raw images have none."""
    return float((domain.heights.astype(float) * domain.widths * (domain.modes == JPG)).mean())


def _chosen(spec: Spec) -> str:
    def problem() -> str | None:
        from xmix_data.backends.dali_pipeline import load

        try:
            load(spec.device)
        except MissingDependencyError as error:
            return str(error)
        return None

    domains = [spec.target] if spec.source is None else [spec.target, spec.source]
    pixels = sum(map(_jpeg_pixels, domains))
    name, reason = choose(spec.device.type, pixels, spec.num_workers, problem)
    _log.info("backend %r is %r: %s", AUTO, name, reason)
    return name


def make_backend(name: str, spec: Spec) -> Backend:
    """Make a backend by its name.

    Args:
        name: A name of `BACKENDS` or `EARLIER_NAMES`, or `AUTO`.
        spec: Options of the backend.

    Raises:
        ValueError: There is no such backend.
        MissingDependencyError: What it needs is not installed; says how to install it.
    """
    if name not in (*BACKENDS, *EARLIER_NAMES, AUTO):
        raise ValueError(f"backend is {name!r}; it must be one of {', '.join(BACKENDS)}, {AUTO}")
    name = _chosen(spec) if name == AUTO else EARLIER_NAMES.get(name, name)
    module = importlib.import_module(f"xmix_data.backends.{name}")
    backend: Backend = getattr(module, BACKENDS[name])(spec)
    return backend
