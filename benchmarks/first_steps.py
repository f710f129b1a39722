"""The README's way on a folder of photographs, measured: convert, then load, plain and mixed.

    python benchmarks/first_steps.py FOLDER [--rounds 9] [--json FILE]

FOLDER is a class folder. Conversion is timed once an encoding. Loading is timed in interleaved
rounds over the same images: an epoch of each row, then again; medians, and ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from xmix_data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Beton,
    ImageLoader,
    PairedClass,
    Pairing,
    RandomCrop,
    XMixLoader,
    machine,
    write_beton,
)

BATCH = 48
BASE = "ImageLoader, jpg"


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--passes", type=int, default=4, help="epochs of a row in a round")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/first_steps.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        conversion, betons = convert(options.folder, Path(scratch))
        rates = load(options.folder, betons, options.rounds, options.passes)
    result = {
        "benchmark": "first_steps",
        "machine": machine.describe(),
        "configuration": {
            "images": betons["jpg"].num_samples,
            "classes": len(betons["jpg"].class_names),
            "image_size": 256,
            "crop": 224,
            "batch_size": BATCH,
            "threads": "all cores",
            "rounds": options.rounds,
            "passes": options.passes,
        },
        "conversion": conversion,
        "rates": rates,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.json} written; `python benchmarks/tables.py` redraws the tables")


def convert(folder: Path, scratch: Path) -> tuple[dict[str, Any], dict[str, Beton]]:
    """Seconds and bytes of each encoding."""
    figures, betons = {}, {}
    for encoding in ("jpg", "raw", "keep"):
        started = time.perf_counter()
        beton = write_beton(folder, scratch / f"{encoding}.beton", encoding=encoding)
        seconds = time.perf_counter() - started
        betons[encoding] = beton
        figures[encoding] = {
            "seconds": seconds,
            "images_per_s": beton.num_samples / seconds,
            "bytes_per_image": int(beton.sizes.sum()) / beton.num_samples,
        }
    return figures, betons


def load(
    folder: Path, betons: dict[str, Beton], rounds: int, passes: int
) -> dict[str, dict[str, Any]]:
    """Samples (pairs) a second of each row, every round."""
    names = betons["jpg"].class_names
    pairing = Pairing({
        t: [PairedClass(s, 0.5, 1)] for t, s in zip(names, names[1:] + names[:1], strict=True)
    })  # fmt: skip

    def mixed(target: str, source: str) -> XMixLoader:
        return XMixLoader(
            betons[target], betons[source], pairing, batch_size=BATCH, crop=RandomCrop(224)
        )

    rows: dict[str, Any] = {
        BASE: ImageLoader(
            betons["jpg"], batch_size=BATCH, crop=RandomCrop(224), flip=True, shuffle=True,
            drop_last=True,
        ),
        "XMixLoader, jpg + jpg": mixed("jpg", "jpg"),
        "XMixLoader, raw + jpg": mixed("raw", "jpg"),
        "XMixLoader, raw + raw": mixed("raw", "raw"),
        "torch DataLoader, files": torch_loader(folder),
    }  # fmt: skip
    epochs: dict[str, Callable[[], float]] = {
        name: (lambda loader=loader: epoch(loader, passes)) for name, loader in rows.items()
    }
    for run in epochs.values():
        run()  # compile, fill the page cache, start workers once
    samples: dict[str, list[float]] = {name: [] for name in epochs}
    for number in range(rounds):
        for name, run in epochs.items():
            samples[name].append(run())
        print(f"round {number + 1} of {rounds}")
    return {
        name: {
            "samples_per_s": values,
            "median": statistics.median(values),
            "ratio_to_base": statistics.median(
                value / base for value, base in zip(values, samples[BASE], strict=True)
            ),
        }
        for name, values in samples.items()
    }


def torch_loader(folder: Path) -> DataLoader[Any]:
    """The usual loader of one domain from the image files: Pillow in worker processes."""
    transform = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(256), transforms.RandomCrop(224),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip
    return DataLoader(
        datasets.ImageFolder(str(folder), transform), batch_size=BATCH, shuffle=True,
        drop_last=True, num_workers=machine.describe()["cores"], persistent_workers=True,
        prefetch_factor=4,
    )  # fmt: skip


def epoch(loader: Any, passes: int) -> float:
    """Samples a second over some epochs; reads one number of each batch, as a consumer would."""
    count, started = 0, time.perf_counter()
    for _ in range(passes):
        for batch in loader:
            count += len(batch[0])
            float(batch[0][0, 0, 0, 0])
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
