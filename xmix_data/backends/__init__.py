"""Backends: from the plan's rows to image tensors on the device, behind one small protocol.

Comes in: an iterator of `PlanRows`, one a batch. Goes out: for each of them, in order, the
images. All backends read the same betons and follow the same plan; they differ in who decodes.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xmix_data.encoding import JPG
from xmix_data.errors import BetonError, MissingDependencyError

if TYPE_CHECKING:
    import torch

    from xmix_data.augment import Crop
    from xmix_data.beton import Domain
    from xmix_data.plan import PlanRows, Replace

__all__ = [
    "AUTO",
    "BACKENDS",
    "PIXELS_A_THREAD",
    "STREAM_STATS",
    "Backend",
    "ImageStream",
    "Spec",
    "choose",
    "make_backend",
    "replacement",
]

_log = logging.getLogger("xmix_data")

BACKENDS = {"ffcv": "FfcvBackend", "dali": "DaliBackend", "torch": "TorchBackend"}
"""Name of each backend, which is its module's, and its class."""

AUTO = "auto"
"""The name that stands for what `choose` finds."""

PIXELS_A_THREAD = 100_000
"""JPEG pixels of a sample, over the process's decoding threads, above which `choose` takes DALI.

A core that decodes, crops and mixes 260 million stored pixels a second (docs/benchmarks.md) gives
a GPU 2,600 samples a second at this share, about what ResNet-50 in half precision asks of one. No
figure of a GPU stands behind that yet: it is set so that in doubt the host decodes.
"""

STREAM_STATS = (
    "consumer_waited_s",
    "loader_waited_s",
    "decode_s",
    "copy_s",
    "bytes_read",
    "disk_waits",
)
"""What a stream counts; the loader's ``stats`` explains it."""


@dataclass(frozen=True)
class Spec:
    """What a backend needs to know, checked by the loader."""

    target: Domain
    source: Domain | None
    crop: Crop
    mix: bool
    """Whether target and source become one image."""
    device: torch.device
    dtype: torch.dtype
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_workers: int
    prefetch: int


class ImageStream(Protocol):
    """Batches of one pass, in order."""

    def __next__(self) -> tuple[PlanRows, tuple[torch.Tensor, ...]]:
        """The next rows with their images: (mixed,), (target,) or (target, source).

        Raises:
            StopIteration: The rows are exhausted.
            BetonError: An image is damaged (and so are all that might replace it); names beton,
                index and class.
        """

    def close(self) -> None:
        """Stop all work and free what it used; may be called twice."""

    def stats(self) -> dict[str, float]:
        """`STREAM_STATS` of the pass so far."""


class Backend(Protocol):
    """Makes image streams; holds no thread while none is open."""

    def stream(self, rows: Iterator[PlanRows], replace: Replace | None = None) -> ImageStream:
        """Begin a pass.

        Args:
            rows: One item a batch.
            replace: Names another image for one that is damaged; ``None`` stops at it. The rows
                that the stream gives back have the replacements, and name in ``damaged`` what
                they stand for.
        """


def replacement(
    replace: Replace, rows: PlanRows, side: int, item: int, attempt: int, domain: Domain
) -> PlanRows:
    """What ``replace`` gives.

    Raises:
        BetonError: There is no other image.
    """
    try:
        return replace(rows, side, item, attempt)
    except IndexError:
        where = domain.describe(int(rows.of(side)[0][item]))
        raise BetonError(
            f"{where} cannot be decoded, and so cannot the {attempt} others of its class that "
            "might replace it; convert the class again"
        ) from None


def choose(
    device: str, pixels: float, threads: int, problem: Callable[[], str | None]
) -> tuple[str, str]:
    """Which backend ``"auto"`` is.

    Args:
        device: Type of the device that batches arrive on.
        pixels: JPEG pixels of a sample, as stored, on average; of a pair those of both images.
        threads: The process's decoding threads.
        problem: Why DALI cannot be had, or ``None``; asked only where it would be chosen.

    Returns:
        Its name, and why, in words.
    """
    if device != "cuda":
        return "ffcv", "batches arrive on the CPU"
    share = f"{pixels:,.0f} JPEG pixels a sample for {threads} threads"
    if pixels <= PIXELS_A_THREAD * threads:
        return "ffcv", f"{share} are at most {PIXELS_A_THREAD:,} a thread"
    reason = f"{share} are more than {PIXELS_A_THREAD:,} a thread"
    found = problem()
    return ("dali", reason) if found is None else ("ffcv", f"{reason}, but {found}")


def _jpeg_pixels(domain: Domain) -> float:
    """Of an image on average; raw images have none."""
    return float((domain.heights.astype(float) * domain.widths * (domain.modes == JPG)).mean())


def _chosen(spec: Spec) -> str:
    def problem() -> str | None:
        from xmix_data.backends.dali import load

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
    """A backend by name.

    Args:
        name: Of `BACKENDS`, or `AUTO`.
        spec: What it needs to know.

    Raises:
        ValueError: No such backend.
        MissingDependencyError: What it needs is not installed; says how to install it.
    """
    if name == AUTO:
        name = _chosen(spec)
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}; it must be one of {', '.join(BACKENDS)}, {AUTO}")
    module = importlib.import_module(f"xmix_data.backends.{name}")
    backend: Backend = getattr(module, BACKENDS[name])(spec)
    return backend
