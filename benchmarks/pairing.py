"""What pairing costs: time and memory over classes and dimensions, and features beside the model.

    python benchmarks/pairing.py FOLDER [--device cpu] [--model resnet18] [--rounds 5] [--json FILE]

FOLDER is a class folder of photographs, for the features. Pairings are measured in processes of
their own, which hold the centroids and pair them; FAISS uses a GPU where it finds one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from xmix_data import Centroids, class_centroids, pair_classes, write_beton
from xmix_data.backbones import load_backbone, penultimate_features
from xmix_data.bench import Row, interleave, machine
from xmix_data.beton import open_images
from xmix_data.images import select
from xmix_data.pairing.matching import METHODS, cosine_similarity

TARGET_CLASSES = 1000
SOURCE_CLASSES = (1000, 5000, 21_841)
DIMENSIONS = (512, 2048)
IMAGES = 128


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/pairing.json"))
    parser.add_argument("--pair", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pair:
        print(json.dumps(pair_once(*options.pair)))
        return
    if options.folder is None:
        parser.error("give a class folder of photographs")
    grid = list(itertools.product(SOURCE_CLASSES, DIMENSIONS))
    pairings: dict[str, list[dict[str, float]]] = {f"{m} x {d}": [] for m, d in grid}
    for _ in range(options.rounds):
        for m, d in grid:
            pairings[f"{m} x {d}"].append(in_new_process(m, d))
    for name, runs in pairings.items():
        seconds = statistics.median(run["total_s"] for run in runs)
        print(f"{name:14} {seconds:.2f} s, {max(run['peak_mb'] for run in runs):,.0f} MB")
    features = measure_features(options)
    for name, rates in features.items():
        print(f"{name:24} {statistics.median(rates):.0f} images/s")
    result = {
        "benchmark": "pairing",
        "machine": machine.describe(),
        "configuration": {
            "rounds": options.rounds,
            "target_classes": TARGET_CLASSES,
            "device": options.device,
            "model": options.model,
            "batch_size": options.batch_size,
            "crop": 224,
            "images": IMAGES,
        },
        "pairings": pairings,
        "images_per_s": features,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.json} written")


def in_new_process(source_classes: int, dimensions: int) -> dict[str, float]:
    """Seconds of the steps, and the process's peak memory."""
    command = [sys.executable, __file__, "--pair", str(source_classes), str(dimensions)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def pair_once(source_classes: int, dimensions: int) -> dict[str, float]:
    """One round for centroids that are as alike as those of a network's features."""
    random = np.random.default_rng(0)
    common = random.random((1, dimensions), dtype=np.float32)

    def centroids(count: int, prefix: str) -> Centroids:
        values = random.random((count, dimensions), dtype=np.float32)
        values **= 4
        values += common
        return Centroids(values, np.full(count, 600), [f"{prefix}{i}" for i in range(count)])

    target, source = centroids(TARGET_CLASSES, "t"), centroids(source_classes, "s")
    started = time.perf_counter()
    pair_classes(target, source)
    seconds = {"total_s": time.perf_counter() - started}
    seconds["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    cosines = cosine_similarity(target.values, source.values)
    seconds["cosines_s"] = time.perf_counter() - started
    for name, choose in METHODS.items():
        started = time.perf_counter()
        list(choose(cosines, np.random.Philox(0)))
        seconds[f"{name}_s"] = time.perf_counter() - started
    return seconds


def measure_features(options: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second: centroids of a beton, and the model on a batch that lies there already."""
    import torch

    device = torch.device(options.device)
    backbone = load_backbone(options.model, "none")
    with tempfile.TemporaryDirectory() as scratch:
        source = open_images(options.folder)
        few = select(source, per_class=max(1, IMAGES // len(source.class_names or [""])))
        beton = write_beton(few, Path(scratch) / "images.beton")
        batches = -(-len(beton) // options.batch_size)

        def centroids() -> tuple[int, float]:
            started = time.perf_counter()
            class_centroids(beton, backbone, device=device, batch_size=options.batch_size)
            return len(beton), time.perf_counter() - started

        def model_alone() -> tuple[int, float]:
            network = backbone.network.to(device)
            batch = torch.rand(options.batch_size, 3, 224, 224, device=device)
            batch = batch.to(memory_format=torch.channels_last)
            started = time.perf_counter()
            for _ in range(batches):
                features = penultimate_features(network, batch)
            features.sum().item()  # on a GPU: all is done
            return batches * len(batch), time.perf_counter() - started

        rows: dict[str, Row] = {"class_centroids": centroids, "the model alone": model_alone}
        return interleave(rows, options.rounds)


if __name__ == "__main__":
    main()
