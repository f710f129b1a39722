"""Everything random about an epoch, decided in advance: which images, which λ, which crops.

Comes in: (seed, epoch) and, by position in the epoch, nothing else. Goes out: `PlanRows`.
The same numbers come out for any batch size, thread count, prefetch, rank or backend.

The generator is Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11)
with the key (seed, epoch); each position owns a fixed block of counters of each stream, so a
batch's numbers are one contiguous draw. The epoch's permutation is computed by position too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.plan.crops import Crop
from xmix_data.plan.permutation import ROUNDS, WORDS_PER_ROUND, SortedOrder, SwapOrNot
from xmix_data.plan.pool import SourcePool
from xmix_data.plan.rows import TARGET, Crops, ImageSizes, PlanRows

__all__ = ["VERSIONS", "EpochPlan", "Epochs", "Plan"]

VERSIONS = (2, 1)
"""Versions of the numbers, the latest first: 1 had the epoch's order from sorted keys."""

_WORDS_PER_COUNTER = 4
_ROW, _TARGET_CROP, _SOURCE_CROP, _PERMUTATION, _REPLACEMENT = range(5)
"""Streams of random numbers, told apart by the last word of the counter."""

_PICK, _LAM, _TARGET_FLIP, _SOURCE_FLIP = range(4)
"""Columns of the row stream: what each of a position's uniform numbers decides."""


@dataclass(frozen=True)
class Plan:
    """Plan of all epochs: what stays the same from one to the next.

    Args:
        seed: Seed, 0 .. 2**64 - 1.
        samples: (N,) indices into the target domain that make up an epoch.
        target_labels: Class id of every target image.
        target_sizes: Sizes of the target images.
        crop: Crop of the images of both domains, drawn independently.
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
    mixes: bool = True
    """Whether λ is drawn; otherwise it is 1, and all other numbers stay as they are."""
    version: int = VERSIONS[0]
    """Which of `VERSIONS` the numbers are of."""

    def epoch(self, epoch: int) -> EpochPlan:
        """Return the plan of one epoch, counted from 0."""
        return EpochPlan(self, epoch)

    def digest(self) -> str:
        """Return a hash that identifies the sample sequence: samples, labels and pairing."""
        digest = hashlib.sha256()
        for array in (self.samples, self.target_labels):
            digest.update(np.ascontiguousarray(array, np.int64).data)
        if self.pool is not None:
            digest.update(self.pool.counts.data)
            digest.update(np.ascontiguousarray(self.pool.images, np.int64).data)
        return digest.hexdigest()


class EpochPlan:
    """Plan of one epoch: positions 0 .. N - 1 pass over the target once; later ones start over."""

    def __init__(self, plan: Plan, epoch: int) -> None:
        self._plan, self._epoch = plan, epoch
        self._key = np.array([plan.seed, epoch], np.uint64)
        self._order: SwapOrNot | SortedOrder | None = None
        if plan.shuffle and plan.version == 1:
            self._order = SortedOrder(self._bits(_PERMUTATION, 0, len(self), 1)[:, 0])
        elif plan.shuffle:
            bits = self._bits(_PERMUTATION, 0, ROUNDS, WORDS_PER_ROUND)
            self._order = SwapOrNot(len(self), bits)

    def __len__(self) -> int:
        return len(self._plan.samples)

    def targets(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the target sample indices (B,) of positions ``start .. stop - 1``."""
        places = np.arange(start, stop) % len(self)
        return self._plan.samples[places if self._order is None else self._order(places)]

    def rows(self, start: int, stop: int) -> PlanRows:
        """Return the rows of positions ``start .. stop - 1``.

        Positions from N on take the epoch's samples from the start again (the padding that gives
        all ranks equally many), with random numbers of their own.
        """
        plan, count = self._plan, stop - start
        uniforms = self._uniforms(_ROW, start, count, 4)
        target = self.targets(start, stop)
        target_crops = self._crops(
            _TARGET_CROP, start, target, plan.target_sizes, uniforms[:, _TARGET_FLIP]
        )
        lam = np.ones(count, np.float32)
        if plan.mixes:
            lam = _beta_quantile(uniforms[:, _LAM], plan.alpha, plan.beta).astype(np.float32)
        if plan.pool is None:
            return PlanRows(target, target_crops, lam, start=start, epoch=self._epoch)
        source = plan.pool.pick(plan.target_labels[target], uniforms[:, _PICK])
        source_crops = self._crops(
            _SOURCE_CROP, start, source, plan.pool.sizes, uniforms[:, _SOURCE_FLIP]
        )
        return PlanRows(target, target_crops, lam, source, source_crops, start, self._epoch)

    def replaced(self, rows: PlanRows, domain: int, item: int, attempt: int) -> PlanRows:
        """Return rows with another image of the same class in one place.

        The other images of the class (of a source class: those that the target class draws from)
        are tried in a random order of the position's own, so that any rank, thread and batch size
        comes to the same one. λ, the flip and the random numbers of the crop stay.

        Args:
            rows: Rows of this epoch.
            domain: Domain of the image, `TARGET` or `SOURCE`.
            item: Place of the image in the rows.
            attempt: Number of the other image in its random order, counted from 0.

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
        """Return (count, words) float64 in [0, 1), of 53 random bits each."""
        return (self._bits(stream, start, count, words) >> np.uint64(11)) * 2.0**-53

    def _bits(self, stream: int, start: int, count: int, words: int) -> npt.NDArray[np.uint64]:
        """Return (count, words) random uint64 of the positions from ``start`` on."""
        counters = -(-words // _WORDS_PER_COUNTER)
        counter = np.array([start * counters, 0, 0, stream], np.uint64)
        bits = np.random.Philox(key=self._key, counter=counter).random_raw(
            count * counters * _WORDS_PER_COUNTER
        )
        return bits.reshape(count, counters * _WORDS_PER_COUNTER)[:, :words]


class Epochs:
    """The plans of a plan's epochs; the latest ones are kept, as one of version 1 costs a sort.

    Args:
        plan: What stays the same over epochs.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._kept: dict[int, EpochPlan] = {}

    def of(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch."""
        made = self._kept.get(epoch)
        if made is None:
            made = self.plan.epoch(epoch)
            # While one epoch ends the next is begun: two are enough. Replaced whole, as several
            # threads may ask at once.
            self._kept = {**dict(list(self._kept.items())[-1:]), epoch: made}
        return made

    def replaced(self, rows: PlanRows, domain: int, item: int, attempt: int) -> PlanRows:
        """As `EpochPlan.replaced`, for rows of any epoch."""
        return self.of(rows.epoch).replaced(rows, domain, item, attempt)


def _beta_quantile(
    uniforms: npt.NDArray[np.float64], alpha: float, beta: float
) -> npt.NDArray[np.float64]:
    """Invert Beta(alpha, beta)'s distribution function: each uniform number gives one λ."""
    if beta == 1:
        return np.asarray(uniforms ** (1 / alpha))
    if alpha == 1:
        return np.asarray(1 - (1 - uniforms) ** (1 / beta))
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, beta, uniforms))
