"""What the end of an epoch costs: how long a consumer waits for the first batch of the next one.

    python benchmarks/epoch_end.py [--against FOLDER] [--rounds 7] [--json FILE]

Small target sets end an epoch every few steps. Epochs of 1, 2, 5 and 20 batches are iterated in
three loops (plain; with set_epoch before each epoch; as Lightning does: iter, set_epoch, next), by
a consumer that takes longer for a batch than the loader (it sleeps, as a host does that waits for
its GPU) and by one that takes no time. Goes out, by row: milliseconds that the consumer waited for
an epoch's first batch, and for each of its others. FOLDER holds another version of the package
(FOLDER/xmix_data), which is measured in turn: each figure comes from a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BATCH, CROP = 48, 224
EPOCHS = {1: 16, 2: 16, 5: 9, 20: 4}
"""By the batches of an epoch: how many are iterated; the first one is not counted."""
LOOPS = ("plain", "set_epoch", "Lightning's")
CONSUMERS = {"slower": 1.5, "faster": 0.0}
"""What a consumer takes for a batch, in times of what the loader takes."""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a folder with another version of the package")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/epoch_end.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    versions = {"after": ROOT} | ({"before": options.against} if options.against else {})
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        for number in range(options.rounds):
            order = list(versions) if number % 2 else list(reversed(versions))
            for version in order:
                runs[version].append(in_new_process(versions[version], Path(name)))
            print(f"round {number + 1} of {options.rounds}", flush=True)
    from xmix_data.bench import machine

    result = {
        "benchmark": "epoch_end",
        "machine": machine.describe(),
        "configuration": {
            "rounds": options.rounds,
            "batch_size": BATCH,
            "crop": CROP,
            "epochs": EPOCHS,
            "encodings": "jpg + jpg",
            "consumer_times_loader": CONSUMERS,
        },
        "wait_ms": runs,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for version, measured in runs.items():
        for row in measured[0]:
            found = {
                key: [run[row][key] for run in measured if run[row][key] is not None]
                for key in ("first", "others")
            }
            text = ", ".join(f"{k} {statistics.median(v):.2f} ms" for k, v in found.items() if v)
            print(f"{version:6} {row:34} {text or 'cannot be done'}")


def write(folder: Path) -> None:
    """A target of each length, and a source."""
    from xmix_data import write_beton
    from xmix_data.bench import Bench, Photographs

    for count in EPOCHS:
        target = Photographs(classes=4, per_class=BATCH * count // 4)
        write_beton(target, folder / f"target-{count}.beton", progress=False)
    source = write_beton(Photographs(4, 60, seed=1), folder / "source.beton", progress=False)
    Bench(source, source).pairing.save(folder / "pairing.json")


def in_new_process(package: Path, folder: Path) -> dict[str, Any]:
    """What a version of the package does."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(folder)],
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(folder: Path) -> dict[str, dict[str, float | None]]:
    """All rows: median milliseconds of waiting for a first batch, and for another one."""
    from xmix_data import RandomCrop, XMixLoader

    rows = {}
    for count, loop, consumer in itertools.product(EPOCHS, LOOPS, CONSUMERS):
        loader = XMixLoader(
            folder / f"target-{count}.beton",
            folder / "source.beton",
            folder / "pairing.json",
            batch_size=BATCH,
            crop=RandomCrop(CROP),
        )
        with loader:
            started = time.perf_counter()
            made = sum(len(loader) for _ in range(2) if list(loader))
            busy = CONSUMERS[consumer] * (time.perf_counter() - started) / made
            waits: dict[str, list[float]] = {"first": [], "others": []}
            try:
                for epoch in range(2, 2 + EPOCHS[count]):
                    for number, waited in enumerate(epoch_of(loader, loop, epoch, busy)):
                        if epoch > 2:
                            waits["others" if number else "first"].append(1000 * waited)
            except RuntimeError:  # an earlier version closes the iterator of the third loop
                waits = {"first": [], "others": []}
        rows[f"{count} batches, {loop}, {consumer}"] = {
            key: statistics.median(values) if values else None for key, values in waits.items()
        }
    return rows


def epoch_of(loader: Any, loop: str, epoch: int, busy: float) -> Iterator[float]:
    """Seconds that each batch of an epoch is waited for, by a consumer that is busy in between."""
    started = time.perf_counter()
    if loop == "set_epoch":
        loader.set_epoch(epoch)
    batches = iter(loader)
    if loop == "Lightning's":
        loader.set_epoch(epoch)
    while True:
        batch = next(batches, None)
        waited = time.perf_counter() - started
        if batch is None:
            return
        yield waited
        time.sleep(busy)
        started = time.perf_counter()


if __name__ == "__main__":
    main()
