"""Everything random about an epoch, decided in advance: which images, which λ, which crops.

Comes in: (seed, epoch) and, by position in the epoch, nothing else. Goes out: `PlanRows`.
The same numbers come out for any batch size, thread count, prefetch, rank or backend.

The generator is Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11)
with the key (seed, epoch); each position owns a fixed block of counters of each stream, so a
batch's numbers are one contiguous draw. Only the epoch's permutation is materialised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.augment import Crop
from xmix_data.pairing import Draw

__all__ = ["EpochPlan", "ImageSizes", "Plan", "PlanRows", "Replace", "SourcePool"]

_WORDS_A_COUNTER = 4
_ROW, _TARGET_CROP, _SOURCE_CROP, _PERMUTATION, _REPLACEMENT = range(5)
"""Streams: the last word of the counter."""

TARGET, SOURCE = range(2)
"""The domains of a row."""

_PICK, _LAM, _TARGET_FLIP, _SOURCE_FLIP = range(4)
"""Columns of the row stream."""


@dataclass(frozen=True)
class ImageSizes:
    """Stored heights and widths (N,) in pixels of one domain's images."""

    heights: npt.NDArray[np.uint16]
    widths: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Crops:
    """Where one domain's images of a batch are cut out, and whether they are mirrored."""

    boxes: npt.NDArray[np.int32]
    """(B, 4): top, left, height, width in pixels of the stored image."""
    flips: npt.NDArray[np.bool_]
    """(B,)"""

    def part(self, start: int, stop: int) -> Crops:
        """Those of images ``start .. stop - 1``."""
        return Crops(self.boxes[start:stop], self.flips[start:stop])


@dataclass(frozen=True)
class PlanRows:
    """What a backend has to deliver for consecutive positions of an epoch."""

    target: npt.NDArray[np.int64]
    """(B,) sample indices in the target domain."""
    target_crops: Crops
    lam: npt.NDArray[np.float32]
    """(B,) weight of the target image."""
    source: npt.NDArray[np.int64] | None = None
    """(B,) sample indices in the source domain; ``None`` where there is only one domain."""
    source_crops: Crops | None = None
    start: int = 0
    """Position in the epoch of the first row."""
    damaged: tuple[tuple[int, int], ...] = ()
    """Images that were drawn and replaced: (`TARGET` or `SOURCE`, sample index) of each."""

    def __len__(self) -> int:
        return len(self.target)

    def part(self, start: int, stop: int) -> PlanRows:
        """Rows ``start .. stop - 1`` of these."""
        return PlanRows(
            self.target[start:stop],
            self.target_crops.part(start, stop),
            self.lam[start:stop],
            None if self.source is None else self.source[start:stop],
            None if self.source_crops is None else self.source_crops.part(start, stop),
            self.start + start,
        )

    def of(self, domain: int) -> tuple[npt.NDArray[np.int64], Crops]:
        """Sample indices and crops of `TARGET` or `SOURCE`."""
        if domain == TARGET:
            return self.target, self.target_crops
        assert self.source is not None and self.source_crops is not None
        return self.source, self.source_crops

    def with_image(
        self, domain: int, item: int, index: int, box: npt.NDArray[np.int32]
    ) -> PlanRows:
        """A copy with another image in one place, because the one that was there is damaged."""
        indices, crops = self.of(domain)
        damaged = (*self.damaged, (domain, int(indices[item])))
        indices, boxes = indices.copy(), crops.boxes.copy()
        indices[item], boxes[item] = index, box
        crops = Crops(boxes, crops.flips)
        if domain == TARGET:
            return replace(self, target=indices, target_crops=crops, damaged=damaged)
        return replace(self, source=indices, source_crops=crops, damaged=damaged)


Replace = Callable[[PlanRows, int, int, int], PlanRows]
"""`EpochPlan.replaced`."""


class SourcePool:
    """For each target class the source images it draws from, uniformly (Eq. 3).

    Args:
        source_labels: (N,) class id of every source image.
        draws: For each target class what it draws from.
        sizes: Of the source images.
        seed: Of the random order in which `Draw.first` counts a class's images.
    """

    def __init__(
        self,
        source_labels: npt.NDArray[np.int64],
        draws: Sequence[Sequence[Draw]],
        sizes: ImageSizes,
        seed: int = 0,
    ) -> None:
        self.sizes = sizes
        self._labels = source_labels
        order = np.argsort(source_labels, kind="stable")
        labels = np.asarray(source_labels)[order]

        shuffled: dict[int, npt.NDArray[np.int64]] = {}

        def images_of(draw: Draw) -> npt.NDArray[np.int64]:
            start, stop = np.searchsorted(labels, (draw.label, draw.label + 1))
            if draw.first is None:
                return np.asarray(order[start:stop])
            # The key knows no class ids: a beton of fewer classes draws the same images.
            if stop - start not in shuffled:
                keys = np.random.Philox(key=np.array([seed, 1], np.uint64)).random_raw(stop - start)
                shuffled[stop - start] = np.argsort(keys, kind="stable")
            part = shuffled[stop - start][draw.first : draw.first + draw.images]
            return np.asarray(order[start + np.sort(part)])

        images = [np.concatenate([images_of(draw) for draw in drawn]) for drawn in draws]
        self.counts = np.array([len(pool) for pool in images], np.int64)
        """(n,) images that each target class draws from."""
        self._starts = np.cumsum(self.counts) - self.counts
        self.images = np.concatenate(images)
        """Source sample indices, target class after target class."""

    def pick(
        self, target_labels: npt.NDArray[np.int64], uniforms: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """(B,) source sample indices for the given target labels and uniform numbers."""
        offsets = np.floor(uniforms * self.counts[target_labels]).astype(np.int64)
        return np.asarray(self.images[self._starts[target_labels] + offsets])

    def alike(self, target_label: int, index: int) -> npt.NDArray[np.int64]:
        """The images of a source image's class that a target class draws from."""
        start = self._starts[target_label]
        pool = self.images[start : start + self.counts[target_label]]
        return np.asarray(pool[self._labels[pool] == self._labels[index]])


@dataclass(frozen=True)
class Plan:
    """What stays the same over epochs.

    Args:
        seed: 0 .. 2**64 - 1.
        samples: (N,) indices into the target domain that make up an epoch.
        target_labels: Class id of every target image.
        target_sizes: Of the target images.
        crop: Applied to both domains, independently.
        flip: Mirror each image with probability 1/2, both domains independently.
        shuffle: A new order each epoch; otherwise that of ``samples``.
        pool: Where source images are drawn from; ``None`` for a single domain.
        alpha, beta: λ ~ Beta(alpha, beta), per sample (Eq. 4).
    """

    seed: int
    samples: npt.NDArray[np.int64]
    target_labels: npt.NDArray[np.int64]
    target_sizes: ImageSizes
    crop: Crop
    flip: bool
    shuffle: bool
    pool: SourcePool | None = None
    alpha: float = 1.0
    beta: float = 1.0

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of one epoch, counted from 0."""
        return EpochPlan(self, epoch)

    def digest(self) -> str:
        """Identifies the sample sequence: samples, labels and pairing."""
        digest = hashlib.sha256()
        for array in (self.samples, self.target_labels):
            digest.update(np.ascontiguousarray(array, np.int64).data)
        if self.pool is not None:
            digest.update(self.pool.counts.data)
            digest.update(np.ascontiguousarray(self.pool.images, np.int64).data)
        return digest.hexdigest()


class EpochPlan:
    """One epoch: positions 0 .. N - 1 pass over the target once; later ones start over."""

    def __init__(self, plan: Plan, epoch: int) -> None:
        self._plan = plan
        self._key = np.array([plan.seed, epoch], np.uint64)
        self.order = plan.samples
        """(N,) target sample indices in the epoch's order."""
        if plan.shuffle:
            # Sorting random keys instead of Generator.permutation, whose numbers NumPy may change.
            keys = self._bits(_PERMUTATION, 0, len(plan.samples), 1)[:, 0]
            self.order = plan.samples[np.argsort(keys, kind="stable")]

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, start: int, stop: int) -> PlanRows:
        """The plan of positions ``start .. stop - 1``.

        Positions from N on take the epoch's samples from the start again (the padding that gives
        all ranks equally many), with random numbers of their own.
        """
        plan, count = self._plan, stop - start
        uniforms = self._uniforms(_ROW, start, count, 4)
        target = self.order[np.arange(start, stop) % len(self.order)]
        target_crops = self._crops(
            _TARGET_CROP, start, target, plan.target_sizes, uniforms[:, _TARGET_FLIP]
        )
        lam = _beta_quantile(uniforms[:, _LAM], plan.alpha, plan.beta).astype(np.float32)
        if plan.pool is None:
            return PlanRows(target, target_crops, lam, start=start)
        source = plan.pool.pick(plan.target_labels[target], uniforms[:, _PICK])
        source_crops = self._crops(
            _SOURCE_CROP, start, source, plan.pool.sizes, uniforms[:, _SOURCE_FLIP]
        )
        return PlanRows(target, target_crops, lam, source, source_crops, start)

    def replaced(self, rows: PlanRows, domain: int, item: int, attempt: int) -> PlanRows:
        """The rows with another image of the same class in one place.

        The other images of the class (of a source class: those that the target class draws from)
        are tried in a random order of the position's own, so that any rank, thread and batch size
        comes to the same one. λ, the flip and the random numbers of the crop stay.

        Args:
            rows: Of this epoch.
            domain: `TARGET` or `SOURCE`.
            item: Which of the rows.
            attempt: Which of the other images, counted from 0.

        Raises:
            IndexError: The class has no more images.
        """
        plan, position = self._plan, rows.start + item
        planned = self.rows(position, position + 1)
        label = int(plan.target_labels[planned.target[0]])
        drawn, sizes, crop_stream, flip = (
            int(planned.target[0]),
            plan.target_sizes,
            _TARGET_CROP,
            _TARGET_FLIP,
        )
        if domain == TARGET:
            alike = plan.samples[plan.target_labels[plan.samples] == label]
        else:
            assert plan.pool is not None and planned.source is not None
            drawn, sizes, crop_stream, flip = (
                int(planned.source[0]),
                plan.pool.sizes,
                _SOURCE_CROP,
                _SOURCE_FLIP,
            )
            alike = plan.pool.alike(label, drawn)
        others = alike[alike != drawn]
        counter = np.array([0, position, domain, _REPLACEMENT], np.uint64)
        keys = np.random.Philox(key=self._key, counter=counter).random_raw(len(others))
        other = others[np.argsort(keys, kind="stable")[attempt : attempt + 1]]
        if not len(other):
            raise IndexError(f"no image of the class is left after {attempt} others")
        flips = self._uniforms(_ROW, position, 1, 4)[:, flip]
        box = self._crops(crop_stream, position, other, sizes, flips).boxes[0]
        return rows.with_image(domain, item, int(other[0]), box)

    def _crops(
        self,
        stream: int,
        start: int,
        indices: npt.NDArray[np.int64],
        sizes: ImageSizes,
        flips: npt.NDArray[np.float64],
    ) -> Crops:
        crop = self._plan.crop
        uniforms = self._uniforms(stream, start, len(indices), crop.num_uniforms)
        boxes = crop.boxes(sizes.heights[indices], sizes.widths[indices], uniforms)
        return Crops(boxes, (flips < 0.5) & self._plan.flip)

    def _uniforms(self, stream: int, start: int, count: int, words: int) -> Any:
        """(count, words) float64 in [0, 1), 53 bits each."""
        return (self._bits(stream, start, count, words) >> np.uint64(11)) * 2.0**-53

    def _bits(self, stream: int, start: int, count: int, words: int) -> npt.NDArray[np.uint64]:
        """(count, words) uint64 of the positions from ``start`` on."""
        counters = -(-words // _WORDS_A_COUNTER)
        counter = np.array([start * counters, 0, 0, stream], np.uint64)
        bits = np.random.Philox(key=self._key, counter=counter).random_raw(
            count * counters * _WORDS_A_COUNTER
        )
        return bits.reshape(count, counters * _WORDS_A_COUNTER)[:, :words]


def _beta_quantile(
    uniforms: npt.NDArray[np.float64], alpha: float, beta: float
) -> npt.NDArray[np.float64]:
    """Inverse of Beta(alpha, beta)'s distribution function: one uniform number, one λ."""
    if beta == 1:
        return np.asarray(uniforms ** (1 / alpha))
    if alpha == 1:
        return np.asarray(1 - (1 - uniforms) ** (1 / beta))
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, beta, uniforms))
