"""This machine against its own limits: what the loader reaches of decoding and copying alone.

Comes in: photographs (a class folder or a beton), or none: then pictures with the statistics of
photographs are made. Goes out: for each row what runs it and counts its samples and seconds.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from xmix_data import decode
from xmix_data.bench.data import MIN_IMAGES, STORED_SIZE, Photographs, Repeated
from xmix_data.bench.limits import copy_crops, decode_whole
from xmix_data.bench.rounds import Row
from xmix_data.beton import Beton, Domain, open_domain, open_images, write_beton
from xmix_data.cores import usable_cores
from xmix_data.images import select
from xmix_data.loader import ImageLoader, XMixLoader
from xmix_data.normalise import IMAGENET_MEAN, IMAGENET_STD, scale_and_shift
from xmix_data.pairing import PairedClass, Pairing
from xmix_data.plan import Crop, RandomCrop, image_plan

__all__ = ["TARGETS", "Bench", "consume"]


_STRIPE = 8
_LEAST_SECONDS = 0.5
"""That a row of a loader takes."""

_RING = 5
"""Number of batches' memory that the limits write to in turn, as a loader with prefetch does."""

DECODE, COPY, MIX = "decode limit", "copy limit", "mix alone"


class Target(NamedTuple):
    """A row, what it is held against, and the share of it that it should reach."""

    row: str
    """Name of the row."""
    against: str
    """Name of what the row is held against, in words."""
    expected: Callable[[Mapping[str, float]], float]
    """Function from one round's rates, by row, to the rate that the limits allow."""
    share: float
    """Share of that rate that the design asks for."""


def _predicted(decoded: int) -> Callable[[Mapping[str, float]], float]:
    return lambda rates: 1 / (decoded / rates[DECODE] + 2 / rates[COPY] + 1 / rates[MIX])


_SUM = "decode, copy and mix alone, added up"
TARGETS = (
    Target("jpg + jpg, uint8 pairs", "decode limit / 2", lambda rates: rates[DECODE] / 2, 1.0),
    Target("raw + jpg, uint8 pairs", "decode limit", lambda rates: rates[DECODE], 0.95),
    Target("raw + raw, uint8 pairs", "copy limit / 2", lambda rates: rates[COPY] / 2, 0.85),
    Target("jpg + jpg, mixed", _SUM, _predicted(2), 0.95),
    Target("raw + jpg, mixed", _SUM, _predicted(1), 0.95),
    Target("raw + raw, mixed", _SUM, _predicted(0), 0.95),
)
"""Rates that the design asks of the loader on a CPU."""


@dataclass
class Bench:
    """Betons of the same images, jpg and raw, and the rows that are measured on them.

    Args:
        jpg, raw: The betons.
        crop: Crop of the images in all rows.
        batch_size: Number of pairs of a batch.
        threads: Number of decoding threads; default all cores.
        passes: Number of epochs of a row in one round.
    """

    jpg: Beton
    raw: Beton
    crop: Crop = field(default_factory=lambda: RandomCrop(224))
    batch_size: int = 48
    threads: int = 0
    passes: int = 1

    def __post_init__(self) -> None:
        self.threads = self.threads or usable_cores()
        names = self.jpg.class_names
        self.pairing = Pairing(
            {t: [PairedClass(s, 1.0, 1)] for t, s in zip(names, names[1:] + names[:1], strict=True)}
        )

    @staticmethod
    @contextmanager
    def of(data: Any = None, **options: Any) -> Iterator[Bench]:
        """Write betons of a class folder, a dataset, or made-up pictures, for a while.

        Of many images a sample is taken, few are repeated: about 2,000 make an epoch.
        """
        with tempfile.TemporaryDirectory(prefix="xmix-bench-") as name:
            folder = Path(name)
            source = open_images(Photographs() if data is None else data)
            some = max(1, MIN_IMAGES // (int(source.labels().max(initial=0)) + 1))
            some_of_each = select(source, per_class=some)
            once = write_beton(some_of_each, folder / "once.beton", image_size=STORED_SIZE)
            repeated = Repeated(once, -(-MIN_IMAGES // once.num_samples))
            jpg, raw = (
                write_beton(repeated, folder / f"{encoding}.beton", encoding=encoding)
                for encoding in ("keep", "raw")
            )
            yield Bench(jpg, raw, **options)

    def configuration(self, rounds: int) -> dict[str, Any]:
        """Return what a figure must say beside its machine."""
        return {
            "images": self.jpg.num_samples,
            "image_size": self.jpg.image_size,
            "jpg_bytes_per_image": int(self.jpg.sizes.sum()) // self.jpg.num_samples,
            "crop": repr(self.crop),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "passes": self.passes,
            "rounds": rounds,
        }

    def rows(self) -> dict[str, Row]:
        """Return the rows that `xmix bench` measures, limits first."""
        return {
            DECODE: self.decode_limit(),
            COPY: self.copy_limit(),
            MIX: self.mix_alone(),
            "jpg + jpg, uint8 pairs": self.paired(self.jpg, self.jpg, mix=False),
            "raw + jpg, uint8 pairs": self.paired(self.raw, self.jpg, mix=False),
            "raw + raw, uint8 pairs": self.paired(self.raw, self.raw, mix=False),
            "jpg + jpg, mixed": self.paired(self.jpg, self.jpg, mix=True),
            "raw + jpg, mixed": self.paired(self.raw, self.jpg, mix=True),
            "raw + raw, mixed": self.paired(self.raw, self.raw, mix=True),
            "ImageLoader, jpg": self.alone(),
        }

    def paired(self, target: Beton, source: Beton, *, mix: bool) -> Row:
        """Return the row of an XMixLoader: float32 pairs mixed on the CPU, or uint8 crops."""
        loader = XMixLoader(
            target,
            source,
            self.pairing,
            batch_size=self.batch_size,
            crop=self.crop,
            mix=mix,
            dtype=torch.float32 if mix else torch.uint8,
            num_workers=self.threads,
        )
        return lambda: consume(loader, self.passes)

    def alone(self) -> Row:
        """Return the row of an ImageLoader: float32 images of one domain."""
        loader = ImageLoader(
            self.jpg,
            batch_size=self.batch_size,
            crop=self.crop,
            flip=True,
            shuffle=True,
            drop_last=True,
            num_workers=self.threads,
        )
        return lambda: consume(loader, self.passes)

    def decode_limit(self) -> Row:
        """Return the row of libjpeg-turbo alone: whole images into memory that stays in cache."""
        domain = open_domain(self.jpg)
        tables = self._tables(domain)
        height, width = int(domain.heights.max()), int(domain.widths.max())

        def work(workspace: decode.Workspace, batch: int, start: int, stop: int) -> None:
            decode_whole(start, stop, tables[batch], workspace.target)

        def workspace() -> decode.Workspace:
            return decode.Workspace(height * width, height, width, (1, 1), resizes=True)

        return self._on_threads(work, workspace)

    def copy_limit(self) -> Row:
        """Return the row of copying raw crops, row by row, into the memory of batches."""
        domain = open_domain(self.raw)
        height, width = self.crop.shape
        tables = self._tables(domain)
        ring = np.zeros((2 * _RING, self.batch_size, height, width, 3), np.uint8)  # two a pair

        def work(workspace: None, batch: int, start: int, stop: int) -> None:
            out = int(ring[batch % len(ring)].ctypes.data)
            copy_crops(start, stop, tables[batch], height, width, out)

        return self._on_threads(work, lambda: None)

    def mix_alone(self) -> Row:
        """Return the row of normalising and mixing pairs of crops that lie in memory already."""
        height, width = self.crop.shape
        crops = np.random.default_rng(0).integers(
            0, 256, (2, self.batch_size, height, width, 3), np.uint8
        )
        count = self.batch_size
        boxes = np.tile(np.array([[0, 0, height, width]], np.int32), (count, 1))
        tables = [
            decode.image_table(
                np.uint64(side.ctypes.data) + np.arange(count, dtype=np.uint64) * side[0].nbytes,
                np.full(count, side[0].nbytes, np.uint64),
                np.ones(count, np.uint8),
                np.full(count, height, np.uint16),
                np.full(count, width, np.uint16),
                boxes,
                np.zeros(count, bool),
                self.crop.shape,
            )
            for side in crops
        ]
        lam = np.linspace(0, 1, count, dtype=np.float32)
        scale, shift = scale_and_shift(IMAGENET_MEAN, IMAGENET_STD)
        ring = np.zeros((_RING, count, height, width, 3), np.float32)
        status = np.zeros((2, count), np.uint8)

        def work(workspace: decode.Workspace, batch: int, start: int, stop: int) -> None:
            decode.mix_images(
                start,
                stop,
                *tables,
                lam,
                height,
                width,
                workspace.target,
                workspace.source,
                scale,
                shift,
                decode.FLOAT32,
                int(ring[batch % _RING].ctypes.data),
                *status,
            )

        def workspace() -> decode.Workspace:
            return decode.Workspace(height * width, height, width, (height, width), resizes=False)

        row = self._on_threads(work, workspace)
        return lambda: (row(), crops)[0]  # the tables know addresses only

    def _tables(self, domain: Domain) -> list[decode.ImageTable]:
        """Make the tables of an epoch's batches in a loader's order, crops being of fixed size."""
        shape = self.crop.shape
        plan = image_plan(
            domain,
            crop=RandomCrop(shape),
            flip=False,
            shuffle=True,
            classes=None,
            pairing=None,
            seed=0,
        ).epoch(0)
        starts = range(0, len(plan) - self.batch_size + 1, self.batch_size)
        return [
            decode.image_table(
                domain.addresses(rows.target),
                domain.sizes[rows.target],
                domain.modes[rows.target],
                domain.heights[rows.target],
                domain.widths[rows.target],
                rows.target_crops.boxes,
                rows.target_crops.flips,
                shape,
            )
            for rows in (plan.rows(start, start + self.batch_size) for start in starts)
        ]

    def _on_threads(
        self, work: Callable[[Any, int, int, int], None], workspace: Callable[[], Any]
    ) -> Row:
        """Return a row of work on the loader's threads and stripes, and nothing else of it."""
        batches = self.jpg.num_samples // self.batch_size

        def run() -> tuple[int, float]:
            numbers = itertools.count()
            stripes = -(-self.batch_size // _STRIPE)
            barrier = threading.Barrier(self.threads + 1)
            spaces = [workspace() for _ in range(self.threads)]

            def thread(mine: Any) -> None:
                barrier.wait()
                while (number := next(numbers)) < batches * stripes * self.passes:
                    batch, start = number // stripes % batches, number % stripes * _STRIPE
                    work(mine, batch, start, min(start + _STRIPE, self.batch_size))

            threads = [threading.Thread(target=thread, args=(space,)) for space in spaces]
            for one in threads:
                one.start()
            barrier.wait()
            started = time.perf_counter()
            for one in threads:
                one.join()
            return batches * self.batch_size * self.passes, time.perf_counter() - started

        return run


def consume(loader: Any, passes: int) -> tuple[int, float]:
    """Iterate a loader, and return the numbers of samples and of seconds.

    It begins with nothing prefetched, and leaves no thread that prepares a next epoch: that would
    be work that the next row pays for.

    Args:
        loader: Loader of this package.
        passes: Least number of passes; there are more until half a second is over, so that the
            first batch, which has to be waited for, does not count for much.
    """
    count, done, started = 0, 0, time.perf_counter()
    while done < passes or time.perf_counter() - started < _LEAST_SECONDS:
        for batch in loader:
            count += len(batch[0])
            batch[0][0, 0, 0, 0].item()  # as a consumer would, wait for the data
        done += 1
    seconds = time.perf_counter() - started
    loader.set_epoch(loader.epoch + 1)  # not the one that comes: what is prefetched goes
    return count, seconds
