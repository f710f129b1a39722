"""This machine against its own limits: what the loader reaches of decoding and copying alone.

Comes in: photographs (a class folder or a beton), or none: then pictures with the statistics of
photographs are made. Goes out: for each row its samples a second in interleaved rounds, so that a
machine that slows down slows all rows, and in words who the bottleneck is.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from xmix_data import decode, machine
from xmix_data.augment import Crop, RandomCrop
from xmix_data.beton import Beton, Domain, open_domain, open_images, write_beton
from xmix_data.images import select
from xmix_data.loader import ImageLoader, XMixLoader
from xmix_data.mixing import IMAGENET_MEAN, IMAGENET_STD, scale_and_shift
from xmix_data.pairing import PairedClass, Pairing
from xmix_data.progress import Progress

__all__ = [
    "TARGETS",
    "Bench",
    "Photographs",
    "Repeated",
    "explain",
    "interleave",
    "ratios",
    "report",
]

Row = Callable[[], tuple[int, float]]
"""Runs once; returns how many samples (pairs) it made, and in how many seconds."""

_STRIPE = 8
_LEAST_IMAGES = 2000
"""Of an epoch: starting and ending one should weigh as little as with a real target set."""
_MANY_WAITS = 0.01
"""Waits for the disk a sample, from which on the disk is to blame: one brings many pages."""
_RING = 5
"""Batches of memory that the limits write to in turn, as a loader with prefetch does."""


class Photographs:
    """A map-style dataset of pictures that JPEG finds as hard as photographs.

    Natural images have amplitudes that fall with frequency (Field, "Relations between the
    statistics of natural images", 1987); colour varies less than brightness.

    Args:
        classes: How many.
        per_class: Images of each.
        size: Side in pixels.
        seed: Of the pictures.
    """

    def __init__(self, classes: int = 8, per_class: int = 64, size: int = 256, seed: int = 0):
        self.classes = [f"class {c}" for c in range(classes)]
        self.targets = [c for c in range(classes) for _ in range(per_class)]
        self._size, self._seed = size, seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        random = np.random.default_rng([self._seed, index])
        frequencies = np.hypot(
            np.fft.fftfreq(self._size)[:, None], np.fft.rfftfreq(self._size)[None, :]
        )
        amplitudes = 1 / np.maximum(frequencies, 1 / self._size) ** 1.5
        noise = random.standard_normal((3, 2, *amplitudes.shape))
        planes = np.fft.irfft2((noise[:, 0] + 1j * noise[:, 1]) * amplitudes, s=(self._size,) * 2)
        planes /= planes.std(axis=(1, 2), keepdims=True)
        grey, *colour = planes * np.array([55.0, 14.0, 14.0])[:, None, None]
        rgb = np.stack([grey + colour[0], grey - colour[0] / 2, grey + colour[1]], axis=-1)
        return np.clip(rgb + 118, 0, 255).astype(np.uint8), self.targets[index]


class Repeated:
    """A map-style dataset: the images of a beton, several times over."""

    def __init__(self, beton: Beton, times: int) -> None:
        labels = np.tile(beton.labels, times)
        self._beton, self._order = beton, np.argsort(labels, kind="stable")
        self.classes, self.targets = beton.class_names, labels[self._order].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        data = self._beton.data(int(self._order[index]) % self._beton.num_samples)
        return data.tobytes(), self.targets[index]


DECODE, COPY, MIX = "decode limit", "copy limit", "mix alone"


class Target(NamedTuple):
    """A row, what it is held against, and the share of it that it should reach."""

    row: str
    against: str
    expected: Callable[[Mapping[str, float]], float]
    """From one round's rates by row to the rate that the limits allow."""
    share: float


def _predicted(decoded: int) -> Callable[[Mapping[str, float]], float]:
    return lambda rates: 1 / (decoded / rates[DECODE] + 2 / rates[COPY] + 1 / rates[MIX])


_SUM = "decode, copy and mix alone, added up"
TARGETS = (
    Target("jpg + jpg, uint8 pairs", "decode limit / 2", lambda rates: rates[DECODE] / 2, 0.95),
    Target("raw + jpg, uint8 pairs", "decode limit", lambda rates: rates[DECODE], 0.85),
    Target("raw + raw, uint8 pairs", "copy limit / 2", lambda rates: rates[COPY] / 2, 0.8),
    Target("jpg + jpg, mixed", _SUM, _predicted(2), 0.95),
    Target("raw + jpg, mixed", _SUM, _predicted(1), 0.95),
    Target("raw + raw, mixed", _SUM, _predicted(0), 0.95),
)
"""What the design asks of the loader on a CPU."""


@dataclass
class Bench:
    """Betons of the same images, jpg and raw, and the rows that are measured on them.

    Args:
        jpg, raw: The betons.
        crop: What all rows cut out.
        batch_size: Pairs of a batch.
        threads: Decoding threads; default all cores.
        passes: Epochs of a row in one round.
    """

    jpg: Beton
    raw: Beton
    crop: Crop = field(default_factory=lambda: RandomCrop(224))
    batch_size: int = 48
    threads: int = 0
    passes: int = 1

    def __post_init__(self) -> None:
        self.threads = self.threads or len(os.sched_getaffinity(0))
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
            some = max(1, _LEAST_IMAGES // (int(source.labels().max(initial=0)) + 1))
            once = write_beton(select(source, per_class=some), folder / "once.beton")
            repeated = Repeated(once, -(-_LEAST_IMAGES // once.num_samples))
            jpg, raw = (
                write_beton(repeated, folder / f"{encoding}.beton", encoding=encoding)
                for encoding in ("keep", "raw")
            )
            yield Bench(jpg, raw, **options)

    def configuration(self, rounds: int) -> dict[str, Any]:
        """What a figure must say beside its machine."""
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
        """What `xmix bench` measures, limits first."""
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
        """XMixLoader: pairs a second, as float32 mixed on the CPU or as uint8 crops."""
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
        return lambda: _consume(loader, self.passes)

    def alone(self) -> Row:
        """ImageLoader on one domain: images a second, float32."""
        loader = ImageLoader(
            self.jpg,
            batch_size=self.batch_size,
            crop=self.crop,
            flip=True,
            shuffle=True,
            drop_last=True,
            num_workers=self.threads,
        )
        return lambda: _consume(loader, self.passes)

    def decode_limit(self) -> Row:
        """Images a second of libjpeg-turbo alone: whole images into memory that stays in cache."""
        domain = open_domain(self.jpg)
        tables = self._tables(domain)
        height, width = int(domain.heights.max()), int(domain.widths.max())

        def work(workspace: decode.Workspace, batch: int, start: int, stop: int) -> None:
            decode.decode_whole(start, stop, tables[batch], workspace.target)

        def workspace() -> decode.Workspace:
            return decode.Workspace(height * width, height, width, (1, 1), resizes=True)

        return self._on_threads(work, workspace)

    def copy_limit(self) -> Row:
        """Images a second of copying raw crops row by row into memory of batches."""
        domain = open_domain(self.raw)
        height, width = self.crop.shape
        tables = self._tables(domain)
        ring = np.zeros((2 * _RING, self.batch_size, height, width, 3), np.uint8)  # two a pair

        def work(workspace: None, batch: int, start: int, stop: int) -> None:
            out = int(ring[batch % len(ring)].ctypes.data)
            decode.copy_crops(start, stop, tables[batch], height, width, out)

        return self._on_threads(work, lambda: None)

    def mix_alone(self) -> Row:
        """Pairs a second of normalising and mixing crops that lie in memory already."""
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
        """An epoch's batches, in a loader's order; crops of fixed size, as a copy is of one."""
        shape = self.crop.shape
        loader = ImageLoader(
            self.jpg, batch_size=self.batch_size, crop=RandomCrop(shape), shuffle=True
        )
        plan = loader._plan.epoch(0)
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
        """The loader's threads and stripes, and nothing else of it."""
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


def _consume(loader: Any, passes: int) -> tuple[int, float]:
    count, started = 0, time.perf_counter()
    for _ in range(passes):
        for batch in loader:
            count += len(batch[0])
            batch[0][0, 0, 0, 0].item()  # as a consumer would, wait for the data
    return count, time.perf_counter() - started


def interleave(
    rows: Mapping[str, Row], rounds: int, *, progress: bool = True
) -> dict[str, list[float]]:
    """Run every row once a round, after one round that is not counted.

    Args:
        rows: By name.
        rounds: How many are counted.
        progress: Show a progress bar.

    Returns:
        Samples a second, by row and round.
    """
    rates: dict[str, list[float]] = {name: [] for name in rows}
    with Progress("bench", (rounds + 1) * len(rows), unit="rows", enabled=progress) as bar:
        for number in range(rounds + 1):
            for name, row in rows.items():
                samples, seconds = row()
                if number:
                    rates[name].append(samples / seconds)
                bar.advance()
    return rates


def ratios(
    rates: Mapping[str, list[float]], of: str, expected: Callable[[Mapping[str, float]], float]
) -> list[float]:
    """A row's rate / what the same round's other rows let expect, round by round.

    Args:
        rates: Of `interleave`.
        of: The row.
        expected: From one round's rates by row to a rate.
    """
    rounds = [dict(zip(rates, values, strict=True)) for values in zip(*rates.values(), strict=True)]
    return [r[of] / expected(r) for r in rounds]


def report(
    data: Path | None = None, *, crop: int = 224, rounds: int = 5
) -> tuple[dict[str, Any], str]:
    """What `xmix bench` does.

    Args:
        data: A class folder; ``None`` makes pictures up.
        crop: Side of the random crop in pixels.
        rounds: How often all rows are run.

    Returns:
        The result (machine, configuration, rates, ratios), and the same as text.

    Raises:
        FileNotFoundError: The folder does not exist.
        ImageError: An image cannot be read; names it.
        ValueError: ``rounds`` is below 1, or the crop does not fit into the stored images.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1")
    with Bench.of(data, crop=RandomCrop(crop)) as bench:
        rates = interleave(bench.rows(), rounds)
        with XMixLoader(
            bench.raw, bench.jpg, bench.pairing, batch_size=bench.batch_size, crop=bench.crop
        ) as loader:
            _consume(loader, bench.passes)
            words = explain(loader.stats())
        reached = {t.row: ratios(rates, t.row, t.expected) for t in TARGETS}
        result = {
            "benchmark": "xmix bench",
            "machine": machine.describe(),
            "configuration": bench.configuration(rounds),
            "rates": rates,
            "ratios": reached,
        }
    width = max(map(len, rates))
    lines = [f"{'':{width}}  samples/s (range of {rounds})"]
    for name, values in rates.items():
        spread = f"({min(values):.0f}-{max(values):.0f})"
        lines.append(f"{name:{width}}  {statistics.median(values):9.0f} {spread}")
    lines.append("")
    for target in TARGETS:
        median = statistics.median(reached[target.row])
        mark = "" if median >= target.share else f"  (below {target.share:.2f})"
        lines.append(f"{target.row:{width}}  {median:9.2f} x {target.against}{mark}")
    lines += ["", f"A consumer that does nothing, raw + jpg: {words}."]
    return result, "\n".join(lines)


def explain(stats: Mapping[str, float]) -> str:
    """Who waits for whom, in words, from a loader's ``stats()``."""
    waited, idle = stats["consumer_waited_s"], stats["loader_waited_s"]
    working = stats["decode_s"] + stats["copy_s"]
    if not stats["batches"] or not working:
        return "no batch has been delivered yet"
    if idle > waited:
        return (
            f"the consumer is the bottleneck: the loader's threads waited {idle:.1f} s for it, "
            f"it waited {waited:.1f} s for them"
        )
    decoding = stats["decode_s"] / working
    where = (
        f"{decoding:.0%} of its threads' time is JPEG decoding: more cores, a raw target, or a "
        "smaller image size will help"
        if decoding > 0.5
        else f"{1 - decoding:.0%} of its threads' time is copying and mixing in memory"
    )
    if stats["disk_waits"] > _MANY_WAITS * stats["samples"]:
        where = "its threads waited for the disk: the data are not in memory"
    return f"the loader is the bottleneck: the consumer waited {waited:.1f} s for it; {where}"
