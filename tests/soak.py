"""The loaders under load for long: every batch compared with the reference backend's.

    python tests/soak.py [--minutes 60 | --scenarios N] [--seed 0] [--first SCENARIO] [--json FILE]

One scenario after the other, each drawn from the seed: domains (JPEG, raw, several, with damaged
images), options, and what happens to them: pauses of the consumer and of the threads, batches that
are kept, breaks, resumes with another number of threads, another batch or world size. Any
difference, a thread or file that is left, or memory that grows ends it with status 1, and names
the scenario.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import math
import os
import pickle
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz.memory import status_mb
from pictures import written
from PIL import Image

from xmix_data import (
    Beton,
    CenterCrop,
    ImageLoader,
    PairedClass,
    Pairing,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
)
from xmix_data.bench import machine
from xmix_data.plan import Crop

TARGETS, SOURCES = (90, 70, 110, 80), (120, 60, 150, 90, 100)
DAMAGED = 2
"""Images of a damaged beton that are no JPEGs: less than 1 %."""
LONGEST_PAUSE_S = 0.005
"""Many times what a batch takes."""
WARM_UP = 20
"""Scenarios before memory is first looked at: kernels are loaded, pools are filled."""
AT_ONCE = 10
"""Scenarios whose least memory is compared: some leave 30 MB for the next one to take."""
MOST_GROWTH_MB = 32
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


class Pictures:
    """A map-style dataset of random pictures of several sizes, smooth enough for JPEG."""

    def __init__(self, counts: Sequence[int], prefix: str, seed: int) -> None:
        self.classes = [f"{prefix}{i}" for i in range(len(counts))]
        self.targets = [label for label, count in enumerate(counts) for _ in range(count)]
        self._seed = seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        numbers = np.random.default_rng([self._seed, index])
        coarse = Image.fromarray(numbers.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        width, height = numbers.integers(40, 64, 2).tolist()
        return coarse.resize((width, height), Image.Resampling.BICUBIC), self.targets[index]


def main() -> None:
    """Run scenarios until the time is over, or so many, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--minutes", type=float, default=60)
    until.add_argument("--scenarios", type=int, help="how many, however long they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="scenario to begin with")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the reference's arithmetic is small
    if "MALLOC_ARENA_MAX" not in os.environ:
        # Threads that come and go leave fragments in arenas of their own, which look like a leak.
        command = [sys.executable, __file__, *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "MALLOC_ARENA_MAX": "2"})
    logging.getLogger("xmix_data").setLevel(logging.ERROR)  # damaged images are meant here
    if options.scenarios:
        end = {"scenarios": options.scenarios}
    else:
        end = {"seconds": 60 * options.minutes}
    gc.freeze()  # looking for garbage among what libraries loaded would take longer than a scenario
    with tempfile.TemporaryDirectory() as scratch:
        result = soak(Path(scratch), options.seed, options.first, **end)
    print(json.dumps({k: v for k, v in result.items() if k != "machine"}, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(bool(result["problems"]))


def soak(
    folder: Path,
    seed: int,
    first: int = 0,
    *,
    scenarios: float = math.inf,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """So many scenarios, of those that begin within so many seconds, up to the first problem."""
    betons = make_betons(folder)
    counts: Counter[str] = Counter()
    problems: list[str] = []
    memory: list[float] = []
    threads, files = threading.active_count(), open_files()
    started, number = time.monotonic(), first
    while number - first < scenarios and time.monotonic() - started < seconds and not problems:
        scenario = Scenario(betons, random.Random(f"{seed} {number}"), counts)
        try:
            scenario.run()
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
        gc.collect()
        if threading.active_count() > threads:
            problems.append(f"threads left: {[t.name for t in threading.enumerate()]}")
        if open_files() > files:
            problems.append(f"{open_files() - files} files left open")
        if number - first >= WARM_UP:
            memory.append(status_mb("RssAnon"))
            before, now = min(memory[:AT_ONCE]), min(memory[-AT_ONCE:])
            if now > before + MOST_GROWTH_MB:
                problems.append(f"memory grew from {before:.0f} to {now:.0f} MB")
        if problems:
            problems = [f"scenario {number}, {scenario.options}: {text}" for text in problems]
        number += 1
    return {
        "benchmark": "soak",
        "machine": machine.describe(),
        "configuration": {
            "seed": seed,
            "rounds": number - first,
            "minutes": round((time.monotonic() - started) / 60, 1),
        },
        "counts": dict(sorted(counts.items())),
        "memory_mb": {"first": memory[0], "last": memory[-1], "most": max(memory)}
        if memory
        else None,
        "problems": problems,
    }


def make_betons(folder: Path) -> dict[str, list[Beton]]:
    """Targets and sources, stored in several ways; the names of the classes are the same."""
    made: dict[str, list[Beton]] = {}
    for name, counts, seed in (("t", TARGETS, 1), ("s", SOURCES, 2)):
        pictures = Pictures(counts, name, seed)
        jpg, raw = (
            written(
                pictures,
                folder / f"{name}-{encoding}.beton",
                image_size=48,
                crop=crop,
                encoding=encoding,
            )
            for encoding, crop in (("jpg", "none"), ("raw", "square"))
        )
        made[name] = [jpg, raw, spoiled(jpg, folder / f"{name}-damaged.beton")]
    return made


def spoiled(beton: Beton, path: Path) -> Beton:
    """A copy in which some images are no JPEGs, or cut."""
    shutil.copy(beton.path, path)
    shutil.copy(f"{beton.path}.json", f"{path}.json")
    places = np.random.default_rng(3).choice(beton.num_samples, DAMAGED, replace=False)
    with path.open("r+b") as stream:
        for index in places.tolist():
            stream.seek(int(beton.pointers[index]))
            stream.write(b"no")
    return Beton(path)


def open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


class Scenario:
    """Some epochs of one loader, and of its reference."""

    def __init__(
        self, betons: dict[str, list[Beton]], chance: random.Random, counts: Counter[str]
    ) -> None:
        self._chance, self._counts = chance, counts
        self._mixes, self._paired = chance.random() < 0.5, chance.random() < 0.75
        self._target = chance.choice(betons["t"])
        self._source = chance.choice(betons["s"])
        crop = self._crop()
        dtypes = [torch.float32, torch.float16, torch.bfloat16]
        if not self._mixes or not self._paired:
            dtypes.append(torch.uint8)
        self.options: dict[str, Any] = {
            "crop": crop,
            "dtype": chance.choice(dtypes),
            "flip": chance.random() < 0.7,
            "seed": chance.randrange(2**64),
            "drop_last": chance.random() < 0.5,
            "on_error": "replace",
        }
        if self._paired:
            self.options |= {"alpha": chance.choice((0.3, 1.0, 4.0)), "mix": self._mixes}
            if self._mixes:
                self.options["labels"] = chance.choice(("pair", "soft"))
        else:
            self.options["shuffle"] = chance.random() < 0.7

    def run(self) -> None:
        """Compare some epochs; now and then stop in the middle and go on with another loader."""
        chance, state = self._chance, None
        for _ in range(chance.randint(1, 4)):
            world = chance.choice((1, 1, 1, 2, 3))
            shared = {
                **self.options,
                "batch_size": chance.choice((1, 3, 8, 20, 33)),
                "rank": chance.randrange(world),
                "world_size": world,
            }
            own = {"num_workers": chance.randint(1, 8), "prefetch": chance.randint(1, 8)}
            with (
                self._loader(**shared, **own) as ours,
                self._loader(
                    **{**shared, "dtype": self._reference_dtype}, backend="reference"
                ) as reference,
            ):
                self._pause_threads(ours)
                if state is not None:
                    ours.load_state_dict(state)
                    reference.load_state_dict(state)
                    self._counts["resumes"] += 1
                for number in range(chance.randint(1, 3)):
                    if number:
                        self._between(ours, reference)
                    self._pass(ours, reference)
                state = ours.state_dict()
                if state != reference.state_dict():
                    raise AssertionError(f"states differ: {state}, {reference.state_dict()}")
                self._counts["replaced"] += int(ours.stats()["replaced"])
                if ours.stats()["replaced"] != reference.stats()["replaced"]:
                    raise AssertionError("another number of images was replaced")
                if chance.random() < 0.3:
                    self._close_in_a_pass(ours)
            self._counts["loaders"] += 1

    def _crop(self) -> Crop:
        chance = self._chance
        side = chance.choice((16, 24, (20, 31), 40))
        made: Crop = chance.choice((RandomCrop, CenterCrop, RandomResizedCrop))(side)
        return made

    @property
    def _reference_dtype(self) -> torch.dtype:
        exact: torch.dtype = self.options["dtype"]
        return exact if exact == torch.uint8 else torch.float32

    def _loader(self, **options: Any) -> Any:
        if not self._paired:
            return ImageLoader(self._target, **options)
        names = self._target.class_names, self._source.class_names
        pairs = zip(*names, reversed(self._source.class_names), strict=False)
        pairing = Pairing(
            {
                t: [PairedClass(s, 0.5, 1), *([PairedClass(other, 0.4, 1)] if other > s else [])]
                for t, s, other in pairs
            }
        )
        return XMixLoader(self._target, self._source, pairing, **options)

    def _pause_threads(self, loader: Any) -> None:
        """Now and then a decoding thread is slow, as on a busy machine or a slow disk."""
        chance, work = random.Random(self._chance.random()), loader._backend.work
        often = self._chance.choice((0.0, 0.05, 0.3))

        def slow(*arguments: Any) -> None:
            if chance.random() < often:
                time.sleep(chance.random() * LONGEST_PAUSE_S)
            work(*arguments)

        loader._backend.work = slow

    def _pass(self, ours: Any, reference: Any) -> None:
        chance, kept = self._chance, []
        pauses, keeps = chance.choice((0.0, 0.05, 0.3)), chance.choice((0.0, 0.5))
        stop = chance.randint(1, len(ours)) if chance.random() < 0.5 and len(ours) else None
        expected: Iterator[Any] = iter(reference)
        for number, batch in enumerate(ours, 1):
            if chance.random() < pauses:
                time.sleep(chance.random() * LONGEST_PAUSE_S)
            other = next(expected)
            self._compare(batch, other)
            if ours.last_padding != reference.last_padding:
                raise AssertionError("another number of images is padding")
            if chance.random() < keeps:
                kept.append((batch, other))
            self._counts["batches"] += 1
            self._counts["images"] += len(batch[0])
            if number == stop:
                self._counts["breaks"] += 1
                break
        else:
            if next(expected, None) is not None:
                raise AssertionError("the reference has more batches")
        for batch, other in kept:  # nothing was written into them since
            self._compare(batch, other)
        self._counts["passes"] += 1

    def _between(self, ours: Any, reference: Any) -> None:
        """What a user may do to a loader that has the next epoch's batches ready."""
        chance, before = self._chance, (ours.state_dict(), reference.state_dict())
        kinds = ["nothing", "epoch", "crop", "state", "skip", "peek", "copy", "fork", "begin"]
        kind = chance.choice([*kinds, "mix"] if self._paired and self._mixes else kinds)
        if kind == "epoch":
            epoch = chance.choice((0, before[0]["epoch"], chance.randrange(2**64)))
            ours.set_epoch(epoch)
            reference.set_epoch(epoch)
        elif kind == "crop":
            crop = self._crop()
            ours.set_crop(crop)
            reference.set_crop(crop)
            self._pause_threads(ours)
        elif kind == "mix":
            mix = {"alpha": chance.choice((0.5, 2.0)), "enabled": chance.random() < 0.5}
            ours.set_mix(**mix)
            reference.set_mix(**mix)
            self._pause_threads(ours)
        elif kind == "state":
            self._pass(ours, reference)
            ours.load_state_dict(before[0])
            reference.load_state_dict(before[1])
        elif kind == "skip":
            batches = chance.randrange(3 * len(ours) + 1)
            ours.skip(batches)
            reference.skip(batches)
        elif kind == "peek":
            self._compare(ours.peek(), reference.peek())
        elif kind == "copy":
            other = pickle.loads(pickle.dumps(ours)) if chance.random() < 0.5 else copy.copy(ours)
            with other:
                self._compare(other.peek(), reference.peek())
        elif kind == "fork":
            self._fork(ours, reference.peek())
        elif kind == "begin":
            for loader in (ours, reference):
                next(iter(loader), None)
        self._counts[f"between passes: {kind}"] += 1

    def _fork(self, loader: Any, expected: Any) -> None:
        """A child, as a worker of somebody's pool is one, takes a batch of the same loader."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self._compare(loader.peek(), expected)
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1]:
            raise AssertionError("a forked child got no batch, or another one")

    def _close_in_a_pass(self, loader: Any) -> None:
        """A batch that is there stays; whoever asks for another one is told."""
        begun = iter(loader)
        kept = next(begun, None)
        same = None if kept is None else copy.deepcopy(kept)
        loader.close()
        for ask in (lambda: next(begun), lambda: iter(loader)):
            try:
                ask()
            except StopIteration:
                if kept is not None:
                    raise AssertionError("a closed pass ends as if it were whole") from None
            except RuntimeError as error:
                if "closed" not in str(error):
                    raise
            else:
                raise AssertionError("a closed loader goes on")
        if kept is not None:
            self._compare(kept, same)
        self._counts["closed in a pass"] += 1

    def _compare(self, batch: Any, other: Any) -> None:
        for mine, theirs in zip(batch, other, strict=True):
            if mine.dtype == theirs.dtype and mine.dtype != torch.float32:
                same = torch.equal(mine, theirs)
            else:
                allowed = ROUNDING.get(mine.dtype, 0.0) * theirs.abs() + 1e-6
                same = bool(((mine.float() - theirs).abs() <= allowed).all())
            if not same:
                worst = (mine.double() - theirs.double()).abs().max()
                raise AssertionError(f"a tensor {tuple(mine.shape)} differs by up to {worst}")


if __name__ == "__main__":
    main()
