"""A conversion's workers: samples encoded in order by processes, whose death is noticed and named.

Comes in: an `ImageSource` and options. Goes out: (label, `StoredImage`), or a `Failure` by value.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from xmix_data.beton.encoding import StoredImage, encode_image
from xmix_data.beton.pixels import keep_pillow_silent
from xmix_data.errors import ImageError, XMixError
from xmix_data.images import ImageSource, label_problem

__all__ = ["Encoder", "Failure", "encoded_samples", "named_worker_death"]


_SAMPLES_PER_TASK = 16


class Failure(NamedTuple):
    """An image that could not be encoded, as a value: workers must not die of it."""

    where: str
    """Name of the sample, as `ImageSource.where` gives it."""
    reason: str
    """What is wrong with it."""
    is_label: bool
    """Whether it is the label that is wrong."""


class Encoder:
    """Map-style dataset of a conversion's workers: ``[i] -> (label, StoredImage)`` or `Failure`."""

    def __init__(self, source: ImageSource, indices: range, options: dict[str, Any]) -> None:
        self._source, self._indices, self._options = source, indices, options
        self._names = source.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[int, StoredImage] | Failure:
        index = self._indices[position]
        where = self._source.where(index)
        try:
            image, label = self._source.read(index)
            problem = label_problem(label, self._names)
            if problem is not None:
                return Failure(where, problem, True)
            return label, encode_image(image, **self._options)
        except Exception as error:  # whatever the user's dataset raises, named with its sample
            known_kind = isinstance(error, (ImageError, OSError))
            reason = str(error) if known_kind else f"{type(error).__name__}: {error}"
            return Failure(where, reason, False)


def encoded_samples(
    source: ImageSource, indices: range, options: dict[str, Any], num_workers: int | None
) -> Iterator[tuple[int, StoredImage] | Failure]:
    """Encode all samples, in order, by torch's DataLoader: it notices when a worker dies."""
    encoder = Encoder(source, indices, options)
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0))
    if num_workers == 0:
        for position in range(len(encoder)):
            yield encoder[position]
        return
    _require_shared_memory()
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        encoder,  # type: ignore[arg-type]
        batch_size=_SAMPLES_PER_TASK,
        num_workers=min(num_workers, -(-len(encoder) // _SAMPLES_PER_TASK)),
        collate_fn=_unchanged,
        prefetch_factor=4,
        worker_init_fn=_begin_worker,
    )
    for batch in loader:
        yield from batch


def _require_shared_memory() -> None:
    """Check that locks can be made in /dev/shm: workers get their work through queues.

    Raises:
        XMixError: The system refuses a lock.
    """
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise XMixError(
            f"worker processes cannot be started, as /dev/shm refuses a lock ({error.strerror}); "
            "free space there (in a container: --shm-size), or convert in one process "
            "(num_workers=0, --workers 0)"
        ) from error


def _unchanged(batch: Any) -> Any:
    return batch


def _begin_worker(_: int) -> None:
    """Keep Pillow silent, and have the system end this worker with its parent.

    Orphaned by SIGKILL, a worker would wait for ever to hand over images, and keep the lock.
    """
    keep_pillow_silent()
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


@contextmanager
def named_worker_death() -> Iterator[None]:
    """Turn torch's error of a dead worker, which may come anywhere in the block, into our own.

    Raises:
        XMixError: A worker process was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise XMixError(
            f"a conversion worker died ({str(error).strip()}); free memory or use fewer workers "
            "(num_workers)"
        ) from error
