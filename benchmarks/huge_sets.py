"""How soon sets of many million samples are open and give a batch, and what memory that takes.

    python benchmarks/huge_sets.py [--against FOLDER] [--samples 14000000 100000000] [--rounds 7]

Each set is 64 shards of raw images of one pixel, sorted by class as a conversion of class folders
writes them: an index of full length, and no pixels to speak of. A process opens the set, makes an
`XMixLoader` over it with itself as source, and asks for a batch of the first epoch and, after
`set_epoch`, of the second. FOLDER holds another version of the package (FOLDER/xmix_data), which is
measured in turn: each figure comes from a process of its own. Memory is what no file backs. Other
sets that the JSON has already stay in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SHARDS, CLASSES, BATCH = 64, 21_841, 256
MEASURE = """
import json, sys, threading, time
import torch, xmix_data
from xmix_data.beton import open_domain

def mb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, mb())

before = peak = mb()
done = threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
assert xmix_data.__file__.startswith(sys.argv[1]), xmix_data.__file__
figures, started = {}, time.perf_counter()

def note(what):
    global started
    figures[what + "_s"] = time.perf_counter() - started
    figures[what + "_mb"] = mb() - before
    started = time.perf_counter()

domain = open_domain(sys.argv[2:])
note("open")
pairs = {name: [xmix_data.PairedClass(name, 1.0, 1)] for name in domain.class_names}
started = time.perf_counter()
loader = xmix_data.XMixLoader(
    domain, domain, xmix_data.Pairing(pairs), batch_size=BATCH, crop=xmix_data.CenterCrop(1)
)
note("loader")
next(iter(loader))
note("first_batch")
loader.set_epoch(1)
next(iter(loader))
note("second_epoch")
loader.state_dict()
note("state")
done.set()
watcher.join()
print(json.dumps({**figures, "peak_mb": max(peak, mb()) - before}))
""".replace("BATCH", str(BATCH))


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="a folder with another version of the package")
    parser.add_argument("--samples", type=int, nargs="+", default=[14_000_000, 100_000_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/huge_sets.json")
    options = parser.parse_args()
    versions = {"after": ROOT} | ({"before": options.against.resolve()} if options.against else {})
    known = json.loads(options.json.read_text()) if options.json.exists() else {}
    sets: dict[str, Any] = known.get("sets", {})
    for samples in options.samples:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
        with tempfile.TemporaryDirectory() as name:
            paths = write_shards(Path(name), samples)
            for number in range(options.rounds + 1):
                order = list(versions) if number % 2 else list(reversed(versions))
                for version in order:
                    figures = in_new_process(versions[version], paths)
                    if number:  # the first round fills caches
                        runs[version].append(figures)
                print(f"{samples:,} samples, round {number} of {options.rounds}", flush=True)
        sets[str(samples)] = runs
        for version, measured in runs.items():
            for key in measured[0]:
                values = [run[key] for run in measured]
                low, high = min(values), max(values)
                print(
                    f"{version:7} {key:15} {statistics.median(values):9.2f} ({low:.2f}-{high:.2f})"
                )
    from xmix_data.bench import machine

    result = {
        "benchmark": "huge_sets",
        "machine": machine.describe(),
        "configuration": {
            "rounds": options.rounds,
            "shards": SHARDS,
            "classes": CLASSES,
            "batch_size": BATCH,
        },
        "sets": sets,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


def in_new_process(package: Path, paths: list[str]) -> dict[str, float]:
    """What a version of the package takes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(package), *paths],
        env={**os.environ, "PYTHONPATH": str(package)},
        cwd=package,  # what stands there comes before PYTHONPATH
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_shards(folder: Path, samples: int) -> list[str]:
    """Write the betons of a set, with their manifests; return their paths."""
    from xmix_data.beton.manifest import manifest_bytes, manifest_path

    cuts = np.linspace(0, samples, SHARDS + 1).astype(np.int64)
    paths = []
    for index, (start, stop) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
        path = folder / f"set-{index:05}-of-{SHARDS:05}.beton"
        labels = np.arange(start, stop) * CLASSES // samples
        write_index(path, labels)
        facts = {
            "class_names": [f"n{label:08}" for label in range(CLASSES)],
            "class_counts": np.bincount(labels, minlength=CLASSES).tolist(),
            "num_samples": len(labels),
            "byte_length": path.stat().st_size,
            "encoding": "raw",
            "content_hash": f"sha256:{index:064}",
            "shard": {"index": index, "count": SHARDS, "set": "a set"},
        }
        manifest_path(path).write_bytes(manifest_bytes(facts))
        paths.append(str(path))
    return paths


def write_index(path: Path, labels: Any) -> None:
    """Write a beton of raw images of one pixel, with these labels."""
    from xmix_data.beton import layout

    count = len(labels)
    header: Any = np.zeros(1, layout.HEADER)
    fields: Any = np.zeros(2, layout.FIELD)
    samples: Any = np.zeros(count, layout.SAMPLE)
    table: Any = np.zeros(count, layout.ALLOCATION)
    page = layout.MIN_PAGE_SIZE
    start = layout.align(header.nbytes + fields.nbytes + samples.nbytes, page)
    fields["type_id"] = [layout.IMAGE_FIELD, layout.INT_FIELD]
    image = samples["f0"]
    image["width"] = image["height"] = image["mode"] = layout.RAW
    image["data_ptr"] = table["ptr"] = start + 3 * np.arange(count)
    samples["f1"] = labels
    table["sample_id"], table["size"] = np.arange(count), 3
    end = layout.align(start + 3 * count, 8)
    header[0] = (layout.FFCV_VERSION, 2, page, count, end)
    with path.open("wb") as file:
        for part in (header, fields, samples):
            file.write(part.tobytes())
        file.seek(end)
        file.write(table.tobytes())


if __name__ == "__main__":
    main()
