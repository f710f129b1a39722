"""Operations for the pipelines of a stock FFCV `Loader`, beside its own `ImageMixup` and the like.

Comes in: the target images and labels of a batch, as FFCV decoded them, and which samples they are.
Goes out: images mixed with images of their paired source classes, and both labels with λ.

    mixing, labels = (kind("target.beton", "source.beton", "pairing.json", seed=1)
                      for kind in (ImageXMixup, LabelXMixup))
    loader = Loader("target.beton", 48, order=OrderOption.RANDOM, pipelines={
        "image": [RandomResizedCropRGBImageDecoder((224, 224)), mixing, ToTensor(),
                  ToTorchImage(), NormalizeImage(mean, std, np.float32)],
        "label": [IntDecoder(), labels, ToTensor(), XMixupToOneHot(n, m)],
    })

What is drawn depends on (seed, epoch, target index) alone, so that both operations draw the same.
FFCV tells an operation neither its loader nor the epoch; both are found where FFCV begins one. The
work is done in Python and our kernels, called out of FFCV's compiled stage, so that compiled
operations may follow.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Full
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import objmode
from numba.core.errors import NumbaWarning

from xmix_data import decode
from xmix_data.backends.profiling import ProfiledRange
from xmix_data.backends.work import Side
from xmix_data.beton import Beton, DomainLike, open_domain
from xmix_data.compiled import kernel
from xmix_data.errors import BetonError, MissingDependencyError
from xmix_data.pairing import Pairing, log_provenance, open_pairing
from xmix_data.plan import (
    SOURCE,
    Crop,
    Crops,
    EpochPlan,
    PlanRows,
    RandomResizedCrop,
    paired_plan,
    with_crop,
)
from xmix_data.threads import name_this_thread

try:
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.loader.loader import Loader
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State
except ImportError as error:
    raise MissingDependencyError(
        f"xmix_data.ffcv needs FFCV, which cannot be imported ({error}): `sudo apt-get install g++ "
        "pkg-config libopencv-dev libturbojpeg0-dev && pip install ffcv setuptools`"
    ) from error

__all__ = ["ImageXMixup", "LabelXMixup", "XMixupToOneHot"]

_log = logging.getLogger("xmix_data")

# FFCV compiles operations with nogil=True; that this one takes the GIL is meant.
_SAID = ".*Code running in object mode"
warnings.filterwarnings("ignore", _SAID, NumbaWarning, r".*xmix_data\Wffcv")

_numbers = itertools.count()
_operations: weakref.WeakValueDictionary[int, _Mixing] = weakref.WeakValueDictionary()
"""By number: FFCV's compiled code can hold a number, and no object."""

_WAIT_S = 0.5
_STRIPE = 8
"""Number of images that a thread makes at a time."""


@dataclass(frozen=True)
class _Place:
    """What a pass of a loader reads: an epoch, of one of the target's betons."""

    epoch: int
    first_sample: int
    """Index in the target domain of the beton's first sample."""
    first_class: int
    """Class id in the target domain of the beton's first class."""


class _Failure:
    """In the place of a batch: raises in the consumer's thread, where FFCV unpacks it."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __iter__(self) -> Any:
        raise self._error


class _Mixing(Operation):  # type: ignore[misc]
    """What both operations share: the plan, and finding the loader and its epoch."""

    def __init__(
        self,
        target: DomainLike,
        source: DomainLike,
        pairing: Pairing | str | os.PathLike[str],
        *,
        alpha: float,
        beta: float,
        seed: int,
        flip: bool,
    ) -> None:
        super().__init__()
        self._target, self._source = open_domain(target), open_domain(source)
        pairing = open_pairing(pairing)
        # This crop's windows are the same for every output size, which FFCV may change by epoch.
        plan = paired_plan(
            self._target,
            self._source,
            pairing,
            crop=RandomResizedCrop(1),
            flip=flip,
            alpha=alpha,
            beta=beta,
            seed=seed,
        )
        log_provenance(pairing, self._target, self._source)
        # A position of the epoch is a target index, in whatever order FFCV goes through them.
        self._plan = replace(plan, shuffle=False)
        self._number = next(_numbers)
        _operations[self._number] = self
        self._lock = threading.Lock()
        self._rows: tuple[EpochPlan, PlanRows] | None = None

    def _begin(self) -> Loader:
        """Note which epoch of which loader begins; FFCV calls this where it makes an iterator.

        Raises:
            ValueError: The loader reads a beton that is not in the target.
        """
        iterator = _caller(EpochIterator)
        loader = iterator.loader if iterator is not None else _caller(Loader)
        if loader is None:
            raise RuntimeError(
                f"{type(self).__name__} works in the pipeline of an ffcv.loader.Loader only"
            )
        sample, label = self._position_of(Path(loader.fname))
        if iterator is not None:
            place = _Place(loader.next_epoch - 1, sample, label)
            vars(iterator).setdefault("_xmix", {})[self._number] = place
        return loader

    def _position_of(self, path: Path) -> tuple[int, int]:
        """Find the first sample and the first class of a loader's beton in the target domain."""
        wanted = Beton(path).fingerprint
        sample = label = 0
        for part in self._target.shards:
            for beton in part:
                if beton.fingerprint == wanted:
                    return sample, label
                sample += beton.num_samples
            label += len(part[0].class_names)
        betons = ", ".join(beton.origin for beton in self._target.betons)
        raise ValueError(
            f"the Loader reads {path}, and {type(self).__name__} was made for the target {betons}; "
            "give both the same beton"
        )

    def _drawn(self, epoch: int) -> tuple[EpochPlan, PlanRows]:
        """Return the plan of an epoch, and what it draws for every target image, by index."""
        with self._lock:
            if self._rows is None or self._rows[1].epoch != epoch:
                plan = self._plan.epoch(epoch)
                self._rows = plan, plan.rows(0, len(plan))
            return self._rows

    def _code(self) -> Callable[..., Any]:
        """Return the function that FFCV compiles; it has room for a number, and for no object."""
        number = self._number

        def mix(batch: Any, out: Any, indices: Any) -> Any:
            with objmode():
                _mixed(number, batch, out, indices)
            return out

        mix.with_indices = True  # type: ignore[attr-defined]
        return mix

    def mixed(self, batch: Any, out: Any, indices: npt.NDArray[np.int64], place: _Place) -> None:
        """Fill ``out``.

        Args:
            batch: What FFCV made so far, (B, ...).
            out: Room for the result, (B, ...).
            indices: (B,) int64 sample indices in the target domain.
            place: Where the batch is.
        """
        raise NotImplementedError


def _caller(kind: type) -> Any:
    """Find the object of a class among those whose methods are at work; ``None`` without one."""
    frame = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, kind):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _mixed(number: int, batch: Any, out: Any, indices: Any) -> None:
    """Run an operation on a batch, in the thread of the iterator that it belongs to."""
    with _errors_told():
        operation = _operations[number]
        place: _Place = vars(threading.current_thread())["_xmix"][number]
        operation.mixed(batch, out, np.asarray(indices, np.int64) + place.first_sample, place)


@contextmanager
def _errors_told() -> Iterator[None]:
    """Have an iterator's consumer raise what goes wrong in the iterator's thread."""
    try:
        yield
    except BaseException as error:
        iterator = threading.current_thread()
        if not isinstance(iterator, EpochIterator):
            raise
        # FFCV's thread would end, and its consumer wait for ever.
        _tell(iterator, error)
        raise SystemExit from None


def _tell(iterator: EpochIterator, error: BaseException) -> None:
    """Have the consumer raise an error where it asks for the batch, if it still asks."""
    while not iterator.terminate_event.is_set():
        with suppress(Full):
            iterator.output_queue.put(_Failure(error), timeout=_WAIT_S)
            return


@kernel
def _blend(targets: Any, sources: Any, lam: Any, out: Any) -> None:
    """Mix uint8 pixels (B, P) by weights (B,), rounded to nearest."""
    for i in range(len(lam)):
        weight, rest = lam[i], np.float32(1) - lam[i]
        for p in range(targets.shape[1]):
            mixed = weight * np.float32(targets[i, p]) + rest * np.float32(sources[i, p])
            out[i, p] = np.uint8(mixed + np.float32(0.5))


class ImageXMixup(_Mixing):
    """Mix each target image with a random image of its paired source class (XMixup, Eqs. 3, 4).

    Takes and gives uint8 images (B, H, W, 3); stands behind the image's decoder, where FFCV's
    `ImageMixup` stands. `LabelXMixup`, made with the same arguments, gives the labels.

    The source image, its crop and λ are functions of the seed, the loader's epoch and the target
    image's index: the same for any batch size, order and number of workers, and after
    ``loader.next_epoch = e`` as in a run that came there. A source image that is damaged is
    replaced by another one of its class, and named in the log.

    Args:
        target: The target domain, which has the Loader's beton: a path, a `Beton`, or a list.
        source: The source domain, likewise.
        pairing: A `Pairing` or the path of one.
        alpha, beta: λ ~ Beta(alpha, beta) per image; λ weighs the target.
        seed: Seed, 0 .. 2**64 - 1.
        crop: Crop of the source images; its size must be that of the images that come in. ``None``:
            `RandomResizedCrop` of that size.
        flip: Mirror each source image with probability 1/2.

    Raises:
        FileNotFoundError: A beton or the pairing does not exist.
        BetonError: A beton is damaged; from the Loader's iterator: so are all images of a class.
        ValueError: Options or files do not fit together; from the Loader: it reads another beton,
            or its images have another type or size.

    Examples:
        >>> mixing = ImageXMixup("target.beton", "source.beton", "pairing.json", seed=1)
        >>> pipeline = [RandomResizedCropRGBImageDecoder((32, 32)), mixing, ToTensor()]
    """

    def __init__(
        self,
        target: DomainLike,
        source: DomainLike,
        pairing: Pairing | str | os.PathLike[str],
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        seed: int = 0,
        crop: Crop | None = None,
        flip: bool = True,
    ) -> None:
        super().__init__(target, source, pairing, alpha=alpha, beta=beta, seed=seed, flip=flip)
        self._crop = crop
        if crop is not None:
            # It need only fit the source's images: FFCV cuts the target's.
            plan = replace(self._plan, samples=self._plan.samples[:0])
            plan = with_crop(plan, crop, self._target, self._source)
            self._plan = replace(plan, samples=self._plan.samples)
        heights, widths = self._source.heights, self._source.widths
        pixels = heights.astype(np.int64) * widths
        self._largest = int(pixels.max()), int(heights.max()), int(widths.max())
        self._mine = threading.local()
        """A thread's workspace, and the shape of the images that it is for."""
        self._threads: tuple[int, int, ThreadPoolExecutor] | None = None

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        loader = self._begin()
        shape = previous_state.shape
        if previous_state.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise ValueError(
                f"ImageXMixup mixes uint8 images (H, W, 3), and gets {previous_state.dtype} of "
                f"shape {tuple(map(int, shape))}; put it right behind the image's decoder"
            )
        if not previous_state.jit_mode:
            raise ValueError(
                "ImageXMixup mixes images on the CPU, before they become tensors; put it before "
                "ToTensor()"
            )
        if self._crop is not None and self._crop.shape != tuple(shape[:2]):
            raise ValueError(
                f"the images that come in are {shape[1]}x{shape[0]} pixels, and crop makes "
                f"{self._crop.shape[1]}x{self._crop.shape[0]}; give a crop of the decoder's size"
            )
        self._workers = loader.num_workers
        return previous_state, AllocationQuery(tuple(shape), np.dtype(np.uint8))

    def generate_code(self) -> Callable[..., Any]:
        return self._code()

    def mixed(self, batch: Any, out: Any, indices: npt.NDArray[np.int64], place: _Place) -> None:
        epoch, rows = self._drawn(place.epoch)
        assert rows.source is not None and rows.source_crops is not None
        crops = rows.source_crops
        chosen = Crops(crops.boxes[indices], crops.flips[indices])
        side = Side.of(self._source, rows.source[indices], chosen, batch.shape[1:3], flip=True)
        sources = np.empty(batch.shape, np.uint8)
        lam = rows.lam[indices]

        def make(start: int) -> None:
            stop = min(start + _STRIPE, len(indices))
            with ProfiledRange("xmix: decode"):
                self._decode(side, start, stop, sources)
            for item in start + np.flatnonzero(side.status[start:stop]):
                self._replace(epoch, side, int(item), int(indices[item]), sources)
            part = slice(start, stop)
            flat = (x[part].reshape(stop - start, -1) for x in (batch, sources))
            with ProfiledRange("xmix: mix"):
                _blend(*flat, lam[part], out[part].reshape(stop - start, -1))

        list(self._pool().map(make, range(0, len(indices), _STRIPE)))

    def _decode(self, side: Side, start: int, stop: int, out: npt.NDArray[np.uint8]) -> None:
        """Decode, cut, resize and mirror source images; in one of the threads."""
        height, width = shape = out.shape[1:3]
        # Iterators of several sizes share the threads: FFCV lets one that was left go on.
        if getattr(self._mine, "shape", None) != shape:
            resizes = self._plan.crop.resizes
            self._mine.workspace = decode.Workspace(*self._largest, shape, resizes=resizes)
            self._mine.shape = shape
        decode.crop_images(
            start,
            stop,
            side.images,
            height,
            width,
            self._mine.workspace.target,
            out.ctypes.data,
            side.status,
        )

    def _replace(
        self, epoch: EpochPlan, side: Side, item: int, position: int, out: npt.NDArray[np.uint8]
    ) -> None:
        """Make another image of the class in the place of one that is damaged."""
        damaged = self._source.describe(int(side.indices[item]))
        rows = epoch.rows(position, position + 1)
        for attempt in itertools.count():
            try:
                rows = epoch.replaced(rows, SOURCE, 0, attempt)
            except IndexError:
                raise BetonError(
                    f"{damaged} cannot be decoded, and so cannot the {attempt} others of its class "
                    "that might replace it; convert the class again"
                ) from None
            one = Side.of(self._source, *rows.of(SOURCE), out.shape[1:3], flip=True)
            self._decode(one, 0, 1, out[item : item + 1])
            if not one.status[0]:
                break
        other = self._source.describe(int(one.indices[0]))
        _log.warning("%s cannot be decoded; %s takes its place", damaged, other)

    def _pool(self) -> ThreadPoolExecutor:
        """Return threads, as many as the loader has; a forked child makes its own."""
        key = os.getpid(), self._workers
        with self._lock:
            if self._threads is None or self._threads[:2] != key:
                pool = ThreadPoolExecutor(self._workers, "xmix-ffcv", name_this_thread)
                self._threads = (*key, pool)
            return self._threads[2]


class LabelXMixup(_Mixing):
    """Give both labels of each image that `ImageXMixup` mixes, and its λ.

    Takes int labels (B, 1), gives float32 (B, 3): target class id, source class id, λ. Stands
    behind the label's decoder; make it with the arguments of the `ImageXMixup` beside it.

    Args:
        target, source, pairing, alpha, beta, seed: As for `ImageXMixup`.

    Raises:
        FileNotFoundError, BetonError, ValueError: As for `ImageXMixup`.

    Examples:
        >>> labels = LabelXMixup("target.beton", "source.beton", "pairing.json", seed=1)
        >>> pipeline = [IntDecoder(), labels, ToTensor(), XMixupToOneHot(4, 6)]
    """

    def __init__(
        self,
        target: DomainLike,
        source: DomainLike,
        pairing: Pairing | str | os.PathLike[str],
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(target, source, pairing, alpha=alpha, beta=beta, seed=seed, flip=False)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        self._begin()
        if previous_state.shape != (1,) or not np.issubdtype(previous_state.dtype, np.integer):
            raise ValueError(
                f"LabelXMixup takes int labels (1,), and gets {previous_state.dtype} of shape "
                f"{previous_state.shape}; put it right behind IntDecoder()"
            )
        state = replace(previous_state, shape=(3,), dtype=np.dtype(np.float32))
        return state, AllocationQuery((3,), np.dtype(np.float32))

    def generate_code(self) -> Callable[..., Any]:
        return self._code()

    def mixed(self, batch: Any, out: Any, indices: npt.NDArray[np.int64], place: _Place) -> None:
        _, rows = self._drawn(place.epoch)
        assert rows.source is not None
        out[:, 0] = batch[:, 0] + place.first_class
        out[:, 1] = self._source.labels[rows.source[indices]]
        out[:, 2] = rows.lam[indices]


class XMixupToOneHot(Operation):  # type: ignore[misc]
    """Make soft labels over both label sets of what `LabelXMixup` gave.

    Takes a float32 tensor (B, 3), gives (B, n + m): λ at the target class, 1 - λ at n + the source
    class, as ``XMixLoader(labels="soft")`` gives them. Stands behind ``ToTensor()``.

    Args:
        num_target: Number n of target classes.
        num_source: Number m of source classes.

    Raises:
        ValueError: A number is below 1; from the Loader: it stands before ``ToTensor()``; from the
            Loader's iterator: a label lies outside its block. On a GPU, where looking makes the
            host wait, its weight is NaN instead, and so is the loss.

    Examples:
        >>> XMixupToOneHot(num_target=4, num_source=6).num_target
        4
    """

    def __init__(self, num_target: int, num_source: int) -> None:
        super().__init__()
        for name, value in (("num_target", num_target), ("num_source", num_source)):
            if value < 1:
                raise ValueError(f"{name} is {value}; give a number of at least 1")
        self.num_target, self.num_source = num_target, num_source

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        if previous_state.jit_mode or previous_state.shape != (3,):
            raise ValueError(
                f"XMixupToOneHot takes a tensor of shape (3,) for each image, and gets "
                f"{previous_state.shape}; put it behind LabelXMixup and ToTensor()"
            )
        shape = (self.num_target + self.num_source,)
        state = replace(previous_state, shape=shape, dtype=torch.float32)
        return state, AllocationQuery(shape, torch.float32, previous_state.device)

    def generate_code(self) -> Callable[..., Any]:
        n, m = self.num_target, self.num_source

        def one_hot(mixed: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            out.zero_()
            both, lam = mixed[:, :2].long(), mixed[:, 2:]
            with _errors_told():
                for name, labels, weights, first, count in (
                    ("target", both[:, :1], lam, 0, n),
                    ("source", both[:, 1:], 1 - lam, n, m),
                ):
                    fits = (labels >= 0) & (labels < count)
                    if mixed.device.type != "cpu":  # to look would make the host wait
                        weights = weights.masked_fill(~fits, torch.nan)
                    elif not bool(fits.all()):
                        raise ValueError(
                            f"{name} label {int(labels[~fits][0])} does not fit into {count} "
                            f"{name} classes; give XMixupToOneHot the numbers of classes of the "
                            "target and of the source"
                        )
                    out.scatter_(1, first + labels.clamp(0, count - 1), weights)
            return out

        return one_hot
