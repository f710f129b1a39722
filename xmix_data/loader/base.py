"""What both loaders share: epochs, positions, ranks, lifetimes and copies; one pass over an epoch.

Comes in: a plan, domains and options. Goes out: batches on the device. A loader keeps where it is
(`Position`); the plan says what comes, a backend makes it, a `Feed` keeps what is made ahead.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from xmix_data.backends import STREAM_STATS, Backend, Spec, in_one_copy, make_backend
from xmix_data.beton import Domain
from xmix_data.cores import rank_cores
from xmix_data.loader.copies import Parcel, pack, unpack
from xmix_data.loader.damage import Replacements
from xmix_data.loader.feed import Feed
from xmix_data.loader.options import one_of, three_channels, usable_device
from xmix_data.loader.position import Position
from xmix_data.loader.spans import Share, Span
from xmix_data.loader.views import DatasetView, SamplerView
from xmix_data.options import MAX_SEED, truth, whole_number
from xmix_data.plan import VERSIONS, Crop, Plan, PlanRows, with_crop
from xmix_data.ranks import Ranks

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Loader", "Option"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
_MEMORY_FORMATS = (torch.channels_last, torch.contiguous_format)
_ABSENT = {
    # A framework that finds one builds a DataLoader of it, which can neither mix nor go on.
    "batch_sampler": "a loader cuts its own batches, and no DataLoader can be built of it. To go "
    "on in the middle of an epoch give it its state (load_state_dict; Accelerate's "
    "register_for_checkpointing does) or call its skip(batches), in transformers' Trainer with "
    "ignore_data_skip=True; to begin an epoch call its set_epoch",
}
"""What to do without an attribute that frameworks ask for."""
_CHANGED_BY = {
    "epoch": "set_epoch()",
    "crop": "set_crop()",
    "alpha": "set_mix()",
    "beta": "set_mix()",
    "mix": "set_mix()",
}
"""What changes an option that can be changed."""

B = TypeVar("B")


class Option:
    """An option of a loader, to be read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, loader: Any, owner: type | None = None) -> Any:
        return self if loader is None else loader._options[self._name]


class Loader(Generic[B]):
    """What both loaders share."""

    batch_size = Option()
    crop = Option()
    device = Option()
    drop_last = Option()
    dtype = Option()
    flip = Option()
    mean = Option()
    memory_format = Option()
    num_workers = Option()
    on_error = Option()
    prefetch = Option()
    seed = Option()
    std = Option()
    backend = Option()

    def __init__(
        self, plan: Plan, target: Domain, source: Domain | None, options: Mapping[str, Any]
    ) -> None:
        """Check what both loaders take, and make the backend.

        Args:
            plan: Of the epochs.
            target, source: The domains.
            options: What the loader was called with, by name.
        """
        self._ranks = Ranks(options["rank"], options["world_size"])
        workers = options["num_workers"]
        self._given = {
            **options,
            "batch_size": whole_number("batch_size", options["batch_size"], 1),
            "prefetch": whole_number("prefetch", options["prefetch"], 1),
            "drop_last": truth("drop_last", options["drop_last"]),
            "mean": three_channels("mean", options["mean"]),
            "std": three_channels("std", options["std"], positive=True),
            "seed": plan.seed,
            "dtype": one_of("dtype", options["dtype"], _DTYPES),
            "memory_format": one_of("memory_format", options["memory_format"], _MEMORY_FORMATS),
            "on_error": one_of("on_error", options["on_error"], ("raise", "replace")),
        }
        """For copies: checked, and as it was given where the machine or the job decides."""
        self._options = {
            **self._given,
            "num_workers": rank_cores()
            if workers is None
            else whole_number("num_workers", workers, 1),
            "device": usable_device(options["device"]),
        }
        self._target, self._source = target, source
        self._plan = plan
        self._found_share: Share | None = None
        self._require_a_batch(self._share_of(*(self._ranks.given or (0, 1))))
        self._backend = self._made_backend()
        self._position = Position()
        self._last: PlanRows | None = None
        """Rows of the batch that the caller got last."""
        self._padding = 0
        self._closed = False
        self._digest: str | None = None
        self._feed: Feed | None = None
        self._pass: weakref.ref[_Pass[B]] | None = None
        self._passes = 0
        """How many were begun; the latest one is the only one that is open."""
        self._stats: dict[str, float] = dict.fromkeys(
            ("batches", "samples", "replaced", *STREAM_STATS), 0
        )
        self._damaged: set[tuple[int, int]] = set()
        """Images that were replaced: domain and sample index of each."""

    def _batch(self, rows: PlanRows, images: tuple[torch.Tensor, ...]) -> B:
        raise NotImplementedError

    def _by_name(self, batch: Sequence[torch.Tensor]) -> Any:
        """Give a batch's fields the names that were asked for, if any were."""
        names = self._options["names"]
        return batch if names is None else dict(zip(names, batch, strict=True))

    def _laid_out(self, images: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Give images the memory format that was asked for; as backends make them they have one."""
        return tuple(image.contiguous(memory_format=self.memory_format) for image in images)

    def _spec(self) -> Spec:
        """Say what a backend has to make."""
        raise NotImplementedError

    def _shared_spec(self) -> dict[str, Any]:
        names = ("device", "dtype", "mean", "std", "num_workers", "prefetch")
        return {name: self._options[name] for name in names}

    def _made_backend(self) -> Backend:
        return make_backend(self.backend, self._spec())

    def _on_device(self, *arrays: npt.NDArray[Any]) -> list[torch.Tensor]:
        """Send what a batch has beside its images."""
        # Copies, as the batch is the caller's: λ is a part of the plan's rows, which are kept.
        tensors = [torch.from_numpy(np.array(array)) for array in arrays]
        return tensors if self.device.type == "cpu" else in_one_copy(tensors, self.device)

    # Ranks

    def _share(self, asker: str) -> Share:
        """How an epoch is cut for this rank, which is found now if it was not before."""
        found = self._ranks.find(asker)
        if self._found_share is None:
            share = self._share_of(*found)
            self._require_a_batch(share)
            self._found_share = share
        return self._found_share

    def _share_of(self, rank: int, world_size: int) -> Share:
        return Share(len(self._plan.samples), self.batch_size, rank, world_size, self.drop_last)

    def _require_a_batch(self, share: Share) -> None:
        if not len(share):
            first, *others = (beton.path.name for beton in self._target.betons)
            more = f" and {len(others)} more" if others else ""
            raise ValueError(
                f"batch_size {share.batch_size} x {share.world_size} processes is larger than the "
                f"{share.samples} images of an epoch of {first}{more}, which would have no batch; "
                "lower batch_size, or give a loader of your own drop_last=False"
            )

    @property
    def rank(self) -> int:
        """Rank of this process, found when it is first needed unless it was given."""
        return self._share("loader.rank").rank

    @property
    def world_size(self) -> int:
        """How many processes share an epoch."""
        return self._share("loader.world_size").world_size

    def __len__(self) -> int:
        """Batches that each process gets in an epoch."""
        return len(self._share("len(loader)"))

    @property
    def own_samples(self) -> int:
        """Samples that this process gets in an epoch, padding included."""
        return self._share("len(loader.sampler)").own_samples

    # Epochs and positions

    def __iter__(self) -> Iterator[B]:
        """Begin a pass: the rest of the epoch after `load_state_dict`, else a whole epoch.

        After a pass that was left early, this is the next epoch. An older iterator is closed. What
        was prefetched goes on into this pass where it begins there.
        """
        self._require_open()
        share = self._share("a pass")
        self._passes += 1
        self._position.begin()
        iterator = _Pass(self, self._passes)
        self._pass = weakref.ref(iterator)
        epoch, position = self._position.next(share)
        if share.has_batch(position):
            self._feed_from(share, epoch, position)
        return iterator

    def _feed_from(self, share: Share, epoch: int, position: int, like: Feed | None = None) -> Feed:
        """Return the feed whose next batch is the one there: the open one, or else a new one.

        Args:
            share: How an epoch is cut.
            epoch, position: Where the batch begins.
            like: Feed with the settings that hold; ``None``: the present ones.
        """
        backend, plan = (self._backend, self._plan) if like is None else (like.backend, like.plan)
        feed = self._feed
        if feed is None or not feed.begins_at(plan, share, epoch, position):
            self._drop_feed()
            replaces = self.on_error == "replace"
            feed = self._feed = Feed(backend, plan, share, epoch, position, replaces=replaces)
        return feed

    def _drop_feed(self) -> None:
        """End the threads, and throw away what they made ahead."""
        feed, self._feed = self._feed, None  # another thread may do so as well
        if feed is not None:
            feed.close()
            for key, value in feed.stats().items():
                self._stats[key] += value

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0; grows by one when a pass is exhausted."""
        return self._position.epoch

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next to be iterated, from its start.

        After `load_state_dict` naming the state's epoch keeps the position in it, however often it
        is named: frameworks name the epoch before they begin it. An iterator that has given no
        batch yet follows; another one is closed.

        Raises:
            ValueError: ``epoch`` is no whole number in 0 .. 2**64 - 1.
        """
        epoch = whole_number("epoch", epoch, 0, MAX_SEED)
        if self._position.moving:
            self._end_pass()
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the caller is: samples received over all ranks, never prefetched ones.

        Returns:
            Plain numbers and strings, the same on every rank.
        """
        return {
            "version": self._plan.version,
            "seed": self._plan.seed,
            "epoch": self._position.epoch,
            "position": self._position.position,
            "samples": self._sample_digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken: the next iteration is the rest of that epoch.

        Batch size, world size, workers and backend may differ: the sample sequence goes on. Where
        this loader has no batch left in that epoch, the next iteration is the next epoch. A state
        of an earlier version goes on with the order of samples that that version had.

        Raises:
            ValueError: The state is of another seed, pairing or data, or no state at all.
        """
        expected = ("version", "seed", "epoch", "position", "samples")
        given = state if isinstance(state, Mapping) else {}
        missing = [key for key in expected if key not in given]
        if missing or state["version"] not in VERSIONS:
            known = " or ".join(map(str, sorted(VERSIONS)))
            raise ValueError(
                f"this is no loader state of version {known} "
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
        epoch = whole_number("the state's epoch", state["epoch"], 0, MAX_SEED)
        samples = len(self._plan.samples)
        position = whole_number("the state's position", state["position"], 0, samples)
        self._end_pass()
        self._drop_feed()
        self._plan = replace(self._plan, version=state["version"])
        self._position.load(epoch, position)

    def skip(self, batches: int) -> None:
        """Go past batches that were trained on: the next iteration begins behind them.

        For loops that count steps and save no state of a loader. As after `load_state_dict`, the
        next iteration is the rest of that epoch, and `set_epoch` of that epoch keeps the position.

        Args:
            batches: Number of batches of each process, counted from where the next pass would
                begin, also over the ends of epochs.

        Raises:
            ValueError: ``batches`` is no whole number from 0 on.

        Examples:
            >>> loader = ImageLoader("target.beton", batch_size=8, crop=CenterCrop(32))
            >>> loader.skip(6)  # an epoch of four, and two
            >>> loader.epoch, [len(labels) for _, labels in loader]
            (1, [8, 3])
        """
        batches = whole_number("batches", batches, 0)
        share = self._share("loader.skip()")
        self._end_pass()
        self._drop_feed()
        self._position.skip(batches, share)

    def _sample_digest(self) -> str:
        if self._digest is None:
            self._digest = self._plan.digest()
        return self._digest

    def peek(self) -> B:
        """Return the batch that the next step of iteration gives; position and epoch stay.

        Returns:
            A copy, in the form that iteration gives.
        """
        self._require_open()
        share = self._share("loader.peek()")
        feed = self._next_feed(share)
        waited = feed.stats()["consumer_waited_s"]
        try:
            rows, images = feed.peek()
        finally:
            self._stats["consumer_waited_s"] -= feed.stats()["consumer_waited_s"] - waited
        return self._batch(rows, self._laid_out(tuple(image.clone() for image in images)))

    def _next_feed(self, share: Share) -> Feed:
        """Return the feed that the next step of iteration takes its batch from."""
        now = self._position
        if self._is_in_a_pass():
            if share.has_batch(now.position):  # what was set meanwhile is for the pass after it
                return self._feed_from(share, now.epoch, now.position, like=self._feed)
            return self._feed_from(share, now.epoch + 1, 0)
        epoch, position = now.next(share)
        if not share.has_batch(position):
            epoch, position = epoch + 1, 0
        return self._feed_from(share, epoch, position)

    def _is_in_a_pass(self) -> bool:
        current = None if self._pass is None else self._pass()
        return current is not None and self._position.moving

    def set_crop(self, crop: Crop) -> None:
        """Crop otherwise from the next pass on: progressive resizing, for one.

        States and copies: a state does not hold the crop, so that a schedule sets it again after
        `load_state_dict`; a copy of the loader has it. To set the crop that is set already changes
        nothing: a schedule may do so before every epoch.

        Raises:
            ValueError: An image is smaller than the crop.
            RuntimeError: The loader is closed.
        """
        self._require_open()
        plan = with_crop(self._plan, crop, self._target, self._source)
        if crop != self.crop:
            self._change({"crop": crop}, plan)

    def _change(self, options: Mapping[str, Any], plan: Plan) -> None:
        """Take other options from the next pass on."""
        before = self._options, self._plan
        self._options = {**self._options, **options}
        self._plan = plan
        try:
            self._backend = self._made_backend()
        except BaseException:
            self._options, self._plan = before
            raise
        self._given |= options

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
        if self._feed is not None:
            for key, value in self._feed.stats().items():
                totals[key] += value
        return totals

    # Lifetimes

    def close(self) -> None:
        """End the current pass and all threads; the loader cannot be iterated again.

        What it is and where it is can still be read: options, `state_dict`, `stats`. A copy that is
        not open yet is closed without its data.
        """
        parcel: Parcel | None = self.__dict__.get("_parcel")
        if parcel is not None:
            state = {**parcel.state, "closed": True}
            self.__dict__["_parcel"] = parcel._replace(state=state)
            return
        self._closed = True
        self._end_pass()
        self._drop_feed()
        self.__dict__.pop("_backend", None)  # with buffers, and DALI's pipeline and its threads

    def _end_pass(self) -> None:
        """Close the open iterator."""
        self._passes += 1
        self._pass = None

    def _leave(self, number: int) -> None:
        """Note that an iterator is garbage: nothing goes on from the middle of an epoch."""
        feed = self._feed
        goes_on = self._plan.shuffle and feed is not None and feed.is_at_an_epochs_start
        if number == self._passes and not goes_on:
            self._drop_feed()

    def _require_open(self) -> None:
        parcel: Parcel | None = self.__dict__.get("_parcel")
        if self._closed if parcel is None else parcel.state["closed"]:
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

    # Copies

    def __reduce__(self) -> tuple[Any, ...]:
        """As paths and numbers; see `xmix_data.loader.copies`."""
        parcel = self.__dict__.get("_parcel")
        if parcel is None:
            parcel = pack(self._packed_options(), self._packed_state())
        return _delivered, (type(self), parcel)

    def _packed_options(self) -> dict[str, Any]:
        raise NotImplementedError

    def _packed_state(self) -> dict[str, Any]:
        version = self._plan.version
        return {"position": replace(self._position), "closed": self._closed, "version": version}

    def _restore(self, state: dict[str, Any]) -> None:
        self._position = replace(state["position"])
        # Copies of before the second version do not tell theirs.
        self._plan = replace(self._plan, version=state.get("version", 1))
        if state["closed"]:
            self.close()

    def __getattr__(self, name: str) -> Any:
        """Open a copy when it is first used; otherwise there is no such attribute."""
        if "_parcel" in self.__dict__ and not name.startswith("__"):
            parcel: Parcel = self.__dict__.pop("_parcel")
            try:
                self.__init__(**unpack(parcel))  # type: ignore[misc]
            except BaseException:
                self.__dict__.clear()
                self.__dict__["_parcel"] = parcel
                raise
            self._restore(parcel.state)
            return getattr(self, name)
        remedy = f": {_ABSENT[name]}" if name in _ABSENT else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{remedy}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what is no setting: it would be without effect. Underscores are a framework's."""
        if not name.startswith("_"):
            how = _CHANGED_BY.get(name, "make a new loader")
            raise AttributeError(f"{name} of a loader cannot be assigned; {how}")
        object.__setattr__(self, name, value)

    # What it loads

    @property
    def dataset(self) -> DatasetView:
        """The samples of an epoch: their number, classes and labels."""
        labels = self._plan.target_labels[self._plan.samples]
        return DatasetView(list(self._label_names()), self._delivered_labels(labels))

    @property
    def sampler(self) -> SamplerView:
        """What frameworks tell the epoch."""
        return SamplerView(self)

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
        return len(self._label_names())

    def _label_names(self) -> list[str]:
        """Name of each label of the target."""
        return self._target.class_names

    def _delivered_labels(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the labels that batches have for class ids of the target."""
        return labels

    @property
    def num_source_classes(self) -> int:
        """Number m of source classes: the size of the source head; 0 for a loader of one domain."""
        return 0 if self._source is None else len(self._source.class_names)

    def __repr__(self) -> str:
        if "_parcel" in self.__dict__:
            return f"{type(self).__name__}(a copy that is not open yet)"
        # Without finding a rank: that is not what somebody who prints a loader asks for.
        share = self._found_share or self._share_of(*(self._ranks.given or (0, 1)))
        return (
            f"{type(self).__name__}({len(share)} batches of {self.batch_size}, epoch {self.epoch}, "
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

        Raises:
            ValueError: ``n`` is no whole number of at least 1.
        """
        from xmix_data.loader.preview import preview

        n = whole_number("n", n, 1)
        self._require_open()
        spec = replace(
            self._spec(),
            source=self._source,
            mix=False,
            dtype=torch.uint8,
            device=torch.device("cpu"),
        )
        return preview(self._plan.epoch(self.epoch), spec, n, replaces=self.on_error == "replace")


def _delivered(kind: type[Loader[Any]], parcel: Parcel) -> Loader[Any]:
    """Make a copy that opens its betons when it is first used."""
    loader = object.__new__(kind)
    loader.__dict__["_parcel"] = parcel
    return loader


class _Pass(Iterator[B]):
    """Pass over (the rest of) an epoch, which counts what the caller received."""

    def __init__(self, loader: Loader[B], number: int) -> None:
        self._loader, self._number = loader, number
        self._epoch: int | None = None
        """Known with the first batch: until then it may be set."""
        self._exhausted = False

    def __next__(self) -> B:
        loader = self._loader
        if self._exhausted:
            raise StopIteration
        if self._number != loader._passes:
            raise RuntimeError(
                "this iterator is closed: its loader was iterated anew, moved or closed"
            )
        share = loader._share("a pass")
        if self._epoch is None:
            self._epoch, position = loader._position.enter(share)
            if share.has_batch(position):
                loader._feed_from(share, self._epoch, position)
            self._replacements = Replacements(
                loader._domains, -(-share.samples // share.world_size), loader._damaged
            )
        if not share.has_batch(loader._position.position):
            self._end(share)
        feed = loader._feed
        assert feed is not None
        try:
            span, rows, images = feed.take()
            for domain, index in rows.damaged:
                loader._stats["replaced"] += 1
                self._replacements.add(domain, index)
            batch = loader._batch(rows, loader._laid_out(images))
        except BaseException:  # the feed is past the batch: nothing may go on behind it
            loader._end_pass()
            loader._drop_feed()
            raise
        self._note(span, rows, share)
        return batch

    def _note(self, span: Span, rows: PlanRows, share: Share) -> None:
        loader = self._loader
        loader._position.receive(span.end)
        loader._padding = min(len(rows), max(0, span.stop - share.samples))
        loader._last = rows
        loader._stats["batches"] += 1
        loader._stats["samples"] += len(rows)

    def _end(self, share: Share) -> None:
        self._exhausted = True
        loader = self._loader
        loader._position.end()
        if loader._feed is not None and loader._feed.is_over:
            loader._drop_feed()
        raise StopIteration

    def __del__(self) -> None:
        loader = getattr(self, "_loader", None)
        if loader is not None:
            loader._leave(self._number)
