"""The loaders: `XMixLoader` (target mixed with its paired source) and `ImageLoader` (one domain).

Comes in: betons, a pairing, and what to crop. Goes out: batches on the device. A loader keeps
where it is (epoch, position); the plan says what comes, the backend makes it.
"""

from __future__ import annotations

import logging
import operator
import os
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from xmix_data.augment import CenterCrop, Crop, RandomCrop
from xmix_data.backends import STREAM_STATS, ImageStream, Spec, make_backend
from xmix_data.batch import MixedBatch, PairedBatch
from xmix_data.beton import BetonLike, Domain, open_domain
from xmix_data.errors import BetonError
from xmix_data.mixing import IMAGENET_MEAN, IMAGENET_STD
from xmix_data.pairing import Pairing
from xmix_data.plan import EpochPlan, ImageSizes, Plan, PlanRows, SourcePool

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageLoader", "XMixLoader"]

_log = logging.getLogger("xmix_data")

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
_STATE_VERSION = 1
_PLANNED_AT_ONCE = 512
"""Positions of an epoch; the last batch may reach beyond."""

MOST_REPLACED = 0.01
"""Share of a process's images of an epoch that ``on_error="replace"`` replaces at most, in each
domain."""
FEW_REPLACED = 10
"""So many are always replaced: of a few images a share says little."""
_MOST_NAMED = 20
"""Damaged images that a loader names in the log; the rest it only counts."""

B = TypeVar("B")


class _Loader(Generic[B]):
    """What both loaders share: epochs, positions, ranks, lifetimes."""

    def __init__(
        self,
        plan: Plan,
        target: Domain,
        source: Domain | None,
        *,
        mix: bool,
        batch_size: int,
        drop_last: bool,
        device: str | torch.device,
        dtype: torch.dtype,
        mean: Sequence[float],
        std: Sequence[float],
        num_workers: int | None,
        prefetch: int,
        on_error: str,
        rank: int | None,
        world_size: int | None,
        backend: str,
    ) -> None:
        self.batch_size = _at_least_one("batch_size", batch_size)
        self.drop_last = drop_last
        self.rank, self.world_size = _find_rank(rank, world_size)
        self.device = _usable_device(device)
        if dtype not in _DTYPES:
            known = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
            raise ValueError(f"dtype is {dtype}; it must be one of torch's {known}")
        if on_error not in ("raise", "replace"):
            raise ValueError(f"on_error is {on_error!r}; it must be 'raise' or 'replace'")
        self._replaces = on_error == "replace"
        step = self.batch_size * self.world_size
        if drop_last and len(plan.samples) < step:
            raise ValueError(
                f"batch_size {batch_size} x {self.world_size} processes is larger than the "
                f"{len(plan.samples)} images of an epoch, which would have no batch; "
                "lower batch_size or set drop_last=False"
            )
        self._plan = plan
        self._target, self._source = target, source
        self._spec = Spec(
            target=target,
            source=source,
            crop=plan.crop,
            mix=mix,
            device=self.device,
            dtype=dtype,
            mean=_three("mean", mean),
            std=_three("std", std, positive=True),
            num_workers=_default_workers()
            if num_workers is None
            else _at_least_one("num_workers", num_workers),
            prefetch=_at_least_one("prefetch", prefetch),
        )
        self._backend = make_backend(backend, self._spec)
        self._epoch = self._position = 0
        self._received = False
        """Whether the caller got a batch since the position was last set."""
        self._last: PlanRows | None = None
        """The batch that the caller got last."""
        self._padding = 0
        self._closed = False
        self._digest: str | None = None
        self._pass: weakref.ref[_Pass[B]] | None = None
        self._stats: dict[str, float] = dict.fromkeys(
            ("batches", "samples", "replaced", *STREAM_STATS), 0
        )
        self._damaged: set[tuple[int, int]] = set()
        """Images that were replaced: domain and index."""

    def _batch(self, rows: PlanRows, images: tuple[torch.Tensor, ...]) -> B:
        raise NotImplementedError

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return tensor
        # From memory that is not pinned the copy would wait for all that the device has to do.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def __len__(self) -> int:
        """Batches that each process gets in an epoch."""
        step = self.batch_size * self.world_size
        samples = len(self._plan.samples)
        return samples // step if self.drop_last else -(-samples // step)

    def __iter__(self) -> Iterator[B]:
        """Begin a pass: the rest of the epoch after `load_state_dict`, else a whole epoch.

        After a pass that was left early, this is the next epoch. An older iterator is closed.
        """
        self._require_open()
        self._close_pass()
        if self._received:
            self._move_to(self._epoch + 1, 0)
        iterator = _Pass(self, self._plan.epoch(self._epoch), self._position)
        self._pass = weakref.ref(iterator)
        return iterator

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0; grows by one when a pass is exhausted."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next to be iterated, from its start."""
        epoch = operator.index(epoch)
        if not 0 <= epoch < 1 << 64:
            raise ValueError(f"epoch is {epoch}; it must not be negative")
        self._close_pass()
        self._move_to(epoch, 0)

    def _move_to(self, epoch: int, position: int) -> None:
        self._epoch, self._position, self._received = epoch, position, False

    def state_dict(self) -> dict[str, Any]:
        """Where the caller is: samples received over all ranks, never prefetched ones.

        Returns:
            Plain numbers and strings, the same on every rank.
        """
        return {
            "version": _STATE_VERSION,
            "seed": self._plan.seed,
            "epoch": self._epoch,
            "position": self._position,
            "samples": self._sample_digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next iteration is the rest of that epoch.

        Batch size, world size, workers and backend may differ: the sample sequence goes on.

        Raises:
            ValueError: The state is of another seed, pairing or data, or no state at all.
        """
        expected = ("version", "seed", "epoch", "position", "samples")
        missing = [key for key in expected if key not in state]
        if missing or state["version"] != _STATE_VERSION:
            raise ValueError(
                f"this is no loader state of version {_STATE_VERSION} "
                f"(missing: {', '.join(missing) or 'nothing'}); give what state_dict() returned"
            )
        if state["seed"] != self._plan.seed:
            raise ValueError(
                f"the state was saved with seed {state['seed']}, this loader has seed "
                f"{self._plan.seed}; give the loader the same seed"
            )
        if state["samples"] != self._sample_digest():
            raise ValueError(
                "the state was saved with other data or another pairing; "
                "give the loader the same betons and pairing"
            )
        epoch, position = operator.index(state["epoch"]), operator.index(state["position"])
        if not 0 <= position <= len(self._plan.samples) or epoch < 0:
            raise ValueError(f"the state's epoch {epoch}, position {position} does not exist")
        self._close_pass()
        self._move_to(epoch, position)

    def _sample_digest(self) -> str:
        if self._digest is None:
            self._digest = self._plan.digest()
        return self._digest

    @property
    def last_rows(self) -> PlanRows | None:
        """The plan of the batch that the caller got last."""
        return self._last

    def describe(self, rows: PlanRows) -> list[str]:
        """The samples of a batch, named: file, index and class.

        Returns:
            One text a sample; of two domains ``"TARGET + SOURCE"``.
        """
        names = [self._target.describe(i) for i in rows.target.tolist()]
        if self._source is None or rows.source is None:
            return names
        sources = [self._source.describe(i) for i in rows.source.tolist()]
        return [f"{one} + {other}" for one, other in zip(names, sources, strict=True)]

    @property
    def last_padding(self) -> int:
        """How many samples at the end of the batch that the caller got last are padding.

        The tail of an epoch is padded so that all ranks have equally many batches of equal size;
        sums over all ranks must leave it out.
        """
        return self._padding

    def stats(self) -> dict[str, float]:
        """Who waits for whom, since construction.

        Returns:
            ``batches`` and ``samples`` that this process received; ``consumer_waited_s``, seconds
            that the caller waited for data (the loader is the bottleneck);
            ``loader_waited_s``, seconds that the decoding threads waited for the caller, averaged
            over them (training is); ``decode_s`` and ``copy_s``, seconds that all threads decoded
            JPEG, and cropped, resized and mixed; ``replaced``, damaged images that
            ``on_error="replace"`` replaced; ``bytes_read`` of stored images; ``disk_waits``,
            how often a decoding thread waited for a page that was not in memory.
        """
        totals = dict(self._stats)
        current = None if self._pass is None else self._pass()
        if current is not None:
            for key, value in current.stats().items():
                totals[key] += value
        return totals

    def close(self) -> None:
        """End the current pass and its threads; the loader cannot be iterated again."""
        self._closed = True
        self._close_pass()

    def _close_pass(self) -> None:
        current = None if self._pass is None else self._pass()
        if current is not None:
            current.close()
        self._pass = None

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this loader is closed; make a new one")

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _domains(self) -> list[Domain]:
        return [self._target] if self._source is None else [self._target, self._source]

    @property
    def target(self) -> Domain:
        """The domain that an epoch passes over."""
        return self._target

    @property
    def source(self) -> Domain | None:
        """The domain that is mixed in."""
        return self._source

    @property
    def num_target_classes(self) -> int:
        """n: size of the target head."""
        return len(self._target.class_names)

    @property
    def num_source_classes(self) -> int:
        """m: size of the source head; 0 for a loader of one domain."""
        return 0 if self._source is None else len(self._source.class_names)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} batches of {self.batch_size}, epoch {self._epoch}, "
            f"{self.num_target_classes} target classes, {self.num_source_classes} source classes, "
            f"{self.device})"
        )

    def preview(self, n: int = 8) -> Image.Image:
        """A contact sheet of the epoch's first samples: target, source, mixed, with names and λ.

        Args:
            n: How many samples.

        Returns:
            A picture; the loader's position is not touched.
        """
        from xmix_data.preview import contact_sheet

        self._require_open()
        plan = self._plan.epoch(self._epoch)
        rows = plan.rows(0, min(n, len(self._plan.samples)))
        spec = Spec(
            **{
                **vars(self._spec),
                "mix": False,
                "dtype": torch.uint8,
                "device": torch.device("cpu"),
            }
        )
        replace = plan.replaced if self._replaces else None
        rows, images = next(make_backend("torch", spec).stream(iter([rows]), replace))
        pixels = [x.permute(0, 2, 3, 1).numpy() for x in images]
        names = self._target.class_names
        columns = [[names[i] for i in self._target.labels[rows.target]]]
        if self._source is not None:
            columns.append([self._source.class_names[i] for i in self._source.labels[rows.source]])
        return contact_sheet(pixels, columns, rows.lam)


class _Pass(Iterator[B]):
    """One pass over (the rest of) an epoch; counts what the caller received."""

    def __init__(self, loader: _Loader[B], plan: EpochPlan, position: int) -> None:
        self._loader = loader
        self._samples, self._batches = len(plan), _spans(loader, len(plan), position)
        self._stream: ImageStream | None = loader._backend.stream(
            # Between the batches of one of many processes lie those of the others.
            _planned(
                plan,
                _spans(loader, len(plan), position),
                _PLANNED_AT_ONCE if loader.world_size == 1 else 1,
            ),
            plan.replaced if loader._replaces else None,
        )
        self._replaced = [0, 0]
        """Of the target, of the source."""
        self._exhausted = False

    def __next__(self) -> B:
        if self._exhausted:
            raise StopIteration
        if self._stream is None:
            raise RuntimeError(
                "this iterator is closed: its loader was iterated anew, moved or closed"
            )
        try:
            rows, images = next(self._stream)
            self._count_damaged(rows)
        except StopIteration:
            self.close()
            self._exhausted = True
            self._loader._move_to(self._loader._epoch + 1, 0)
            raise
        except BaseException:
            self.close()
            raise
        batch = self._loader._batch(rows, images)
        _, stop, self._loader._position = next(self._batches)
        self._loader._padding = min(len(rows), max(0, stop - self._samples))
        self._loader._received = True
        self._loader._last = rows
        self._loader._stats["batches"] += 1
        self._loader._stats["samples"] += len(rows)
        return batch

    def _count_damaged(self, rows: PlanRows) -> None:
        """Nothing is replaced in silence, and not much in any case."""
        loader = self._loader
        images = -(-self._samples // loader.world_size)
        for domain, index in rows.damaged:
            where = loader._domains[domain].describe(index)
            if (domain, index) not in loader._damaged:
                loader._damaged.add((domain, index))
                if len(loader._damaged) <= _MOST_NAMED:
                    _log.warning("%s cannot be decoded; another of its class replaces it", where)
            loader._stats["replaced"] += 1
            self._replaced[domain] += 1
            if self._replaced[domain] > max(FEW_REPLACED, MOST_REPLACED * images):
                raise BetonError(
                    f"{where} and {self._replaced[domain] - 1} images before it were damaged and "
                    f"replaced in this epoch, more than {MOST_REPLACED:.0%} of {images}; see what "
                    "is damaged with `xmix inspect --verify`, and convert again"
                )

    def stats(self) -> dict[str, float]:
        return {} if self._stream is None else self._stream.stats()

    def close(self) -> None:
        stream, self._stream = self._stream, None  # another thread may close it as well
        if stream is not None:
            stream.close()
            for key, value in stream.stats().items():
                self._loader._stats[key] += value

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self.close()


def _spans(loader: _Loader[Any], samples: int, position: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, end) of each batch: this rank's positions, and where all ranks are after it."""
    step = loader.batch_size * loader.world_size
    while position < samples:
        count = min(step, samples - position)
        if count < step and loader.drop_last:
            return
        share = -(-count // loader.world_size)  # the tail is padded so that no rank waits
        start = position + loader.rank * share
        position += count
        yield start, start + share, position


def _planned(
    plan: EpochPlan, spans: Iterator[tuple[int, int, int]], at_once: int
) -> Iterator[PlanRows]:
    """The rows of each batch; planned for several at once, as a call costs more than its rows."""
    ahead: list[tuple[int, int]] = []
    while True:
        for start, stop, _ in spans:
            ahead.append((start, stop))
            if stop - ahead[0][0] >= at_once:
                break
        if not ahead:
            return
        first = ahead[0][0]
        rows = plan.rows(first, ahead[-1][1])
        for start, stop in ahead:
            yield rows.part(start - first, stop - first)
        ahead.clear()


class XMixLoader(_Loader[Any]):
    """Target images, each mixed with a random image of its paired source class (XMixup).

    One epoch is one pass over the target. Batches belong to the caller.

    Args:
        target: The target domain: a path, a `Beton`, or a list (several domains, or shards).
        source: The source domain, likewise.
        pairing: A `Pairing` or the path of one.
        batch_size: Images of a batch, in each process.
        crop: Applied to both images, independently.
        flip: Mirror each image with probability 1/2, independently.
        alpha, beta: λ ~ Beta(alpha, beta) per sample; λ weighs the target (Eq. 4). Its mean is
            alpha / (alpha + beta).
        labels: ``"pair"`` yields `MixedBatch`; ``"soft"`` yields (images, soft_labels) with
            soft_labels (B, n + m) float32, for any criterion.
        mix: ``False`` yields `PairedBatch`: both images, unmixed.
        device: Where batches arrive.
        dtype: float32, float16 or bfloat16; with ``mix=False`` also uint8, the crops as decoded.
        mean, std: Per channel, in 0..1 units.
        seed: 0 .. 2**64 - 1; with the epoch it decides everything random.
        num_workers: Decoding threads; default the process's cores / the processes on this machine.
        prefetch: Batches made ahead.
        drop_last: Leave out an incomplete last batch; otherwise it is padded to a multiple of the
            number of processes from the start of the epoch's order.
        on_error: ``"raise"`` stops at a damaged image and names it. ``"replace"`` takes another
            image of its class (of a source class: one that the pairing draws), the same for any
            number of threads and ranks; names it in the log, counts it in ``stats()["replaced"]``,
            and stops above 1 % of this process's images of an epoch, and ten, in either domain.
        rank, world_size: Found from torch.distributed unless given.
        backend: ``"ffcv"``; ``"dali"``: NVIDIA DALI decodes the JPEGs, on the GPU if ``device`` is
            one; ``"auto"``: one of these, said in the log; or ``"torch"``, the slow reference.

    Raises:
        FileNotFoundError: A beton or the pairing does not exist.
        BetonError: A beton is damaged (at construction, or while iterating for an image).
        MissingDependencyError: The backend is not installed; says how to install it.
        ValueError: Options or files do not fit together; says what to change.
    """

    def __init__(
        self,
        target: BetonLike | Sequence[BetonLike],
        source: BetonLike | Sequence[BetonLike],
        pairing: Pairing | str | os.PathLike[str],
        *,
        batch_size: int,
        crop: Crop = RandomCrop(224),
        flip: bool = True,
        alpha: float = 1.0,
        beta: float = 1.0,
        labels: str = "pair",
        mix: bool = True,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
        num_workers: int | None = None,
        prefetch: int = 3,
        drop_last: bool = True,
        on_error: str = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        backend: str = "ffcv",
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; Beta(alpha, beta) needs a number above 0")
        if labels not in ("pair", "soft"):
            raise ValueError(f"labels is {labels!r}; it must be 'pair' or 'soft'")
        if labels == "soft" and not mix:
            raise ValueError("soft labels belong to mixed images; set mix=True or labels='pair'")
        if dtype == torch.uint8 and mix:
            raise ValueError("mixed images are no uint8; choose a float dtype, or set mix=False")
        self._soft, self._mix = labels == "soft", mix
        targets, sources = open_domain(target), open_domain(source)
        if not isinstance(pairing, Pairing):
            pairing = Pairing.load(pairing)
        draws = pairing.draws(targets, sources)
        _log_provenance(pairing, targets, sources)
        pool = SourcePool(
            sources.labels, draws, ImageSizes(sources.heights, sources.widths), pairing.seed
        )
        for label, count in enumerate(pool.counts):
            if count == 0 and np.any(targets.labels == label):
                raise ValueError(
                    f"the source classes paired with {targets.class_names[label]!r} have no "
                    "images; pair again with betons that have some"
                )
        _check_crop(crop, targets, np.arange(len(targets)))
        _check_crop(crop, sources, pool.images)
        plan = Plan(
            seed=_checked_seed(seed),
            samples=np.arange(len(targets)),
            target_labels=targets.labels,
            target_sizes=ImageSizes(targets.heights, targets.widths),
            crop=crop,
            flip=flip,
            shuffle=True,
            pool=pool,
            alpha=alpha,
            beta=beta,
        )
        super().__init__(
            plan,
            targets,
            sources,
            mix=mix,
            batch_size=batch_size,
            drop_last=drop_last,
            device=device,
            dtype=dtype,
            mean=mean,
            std=std,
            num_workers=num_workers,
            prefetch=prefetch,
            on_error=on_error,
            rank=rank,
            world_size=world_size,
            backend=backend,
        )

    def _batch(self, rows: PlanRows, images: tuple[torch.Tensor, ...]) -> Any:
        assert self._source is not None and rows.source is not None
        source_ids = self._source.labels[rows.source]
        numbers = [
            torch.from_numpy(x) for x in (self._target.labels[rows.target], source_ids, rows.lam)
        ]
        if self._soft:
            batch = MixedBatch(images[0], *numbers)
            labels = batch.soft_labels(self.num_target_classes, self.num_source_classes)
            return images[0], self._on_device(labels)
        target_labels, source_labels, lam = map(self._on_device, numbers)
        if self._mix:
            return MixedBatch(images[0], target_labels, source_labels, lam)
        domains = self._on_device(torch.from_numpy(self._source.domain_of_class(source_ids)))
        return PairedBatch(images[0], images[1], target_labels, source_labels, domains, lam)


class ImageLoader(_Loader[tuple[torch.Tensor, torch.Tensor]]):
    """Images of one domain with their labels: for evaluation, features and plain fine-tuning.

    Yields (images, labels): (B, 3, H, W) channels_last in ``dtype``, and (B,) int64.

    Args:
        beton: A path, a `Beton`, or a list (several domains, or shards).
        batch_size: Images of a batch, in each process.
        crop: What to cut out.
        flip: Mirror each image with probability 1/2.
        shuffle: A new order each epoch; otherwise the beton's.
        classes: Names of the classes to load; the labels stay the beton's. Default all.
        pairing: Load only the source images that this pairing selects (its auxiliary set); the
            beton is its source.
        drop_last: As for `XMixLoader`, but off.
        device, dtype, mean, std, seed, num_workers, prefetch, on_error, rank, world_size, backend:
            As for `XMixLoader`; dtype uint8 gives the crops as decoded.

    Raises:
        FileNotFoundError: The beton does not exist.
        BetonError: It is damaged (at construction, or while iterating for an image).
        ValueError: Options do not fit together; says what to change.
    """

    def __init__(
        self,
        beton: BetonLike | Sequence[BetonLike],
        *,
        batch_size: int,
        crop: Crop = CenterCrop(224),
        flip: bool = False,
        shuffle: bool = False,
        classes: Sequence[str] | None = None,
        pairing: Pairing | str | os.PathLike[str] | None = None,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
        num_workers: int | None = None,
        prefetch: int = 3,
        on_error: str = "raise",
        rank: int | None = None,
        world_size: int | None = None,
        backend: str = "ffcv",
    ) -> None:
        domain = open_domain(beton)
        samples = np.arange(len(domain))
        sizes = ImageSizes(domain.heights, domain.widths)
        if classes is not None and pairing is not None:
            raise ValueError("classes and pairing both say what to load; give one")
        if classes is not None:
            samples = _samples_of(domain, classes)
        if pairing is not None:
            pairing = pairing if isinstance(pairing, Pairing) else Pairing.load(pairing)
            draws = pairing.draws(None, domain)
            samples = np.unique(SourcePool(domain.labels, draws, sizes, pairing.seed).images)
        _check_crop(crop, domain, samples)
        plan = Plan(
            seed=_checked_seed(seed),
            samples=samples,
            target_labels=domain.labels,
            target_sizes=sizes,
            crop=crop,
            flip=flip,
            shuffle=shuffle,
        )
        super().__init__(
            plan,
            domain,
            None,
            mix=False,
            batch_size=batch_size,
            drop_last=drop_last,
            device=device,
            dtype=dtype,
            mean=mean,
            std=std,
            num_workers=num_workers,
            prefetch=prefetch,
            on_error=on_error,
            rank=rank,
            world_size=world_size,
            backend=backend,
        )

    def _batch(
        self, rows: PlanRows, images: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return images[0], self._on_device(torch.from_numpy(self._target.labels[rows.target]))


def _at_least_one(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; it must be a whole number") from None
    if number < 1:
        raise ValueError(f"{name} is {number}; it must be at least 1")
    return number


def _checked_seed(seed: int) -> int:
    number = operator.index(seed)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"seed is {seed}; it must lie in 0 .. 2**64 - 1")
    return number


def _three(
    name: str, values: Sequence[float], *, positive: bool = False
) -> tuple[float, float, float]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not np.isfinite(numbers).all() or (positive and min(numbers) <= 0):
        raise ValueError(f"{name} is {values}; give three numbers in 0..1 units, one a channel")
    if max(numbers) > 1:
        raise ValueError(f"{name} is {values}; it is in 0..1 units: divide by 255")
    return numbers[0], numbers[1], numbers[2]


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}: {str(error).splitlines()[0]}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; batches arrive on 'cpu' or 'cuda'")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise ValueError(
                f"device is {device!r}, and torch finds {count} CUDA devices; "
                "use another one, or install a torch with CUDA"
            )
        if found.index is None:  # which one that is differs between threads
            return torch.device("cuda", torch.cuda.current_device())
    return found


def _find_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size belong together; give both or neither")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} does not exist; counting starts at 0")
    return rank, world_size


def _default_workers() -> int:
    """The cores this process may use, shared with the other ranks on this machine."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // max(ranks_here, 1))


def _samples_of(domain: Domain, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    if isinstance(classes, str):
        raise ValueError(f"classes is the string {classes!r}; give a list of class names")
    for name in classes:
        if name not in domain.class_names:
            raise ValueError(
                f"class {name!r} is not in {', '.join(str(b.path) for b in domain.betons)}; "
                "see `xmix inspect`"
            )
    wanted = [label for label, name in enumerate(domain.class_names) if name in set(classes)]
    samples = np.flatnonzero(np.isin(domain.labels, wanted))
    if not len(samples):
        raise ValueError(f"the classes {list(classes)} have no images; name others")
    return samples


def _check_crop(crop: Crop, domain: Domain, samples: npt.NDArray[np.int64]) -> None:
    if not isinstance(crop, Crop):
        raise ValueError(f"crop is {crop!r}; give RandomCrop, CenterCrop or RandomResizedCrop")
    if crop.resizes:
        return
    height, width = crop.shape
    small = (domain.heights[samples] < height) | (domain.widths[samples] < width)
    if small.any():
        index = int(samples[np.argmax(small)])
        raise ValueError(
            f"{domain.describe(index)} is {domain.widths[index]}x{domain.heights[index]}, smaller "
            f"than the crop {width}x{height}; crop less, convert with a larger image size, or use "
            "RandomResizedCrop"
        )


def _log_provenance(pairing: Pairing, target: Domain, source: Domain) -> None:
    for kind, provenance, domain in (
        ("target", pairing.target, target),
        ("source", pairing.source, source),
    ):
        known = provenance.get("domains")
        if known is not None and not all(
            part["fingerprints"] in [given["fingerprints"] for given in domain.provenance]
            for part in known
        ):
            _log.warning("the pairing was made with other %s betons than those given", kind)
    shared = {b.path.resolve() for b in target.betons} & {b.path.resolve() for b in source.betons}
    for path in sorted(shared):
        _log.info("%s is target and source at once", path)
