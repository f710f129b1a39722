"""Time of a training step: plain fine-tuning, XMixup and Co-Train, each fed in three ways.

    python benchmarks/step_cost.py FOLDER [--device cuda --model resnet50 --dtype bfloat16
        --image-size 256 --crop 224 --batch-size 256 --compile] [--json FILE]

FOLDER is a class folder of photographs. Co-Train sees as many source images beside the target's.
A step is fed by one batch that is on the device already (what training alone costs), by this
library, or by torch's DataLoader with Pillow. Rounds are interleaved. What a step fed by a loader
takes longer than one fed by the resident batch is the share that the device idles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from peers import MixedDataset, PairDataset, Pairs, Task, pillow_decoder, torch_cut, torch_loader
from torch import Tensor, nn
from torch.nn import functional

from xmix_data import (
    Beton,
    ImageLoader,
    MixedBatch,
    RandomCrop,
    XMixLoader,
    machine,
    write_beton,
    xmixup_loss,
)
from xmix_data.bench import Bench

METHODS = ("plain", "XMixup", "Co-Train")
FED_BY = ("resident batch", "xmix_data", "torch DataLoader")


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="resnet18", help="of torchvision, with a layer `fc`")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--image-size", type=int, default=40)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--steps",
        type=int,
        default=32,
        help="of a row in a round; take several times what the loaders prefetch",
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/step_cost.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = make_rows(options, Path(scratch))
        for name, row in rows.items():
            seconds = row()  # compile, fill caches, start workers
            print(f"{name}: first {options.steps} steps in {seconds:.1f} s", flush=True)
        times: dict[str, list[float]] = {name: [] for name in rows}
        for number in range(options.rounds):
            for name, row in rows.items():
                times[name].append(row() / options.steps)
            print(f"round {number + 1} of {options.rounds}", flush=True)
    setup = {k: v for k, v in vars(options).items() if k not in ("folder", "json")}
    result = {
        "benchmark": "step_cost",
        "machine": machine.describe(),
        "configuration": {**setup, "threads": threads(options.device)},
        "seconds_per_step": times,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    plain = times["plain, xmix_data"]
    for name, values in times.items():
        share = statistics.median(v / p for v, p in zip(values, plain, strict=True))
        print(f"{name:32} {1000 * statistics.median(values):8.1f} ms  {share:5.2f} x plain")


def threads(device: str) -> dict[str, int]:
    """On a CPU, training and loading share the cores; beside a GPU, loading has them all."""
    cores = len(os.sched_getaffinity(0))
    training = max(1, cores // 2) if device == "cpu" else cores
    return {"training": training, "loading": max(1, cores - training) if device == "cpu" else cores}


@dataclass
class Learner:
    """A network with one head, or two, and its optimizer."""

    options: Any
    targets: int
    sources: int

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        device = self.options.device
        body: Any = getattr(torchvision.models, self.options.model)(weights=None)
        features = body.fc.in_features
        body.fc = nn.Identity()
        body = body.to(device, memory_format=torch.channels_last)
        self.target_head = nn.Linear(features, self.targets).to(device)
        self.source_head = nn.Linear(features, self.sources).to(device)
        parts = nn.ModuleList([body, self.target_head, self.source_head])
        self.optimizer = torch.optim.SGD(parts.parameters(), lr=0.01, momentum=0.9)
        self.body = torch.compile(body) if self.options.compile else body

    def features(self, images: Tensor) -> Tensor:
        """(B, F) in the step's autocast type."""
        features: Tensor = self.body(images)
        return features

    def step(self, method: str, batch: tuple[Tensor, ...]) -> None:
        """One step of SGD on what a feed of this method yields."""
        dtype = getattr(torch, self.options.dtype)
        with torch.autocast(self.options.device, dtype, enabled=dtype != torch.float32):
            loss = getattr(self, {"plain": "plain", "XMixup": "mixed", "Co-Train": "both"}[method])(
                *batch
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def plain(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy on the target."""
        return functional.cross_entropy(self.target_head(self.features(images)), labels)

    def mixed(self, *batch: Tensor) -> Tensor:
        """XMixup's loss."""
        mixed = MixedBatch(*batch)
        z = self.features(mixed.images)
        return xmixup_loss(self.target_head(z), self.source_head(z), mixed)

    def both(self, targets: Tensor, sources: Tensor, labels: Tensor, others: Tensor) -> Tensor:
        """Co-Train's loss: both cross entropies, of a batch twice as large."""
        z = self.features(torch.cat([targets, sources]))
        target_z, source_z = z.chunk(2)
        return functional.cross_entropy(self.target_head(target_z), labels) + (
            functional.cross_entropy(self.source_head(source_z), others)
        )


def make_rows(options: Any, scratch: Path) -> dict[str, Callable[[], float]]:
    """For each method and feed what runs a few steps and returns the seconds."""
    beton = write_beton(options.folder, scratch / "jpg.beton", image_size=options.image_size)
    Bench(beton, beton).pairing.save(scratch / "pairing.json")
    if options.device == "cpu":
        torch.set_num_threads(threads("cpu")["training"])
    rows = {}
    for fed_by, method in itertools.product(FED_BY, METHODS):
        learner = Learner(options, len(beton.class_names), len(beton.class_names))
        batches = feed(fed_by, method, options, beton, scratch / "pairing.json")
        rows[f"{method}, {fed_by}"] = make_row(options, learner, method, batches)
    return rows


def make_row(
    options: Any, learner: Learner, method: str, batches: Iterator[tuple[Tensor, ...]]
) -> Callable[[], float]:
    """Seconds of some steps, the device's work included."""

    def run() -> float:
        started = time.perf_counter()
        for batch in itertools.islice(batches, options.steps):
            learner.step(method, batch)
        if options.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def feed(
    fed_by: str, method: str, options: Any, beton: Beton, pairing: Path
) -> Iterator[tuple[Tensor, ...]]:
    """Batches without end: what `Learner` takes for the method."""
    if fed_by == "torch DataLoader":
        return from_torch(method, options, beton, pairing)
    ours = from_xmix(method, options, beton, pairing)
    return itertools.repeat(next(ours)) if fed_by == "resident batch" else ours


def from_xmix(
    method: str, options: Any, beton: Beton, pairing: Path
) -> Iterator[tuple[Tensor, ...]]:
    """From this library."""
    settings: dict[str, Any] = {
        "batch_size": options.batch_size, "crop": RandomCrop(options.crop), "drop_last": True,
        "device": options.device, "num_workers": threads(options.device)["loading"],
        "dtype": getattr(torch, options.dtype),
    }  # fmt: skip
    if method == "plain":
        loader: Any = ImageLoader(beton, flip=True, shuffle=True, **settings)
    else:
        loader = XMixLoader(beton, beton, pairing, mix=method == "XMixup", **settings)
    while True:
        for batch in loader:
            yield batch if method != "Co-Train" else batch[:4]


def from_torch(
    method: str, options: Any, beton: Beton, pairing: Path
) -> Iterator[tuple[Tensor, ...]]:
    """From torch's DataLoader, with Pillow and torchvision's transforms in its workers."""
    task = Task(
        str(beton.path), str(beton.path), str(pairing), batch_size=options.batch_size,
        size=options.crop, threads=threads(options.device)["loading"],
    )  # fmt: skip
    pairs, image = Pairs(task), pillow_decoder(torch_cut(task))
    kind = MixedDataset if method == "XMixup" else PairDataset
    dataset = TargetsOnly(pairs, image) if method == "plain" else kind(pairs, image)
    loader = torch_loader(task, pairs, dataset, pin_memory=options.device != "cpu")
    torch.set_num_threads(threads(options.device)["training"])
    while True:
        for batch in loader:
            moved = [x.to(options.device, non_blocking=True) for x in batch]
            if method == "XMixup":
                images, lam, labels, others = moved
                yield images, labels, others, lam
            else:
                yield (moved[0], moved[2]) if method == "plain" else tuple(moved)


class TargetsOnly(PairDataset):
    """The target's images alone: a pair whose second image is never read."""

    def __getitem__(self, indices: tuple[int, int]) -> tuple[Any, Any, int, int]:
        target, _ = indices
        pairs = self._pairs
        return self._image(pairs.target.data(target)), 0, int(pairs.target.labels[target]), 0


if __name__ == "__main__":
    main()
