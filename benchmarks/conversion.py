"""What each encoding costs, in bytes, to convert and to load, on a folder of photographs.

    python benchmarks/conversion.py FOLDER [--rounds 5] [--json FILE]

FOLDER is a class folder, best of photographs as large as ImageNet's; its files are taken several
times, until there are some hundred. Each round writes every encoding, the start of the workers
included, and loads an epoch of each with two threads, from memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from xmix_data import Beton, ImageLoader, RandomCrop, RandomResizedCrop, write_beton
from xmix_data.bench import machine

ENCODINGS: dict[str, dict[str, Any]] = {
    "jpg": {"encoding": "jpg"},
    "raw": {"encoding": "raw"},
    "keep": {"encoding": "keep"},
    "keep, whole images": {"encoding": "keep", "image_size": None, "crop": "none"},
}
IMAGES, THREADS = 500, 2
CROPS = {"RandomCrop(224)": RandomCrop(224), "RandomResizedCrop(224)": RandomResizedCrop(224)}


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/conversion.json"))
    options = parser.parse_args()
    figures: dict[str, Any] = {name: {"convert": [], "load": {}} for name in ENCODINGS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photographs"
        size = several_times(options.folder, folder)
        for number in range(options.rounds + 1):
            for name, how in ENCODINGS.items():
                path = Path(scratch) / "one.beton"
                started = time.perf_counter()
                beton = write_beton(folder, path, overwrite=True, progress=False, **how)
                seconds = time.perf_counter() - started
                figures[name]["bytes_per_image"] = int(beton.sizes.sum()) / beton.num_samples
                rates = loading(beton)
                if number == 0:  # kernels were compiled
                    continue
                figures[name]["convert"].append(beton.num_samples / seconds)
                for crop, rate in rates.items():
                    figures[name]["load"].setdefault(crop, []).append(rate)
            print(f"round {number} of {options.rounds}", flush=True)
    result = {
        "benchmark": "conversion",
        "machine": machine.describe(),
        "configuration": {
            "images": beton.num_samples,
            "file_bytes_per_image": size,
            "image_size": 256,
            "rounds": options.rounds,
            "threads": THREADS,
        },
        "encodings": figures,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.json} written; `make tables` redraws the tables")


def several_times(photographs: Path, folder: Path) -> float:
    """Links to the files, as often as makes some hundred; returns bytes of a file on average."""
    files = sorted(path for path in photographs.glob("*/*") if path.is_file())
    for number in range(-(-IMAGES // len(files))):
        for file in files:
            link = folder / file.parent.name / f"{number}-{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    return sum(file.stat().st_size for file in files) / len(files)


def loading(beton: Beton) -> dict[str, float]:
    """Images a second by crop; images that are smaller than a crop have no figure for it."""
    rates = {}
    for name, crop in CROPS.items():
        if isinstance(crop, RandomCrop) and min(beton.heights.min(), beton.widths.min()) < 224:
            continue
        with ImageLoader(beton, batch_size=48, crop=crop, num_workers=THREADS) as loader:
            for _ in loader:
                pass
            started = time.perf_counter()
            for _ in loader:
                pass
        rates[name] = beton.num_samples / (time.perf_counter() - started)
    return rates


if __name__ == "__main__":
    main()
