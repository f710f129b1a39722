"""What loaders leave behind that end in every way: threads, open files, mappings, memory.

    python tests/lifetimes.py [--cycles 1000] [--json FILE]

A cycle opens two betons, makes a loader, takes some batches and lets go of it. It needs no data:
the betons are tiny, so that what stays behind is not hidden by what batches take.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.memory import status_mb
from pictures import Numbered, written
from scipy.stats import theilslopes

from xmix_data import PairedClass, Pairing, RandomResizedCrop, XMixLoader
from xmix_data.bench import machine

SAMPLES = 40
EVERY = 10
"""Cycles from one reading to the next."""
ENDING_S = 10
"""A thread that is there for longer stays."""


def broken_off(loader: XMixLoader) -> None:
    for _ in loader:
        break


def failed(loader: XMixLoader) -> None:
    try:
        for _ in loader:
            raise KeyError
    except KeyError:
        pass


def closed(loader: XMixLoader) -> None:
    batches = iter(loader)
    next(batches)
    loader.close()
    loader.close()


def garbage(loader: XMixLoader) -> None:
    """Only the garbage collector frees it, whenever it runs."""
    cycle: list[Any] = [iter(loader)]
    cycle.append(cycle)
    next(cycle[0])


def exhausted(loader: XMixLoader) -> None:
    for _ in loader:
        pass


WAYS: dict[str, Callable[[XMixLoader], None]] = {
    "break": broken_off,
    "exception": failed,
    "close, twice": closed,
    "garbage": garbage,
    "exhausted": exhausted,
}


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/lifetimes.json"))
    options = parser.parse_args()
    idle = len(os.listdir("/proc/self/task"))
    with tempfile.TemporaryDirectory() as scratch:
        make = loaders_of(Path(scratch))
        for end in WAYS.values():  # the first of each loads libraries and fills caches
            end(make())
        gc.collect()
        gc.freeze()  # every reading would look for garbage among what libraries loaded
        ways = {name: measure(make, end, options.cycles, idle) for name, end in WAYS.items()}
    result = {
        "benchmark": "lifetimes",
        "machine": machine.describe(),
        "configuration": {
            "rounds": 1,
            "cycles": options.cycles,
            "every": EVERY,
            "samples": SAMPLES,
            "threads": 2,
        },
        "ways": ways,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, way in ways.items():
        first, last = way["readings"][0], way["readings"][-1]
        grown = ", ".join(f"{what} {first[what]:.6g} -> {last[what]:.6g}" for what in first)
        print(f"{name:13} {grown}, {way['kb_a_cycle']:+.3f} KB a cycle")


def loaders_of(folder: Path) -> Callable[[], XMixLoader]:
    """Make a loader of tiny JPEGs, by the paths of its files."""
    images = Numbered([SAMPLES // 2] * 2, "class ", size=8)
    domains = [
        written(images, folder / f"{name}.beton", image_size=8) for name in ("target", "source")
    ]
    pairing = folder / "pairing.json"
    Pairing({name: [PairedClass(name, 1.0, SAMPLES // 2)] for name in images.classes}).save(pairing)
    target, source = (beton.path for beton in domains)
    return lambda: XMixLoader(
        target, source, pairing, batch_size=4, crop=RandomResizedCrop(8), num_workers=2
    )


def measure(
    make: Callable[[], XMixLoader], end: Callable[[XMixLoader], None], cycles: int, idle: int
) -> dict[str, Any]:
    """Readings along the cycles, and how memory grew over the last half of them."""
    readings = [reading(idle)]
    for cycle in range(1, cycles + 1):
        end(make())
        if cycle % EVERY == 0:
            readings.append(reading(idle))
    late = [taken["memory_mb"] * 1024 for taken in readings[len(readings) // 2 :]]
    # Of all pairs of readings, so that one step of the allocator is no slope.
    slope = theilslopes(late, EVERY * np.arange(len(late))).slope
    return {"readings": readings, "kb_a_cycle": float(slope)}


def reading(idle: int) -> dict[str, float]:
    """What this process holds, once the garbage is collected.

    A thread that was joined is listed a moment longer, and nothing is collected while another
    thread is about it: that is waited for, until there are as few threads as in the ``idle``
    process.
    """
    gc.collect()
    until = time.monotonic() + ENDING_S
    while time.monotonic() < until and len(os.listdir("/proc/self/task")) > idle:
        time.sleep(0.001)
        gc.collect()
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "memory_mb": status_mb("RssAnon"),
    }


if __name__ == "__main__":
    main()
