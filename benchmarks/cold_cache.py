"""Epochs over data that are not in memory, or do not fit, with and without reading ahead.

    python benchmarks/cold_cache.py FOLDER [--images 4000] [--rounds 5] [--json FILE]

FOLDER is a class folder of photographs, stored raw several times over. Before each epoch the
system is told to drop the file's pages (posix_fadvise), and the epoch runs in a process of its own,
whose mapping of the file is new. For the second part that process lives in a memory control group
that cannot hold all of the file; this needs the right to make one (Linux, root).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from xmix_data import Beton, RandomCrop, XMixLoader, write_beton
from xmix_data.bench import Bench, Repeated, machine

BATCH = 48
PROCESS_MB = 450
"""What torch, the libraries and the batches take in the process of an epoch."""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/cold_cache.json"))
    parser.add_argument("--epoch", choices=("on", "off"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epoch:
        print(json.dumps(epoch(options.folder, read_ahead=options.epoch == "on")))
        return
    with tempfile.TemporaryDirectory() as scratch:
        small = write_beton(options.folder, Path(scratch) / "small.beton")
        beton = write_beton(
            Repeated(small, -(-options.images // small.num_samples)),
            Path(scratch) / "raw.beton",
            encoding="raw",
        )
        megabytes = beton.path.stat().st_size // 2**20
        limit = PROCESS_MB + megabytes // 2
        cases: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for limited in (False, True):
                for mode in ("on", "off"):
                    run = cold(beton.path, mode, limit if limited else None)
                    if run is not None:
                        where = "memory limited" if limited else "not in memory"
                        cases.setdefault(f"{where}, read-ahead {mode}", []).append(run)
            print(f"{sum(map(len, cases.values()))} epochs")
    result = {
        "benchmark": "cold_cache",
        "machine": machine.describe(),
        "configuration": {
            "rounds": options.rounds,
            "images": beton.num_samples,
            "file_mb": megabytes,
            "memory_limit_mb": limit,
            "batch_size": BATCH,
            "encoding": "raw",
            "crop": 224,
        },
        "cases": cases,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, runs in cases.items():
        rates = [run["pairs_per_s"] for run in runs]
        waits = statistics.median(run["disk_waits"] for run in runs)
        print(
            f"{name:40} {statistics.median(rates):7.0f} pairs/s "
            f"({min(rates):.0f}-{max(rates):.0f}), {waits:.0f} waits for the disk"
        )


def cold(path: Path, mode: str, limit_mb: int | None) -> dict[str, float] | None:
    """Two epochs in a new process, the file's pages dropped; ``None`` without the right to."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, str(path), "--epoch", mode]
    with memory_group(limit_mb) as join:
        if join is None:
            return None
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=join)
    if done.returncode:
        raise RuntimeError(done.stderr)
    run: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return run


@contextmanager
def memory_group(limit_mb: int | None) -> Iterator[Any]:
    """A function by which a process joins a group with so much memory, page cache included."""
    if limit_mb is None:
        yield lambda: None
        return
    first = Path("/sys/fs/cgroup/memory")  # version 1 has a tree for each kind of resource
    root = first if first.is_dir() else Path("/sys/fs/cgroup")
    group = root / f"xmix-cold-cache-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        print(f"no memory limit can be set here ({error}); that part is left out")
        yield None
        return
    try:
        name = "memory.limit_in_bytes" if root == first else "memory.max"
        (group / name).write_text(str(limit_mb * 2**20))
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


def epoch(path: Path, *, read_ahead: bool) -> dict[str, float]:
    """Two epochs over the pairs of a raw beton with itself; the second one's figures are kept too.

    The first is cold; in the second a file that fits into memory is there.
    """
    if not read_ahead:
        read_ahead.read_ahead = lambda addresses, sizes: None
    beton = Beton(path)
    loader = XMixLoader(
        beton,
        beton,
        Bench(beton, beton).pairing,
        batch_size=BATCH,
        crop=RandomCrop(224),
        mix=False,
        dtype=torch.uint8,
    )
    rates, waits = [], []
    for _ in range(2):
        before, count = loader.stats()["disk_waits"], 0
        started = time.perf_counter()
        for batch in loader:
            count += len(batch.lam)
        rates.append(count / (time.perf_counter() - started))
        waits.append(loader.stats()["disk_waits"] - before)
    return {
        "pairs_per_s": rates[0],
        "disk_waits": waits[0],
        "second_pairs_per_s": rates[1],
        "second_disk_waits": waits[1],
    }


if __name__ == "__main__":
    main()
