"""How the loader's rate and memory grow: threads, batch, image size, quality, epochs, samples.

    python benchmarks/growth.py FOLDER [--rounds 5] [--json FILE]

FOLDER is a class folder of photographs. Rates are pairs a second, jpg + jpg mixed on the CPU, in
interleaved rounds. Memory is what a process of its own holds beyond the page cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from xmix_data import Beton, RandomCrop, XMixLoader, write_beton
from xmix_data.bench import Bench, Repeated, Row, interleave, machine

EPOCHS = 50
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
THREADS = tuple(n for n in (1, 2, 4, 8, 16) if n <= len(os.sched_getaffinity(0)))


class Tiny:
    """A map-style dataset of any number of images of 8 by 8 pixels: only its index is large."""

    classes = ("one", "two")

    def __init__(self, count: int) -> None:
        self.targets = [i % 2 for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.full((8, 8, 3), index % 256, np.uint8), self.targets[index]


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/growth.json"))
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epochs:
        print(json.dumps(memory_by_epoch(options.folder, options.epochs)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rates = measure_rates(options.folder, folder, options.rounds)
        epochs = in_new_process(folder / "default.beton", EPOCHS)
        samples = {}
        for count in SAMPLES:
            path = folder / "tiny.beton"
            write_beton(
                Tiny(count), path, image_size=8, encoding="raw", num_workers=0, overwrite=True
            )
            samples[str(count)] = in_new_process(path, 1)[-1]
    result = {
        "benchmark": "growth",
        "machine": machine.describe(),
        "configuration": {
            "rounds": options.rounds,
            "row": "jpg + jpg, mixed",
            "crop": 224,
            "epochs": EPOCHS,
        },
        "pairs_per_s": rates,
        "memory_mb_by_epoch": epochs,
        "memory_mb_by_samples": samples,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.json} written")


def measure_rates(photographs: Path, folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """By what grows and its value: rates."""
    made: dict[tuple[int, int], Beton] = {}

    def beton(size: int = 256, quality: int = 90) -> Beton:
        if (size, quality) not in made:
            name = "default" if (size, quality) == (256, 90) else f"{size}-{quality}"
            small = write_beton(
                photographs, folder / f"{name}-once.beton", image_size=size, quality=quality
            )
            made[size, quality] = write_beton(
                Repeated(small, -(-2000 // small.num_samples)),
                folder / f"{name}.beton",
                encoding="keep",
                image_size=size,
            )
        return made[size, quality]

    def row(size: int = 256, quality: int = 90, threads: int = 0, batch: int = 48) -> Row:
        images = beton(size, quality)
        crop = RandomCrop(size * 7 // 8)
        bench = Bench(images, images, crop=crop, batch_size=batch, threads=threads)
        return bench.paired(images, images, mix=True)

    grown: dict[str, dict[Any, Row]] = {
        "threads": {n: row(threads=n) for n in THREADS},
        "batch size": {n: row(batch=n) for n in (8, 16, 48, 128, 256)},
        "image size": {n: row(size=n) for n in (64, 128, 256, 384)},
        "JPEG quality": {n: row(quality=n) for n in (50, 75, 90, 95)},
    }
    flat = {f"{what}={n}": run for what, rows in grown.items() for n, run in rows.items()}
    rates = interleave(flat, rounds)
    return {what: {str(n): rates[f"{what}={n}"] for n in rows} for what, rows in grown.items()}


def in_new_process(path: Path, epochs: int) -> list[float]:
    """Megabytes after each epoch."""
    command = [sys.executable, __file__, str(path), "--epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values: list[float] = json.loads(done.stdout.splitlines()[-1])
    return values


def memory_by_epoch(path: Path, epochs: int) -> list[float]:
    """Megabytes that no file backs, after each epoch; at most 200 batches of each."""
    beton = Beton(path)
    crop = RandomCrop(beton.image_size * 7 // 8)
    loader = XMixLoader(beton, beton, Bench(beton, beton).pairing, batch_size=48, crop=crop)
    values = []
    for _ in range(epochs):
        for _ in itertools.islice(loader, 200):
            pass
        values.append(anonymous_mb())
    return values


def anonymous_mb() -> float:
    """Resident memory of this process, mapped files left out."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    main()
