"""A conversion's work: samples read and encoded, in order, by processes or by threads.

Comes in: an `ImageSource` and options. Goes out: (label, `StoredImage`), or a `Failure` by value.

What several processes may read at once, is read so. A user's dataset is read by this process, one
sample after the other, because an open file has one position for all who read it; threads encode,
as Pillow works without the GIL. The death of a process is noticed, and named by its cause.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import pickle
import re
import shutil
import signal
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from xmix_data.beton.encoding import StoredImage, encode_image
from xmix_data.beton.pixels import keep_pillow_silent, own_image
from xmix_data.cores import usable_cores
from xmix_data.errors import DatasetError, ImageError, XMixError
from xmix_data.images import ImageSource, label_problem
from xmix_data.threads import name_this_thread

__all__ = [
    "Encoder",
    "Failure",
    "encoded_samples",
    "named_worker_death",
    "require_main_guard",
    "shared_memory",
]


_SAMPLES_PER_TASK = 16
_AHEAD_PER_THREAD = 2
"""Samples that wait for each encoding thread; a decoded photograph may take 100 MB."""
_LIMITS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Errors of a process that met a limit, for which no image is to blame."""
_MOUNT = (
    *(errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH),
)
"""Errors of a mount or a network that is gone: they would be those of all images that follow."""


class Failure(NamedTuple):
    """A sample that could not be encoded, as a value: workers must not die of it."""

    where: str
    """Name of the sample, as `ImageSource.where` gives it."""
    reason: str
    """What is wrong with it."""
    error: XMixError
    """The error to raise."""
    skippable: bool
    """Whether the image alone is to blame."""
    cause: Exception | None = None
    """What was raised, for the error's cause."""


class _Sample(NamedTuple):
    """A sample that was read and is not yet encoded."""

    where: str
    image: Any
    label: int


class Encoder:
    """Map-style dataset of a conversion's workers: ``[i] -> (label, StoredImage)`` or `Failure`."""

    def __init__(self, source: ImageSource, indices: range, options: dict[str, Any]) -> None:
        self._source, self._indices, self._options = source, indices, options
        self._names = source.class_names
        self._distant = getattr(source, "distant", False)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[int, StoredImage] | Failure:
        return self.encode(self.read(position))

    def __getitems__(self, positions: list[int]) -> list[tuple[int, StoredImage] | Failure]:
        """Make the samples of a task; those that a store sends are waited for all at once."""
        if not self._distant:
            return [self[position] for position in positions]
        with ThreadPoolExecutor(len(positions), "xmix-read") as pool:
            return [self.encode(sample) for sample in pool.map(self.read, positions)]

    def read(self, position: int) -> _Sample | Failure:
        """Read a sample; nothing that is read later changes it."""
        index = self._indices[position]
        where = self._source.where(index)
        try:
            image, label = self._source.read(index)
            problem = label_problem(label, self._names)
            if problem is None:
                return _Sample(where, own_image(image), label)
            wrong = ImageError(f"{where}: {problem}; correct the label")
            return Failure(where, problem, wrong, skippable=False)
        except Exception as error:  # whatever the user's dataset raises, named with its sample
            no_answer = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if self._distant and no_answer:  # the store or the network, and not the image
                return Failure(where, str(error), XMixError(str(error)), False, error)
            return _failure(where, error)

    def encode(self, sample: _Sample | Failure) -> tuple[int, StoredImage] | Failure:
        """Encode a sample that was read; a failure stays one."""
        if isinstance(sample, Failure):
            return sample
        try:
            return sample.label, encode_image(sample.image, **self._options)
        except Exception as error:
            if _is_no_image(sample.image):
                error = DatasetError(str(error))
            return _failure(sample.where, error)


def _is_no_image(image: Any) -> bool:
    """Return whether it is no kind of image at all, as a transform to tensors makes them."""
    if image is None or isinstance(image, (bytes, Image.Image)):
        return False
    dtype = str(image.dtype if hasattr(image, "dtype") else np.asarray(image).dtype)
    return not dtype.rpartition(".")[2].startswith("uint")


def _failure(where: str, error: Exception) -> Failure:
    """Describe what was raised over a sample, and whether the image is to blame."""
    number, remedy = getattr(error, "errno", None), ""
    if isinstance(error, MemoryError) or number in _LIMITS:
        remedy = (
            "use fewer workers (num_workers), or raise the limits of memory and of open files "
            "(ulimit)"
        )
    elif number in _MOUNT:
        remedy = "see that its mount or the network is there, and convert again"
    if remedy:
        reason = str(error) or "no memory is left"
        limit = XMixError(f"{where}: {reason}; the image is not to blame: {remedy}")
        return Failure(where, reason, limit, False, error)
    known_kind = isinstance(error, (ImageError, OSError))
    reason = str(error) if known_kind else f"{type(error).__name__}: {error}"
    if isinstance(error, DatasetError):
        fault = DatasetError(f"{where}: {reason}; correct the dataset")
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        return Failure(where, reason, fault, False, cause)
    remedy = "mend or remove it, or skip such images (on_error='skip')"
    return Failure(where, reason, ImageError(f"{where}: {reason}; {remedy}"), True, error)


def encoded_samples(
    source: ImageSource,
    indices: range,
    options: dict[str, Any],
    num_workers: int | None,
    workers: list[BaseProcess],
) -> Generator[tuple[int, StoredImage] | Failure, None, None]:
    """Encode samples, in order.

    Args:
        source: The samples.
        indices: Those to encode.
        options: Options of `encode_image`.
        num_workers: Processes; 0: all is done by this thread, and so it is in a process that may
            have no processes of its own, as one of a `multiprocessing.Pool`. ``None``: a process
            for each core where several may read the source, else this thread reads and a thread
            for each core encodes.
        workers: The list of `named_worker_death`; processes that are started are put into it.

    Yields:
        What the encoder makes of each sample.

    Raises:
        XMixError: Processes cannot be started.
    """
    encoder = Encoder(source, indices, options)
    cores = usable_cores()
    if num_workers is None and not getattr(source, "parallel", False):
        yield from _by_threads(encoder, cores)
    elif num_workers == 0 or multiprocessing.current_process().daemon:
        for position in range(len(encoder)):
            yield encoder[position]
    else:
        yield from _by_processes(encoder, num_workers or cores, workers)


def _by_threads(encoder: Encoder, count: int) -> Iterator[tuple[int, StoredImage] | Failure]:
    waiting: deque[Future[tuple[int, StoredImage] | Failure]] = deque()
    with ThreadPoolExecutor(count, "xmix-encode", name_this_thread) as pool:
        try:
            for position in range(len(encoder)):
                sample = encoder.read(position)
                with _named_limit():
                    waiting.append(pool.submit(encoder.encode, sample))
                if len(waiting) > _AHEAD_PER_THREAD * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _by_processes(
    encoder: Encoder, count: int, workers: list[BaseProcess]
) -> Iterator[tuple[int, StoredImage] | Failure]:
    """Encode by torch's DataLoader: it notices when a worker dies."""
    count = min(count, -(-len(encoder) // _SAMPLES_PER_TASK))
    _require_shared_memory(count)
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        encoder,  # type: ignore[arg-type]
        batch_size=_SAMPLES_PER_TASK,
        num_workers=count,
        collate_fn=_portable,
        prefetch_factor=4,
        worker_init_fn=_begin_worker,
        generator=torch.Generator("cpu"),  # the caller's random numbers go on as they would have
    )
    others = multiprocessing.active_children()
    try:
        with _named_limit(), torch.device("cpu"):  # where it draws a seed
            batches = iter(loader)
    except (AttributeError, TypeError, pickle.PicklingError, EOFError, ConnectionError) as error:
        if multiprocessing.get_start_method() == "fork":
            raise
        raise XMixError(
            f"worker processes cannot be started ({type(error).__name__}: {error}): {_guard()}; a "
            "dataset must be one that can be pickled"
        ) from error
    workers += [child for child in multiprocessing.active_children() if child not in others]
    for batch in batches:
        yield from batch


@contextmanager
def _named_limit() -> Iterator[None]:
    """Say what to do where the system starts no more processes or threads.

    Raises:
        XMixError: It does not.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number not in (errno.EAGAIN, errno.ENOMEM) and "start new thread" not in str(error):
            raise
        raise XMixError(
            f"no more processes or threads can be started ({error}): convert in this one "
            "(num_workers=0, --workers 0), or raise the limits of processes and memory (ulimit)"
        ) from error


def shared_memory(count: int) -> int:
    """Return how many bytes of /dev/shm so many workers need: their locks and queues take less."""
    return (64 << 10) + count * (16 << 10)


def _require_shared_memory(count: int) -> None:
    """Check that /dev/shm has room for the locks of workers, which get their work through queues.

    Raises:
        XMixError: It has not, or the system refuses a lock.
    """
    remedy = (
        "free space there (in a container: --shm-size), or convert in one process "
        "(num_workers=0, --workers 0)"
    )
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise XMixError(
            f"worker processes cannot be started, as /dev/shm refuses a lock ({error.strerror}); "
            f"{remedy}"
        ) from error
    free, needed = shutil.disk_usage("/dev/shm").free, shared_memory(count)
    if free < needed:
        raise XMixError(
            f"worker processes cannot be started, as {count} of them need {needed >> 10} KiB of "
            f"/dev/shm, where {free >> 10} KiB are free; {remedy}"
        )


def _portable(batch: list[Any]) -> list[Any]:
    """Make a worker's results such that they can be sent: not every exception can."""
    return [
        item._replace(cause=_sendable(item.cause)) if isinstance(item, Failure) else item
        for item in batch
    ]


def _sendable(error: Exception | None) -> Exception | None:
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    known = error is None or type(copy) is type(error)
    return copy if known else RuntimeError(f"{type(error).__name__}: {error}")


def _begin_worker(_: int) -> None:
    """Keep Pillow silent, and have the system end this worker with its parent.

    Orphaned by SIGKILL, a worker would wait for ever to hand over images, and keep the lock.
    """
    keep_pillow_silent()
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def require_main_guard() -> None:
    """Check that this is no new worker that imports the script that converts.

    Raises:
        XMixError: It is; the script would convert once more in each of its own workers.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise XMixError(f"this process was started as a worker: {_guard()}")


def _guard() -> str:
    return (
        f"with the start method {multiprocessing.get_start_method()!r} each worker imports the "
        'script anew, so put what it does under `if __name__ == "__main__":`, or convert in this '
        "process (num_workers=0)"
    )


@contextmanager
def named_worker_death() -> Iterator[list[BaseProcess]]:
    """Turn torch's error of a dead worker, which may come anywhere in the block, into our own.

    Yields:
        A list for the processes, whose ends tell why they died.

    Raises:
        XMixError: A worker process died.
    """
    workers: list[BaseProcess] = []
    try:
        yield workers
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        named = set(map(int, re.findall(r"\d+", str(error))))
        ends = [w.exitcode for w in workers if w.pid in named and w.exitcode is not None]
        raise XMixError(f"a conversion worker died ({_cause_of(ends)}") from error


def _cause_of(ends: list[int]) -> str:
    """Say why processes ended, by their exit codes, and what to do."""
    end = next((code for code in ends if code), 0)
    if end >= 0:
        script = multiprocessing.get_start_method() != "fork"
        return f"exit status {end}); " + (
            f"what it printed says why: {_guard()}"
            if script
            else "what it printed says why: the dataset or a library ended it; convert in this "
            "process (num_workers=0) to see where"
        )
    name = signal.Signals(-end).name
    if name == "SIGKILL":
        return (
            f"{name}): the system ends processes so when memory runs out; free memory or use fewer "
            "workers (num_workers)"
        )
    if name == "SIGBUS":
        return (
            f"{name}): a file that it read was cut short meanwhile, or /dev/shm is full; leave the "
            "files alone, or convert in this process (num_workers=0)"
        )
    if name in ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"):
        return (
            f"{name}): a library crashed; convert in this process (num_workers=0) under `python -X "
            "faulthandler` to see where"
        )
    return f"{name}): something outside ended it; run it again"
