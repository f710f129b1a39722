"""What both loaders share: epochs, positions, ranks and lifetimes; and one pass over an epoch.

Comes in: a plan, domains and options. Goes out: batches on the device. A loader keeps where it is
(epoch, position); the plan says what comes, the backend makes it.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from xmix_data.backends import STREAM_STATS, ImageStream, Spec, make_backend
from xmix_data.beton import Domain
from xmix_data.loader.damage import Replacements
from xmix_data.loader.options import at_least_one, default_workers, three_channels, usable_device
from xmix_data.loader.spans import Span, batch_spans, planned_rows
from xmix_data.plan import EpochPlan, Plan, PlanRows
from xmix_data.ranks import find_rank

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Loader"]


_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
_STATE_VERSION = 1

B = TypeVar("B")


class Loader(Generic[B]):
    """Base class of both loaders: epochs, positions, ranks, lifetimes."""

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
        self.batch_size = at_least_one("batch_size", batch_size)
        """Number of images of a batch, in each process."""
        self.drop_last = drop_last
        """Whether an incomplete last batch is left out."""
        self.rank, self.world_size = find_rank(rank, world_size)
        """Rank of this process, and number of processes that share the epoch."""
        self.device = usable_device(device)
        """Device that batches arrive on."""
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
            mean=three_channels("mean", mean),
            std=three_channels("std", std, positive=True),
            num_workers=default_workers()
            if num_workers is None
            else at_least_one("num_workers", num_workers),
            prefetch=at_least_one("prefetch", prefetch),
        )
        self._backend = make_backend(backend, self._spec)
        self._epoch = self._position = 0
        self._received = False
        """Whether the caller got a batch since the position was last set."""
        self._last: PlanRows | None = None
        """Rows of the batch that the caller got last."""
        self._padding = 0
        self._closed = False
        self._digest: str | None = None
        self._pass: weakref.ref[_Pass[B]] | None = None
        self._stats: dict[str, float] = dict.fromkeys(
            ("batches", "samples", "replaced", *STREAM_STATS), 0
        )
        self._damaged: set[tuple[int, int]] = set()
        """Images that were replaced: domain and sample index of each."""

    def _batch(self, rows: PlanRows, images: tuple[torch.Tensor, ...]) -> B:
        raise NotImplementedError

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return tensor
        # From memory that is not pinned the copy would wait for all that the device has to do.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def __len__(self) -> int:
        """Return the number of batches that each process gets in an epoch."""
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

    def _spans(self, samples: int, position: int) -> Iterator[Span]:
        return batch_spans(
            samples,
            position,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )

    def _move_to(self, epoch: int, position: int) -> None:
        self._epoch, self._position, self._received = epoch, position, False

    def state_dict(self) -> dict[str, Any]:
        """Return where the caller is: samples received over all ranks, never prefetched ones.

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
        """Rows of the plan for the batch that the caller got last; ``None`` before the first."""
        return self._last

    def describe(self, rows: PlanRows) -> list[str]:
        """Name the samples of a batch: file, index and class.

        Args:
            rows: Rows of the batch, e.g. `last_rows`.

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
        """Number of padding samples at the end of the batch that the caller got last.

        The tail of an epoch is padded so that all ranks have equally many batches of equal size;
        sums over all ranks must leave it out.
        """
        return self._padding

    def stats(self) -> dict[str, float]:
        """Return what was delivered, and who waited for whom, since construction.

        Returns:
            ``batches`` and ``samples`` that this process received; ``consumer_waited_s``, seconds
                that the caller waited for data (the loader is the bottleneck); ``loader_waited_s``,
                seconds that the decoding threads waited for the caller, averaged over them
                (training is); ``decode_s`` and ``copy_s``, seconds that all threads decoded JPEG,
                and cropped, resized and mixed; ``replaced``, damaged images that
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
        """Domain that an epoch passes over."""
        return self._target

    @property
    def source(self) -> Domain | None:
        """Domain that is mixed in; ``None`` for a loader of one domain."""
        return self._source

    @property
    def num_target_classes(self) -> int:
        """Number n of target classes: the size of the target head."""
        return len(self._target.class_names)

    @property
    def num_source_classes(self) -> int:
        """Number m of source classes: the size of the source head; 0 for a loader of one domain."""
        return 0 if self._source is None else len(self._source.class_names)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} batches of {self.batch_size}, epoch {self._epoch}, "
            f"{self.num_target_classes} target classes, {self.num_source_classes} source classes, "
            f"{self.device})"
        )

    def preview(self, n: int = 8) -> Image.Image:
        """Draw the epoch's first samples on one sheet: target, source, mixed, with names and λ.

        The loader's position is not touched.

        Args:
            n: Number of samples.

        Returns:
            An RGB picture with one column a sample.
        """
        from xmix_data.loader.preview import preview

        self._require_open()
        spec = replace(self._spec, mix=False, dtype=torch.uint8, device=torch.device("cpu"))
        return preview(self._plan.epoch(self._epoch), spec, n, replaces=self._replaces)


class _Pass(Iterator[B]):
    """Pass over (the rest of) an epoch, which counts what the caller received."""

    def __init__(self, loader: Loader[B], plan: EpochPlan, position: int) -> None:
        self._loader = loader
        self._samples = len(plan)
        self._spans = loader._spans(self._samples, position)
        self._stream: ImageStream | None = loader._backend.stream(
            planned_rows(
                plan,
                loader._spans(self._samples, position),
                contiguous=loader.world_size == 1,
            ),
            plan.replaced if loader._replaces else None,
        )
        self._replacements = Replacements(
            loader._domains, -(-self._samples // loader.world_size), loader._damaged
        )
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
            for domain, index in rows.damaged:
                self._loader._stats["replaced"] += 1
                self._replacements.add(domain, index)
        except StopIteration:
            self.close()
            self._exhausted = True
            self._loader._move_to(self._loader._epoch + 1, 0)
            raise
        except BaseException:
            self.close()
            raise
        batch = self._loader._batch(rows, images)
        span = next(self._spans)
        self._loader._position = span.end
        self._loader._padding = min(len(rows), max(0, span.stop - self._samples))
        self._loader._received = True
        self._loader._last = rows
        self._loader._stats["batches"] += 1
        self._loader._stats["samples"] += len(rows)
        return batch

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
