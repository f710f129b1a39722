"""Time and memory of a training step of every method, relative to plain fine-tuning.

    python benchmarks/step_cost.py FOLDER [--device cuda --model resnet50 --dtype bfloat16
        --image-size 256 --crop 224 --batch-size 256 --compile] [--json FILE]

FOLDER is a class folder of photographs; the source is two betons of half the classes each. All
methods are fed by this library; plain fine-tuning, XMixup and Co-Train also by one batch that is on
the device already (what training alone costs), and by torch's DataLoader with Pillow. Seq-Train
takes two steps: one on source images, one on the target. Rounds are interleaved. What a step fed by
a loader takes longer than one fed by the resident batch is the share that the device idles. Memory
is what one step takes beyond network and momentum, on a CPU in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peers import MixedDataset, PairDataset, Pairs, Task, pillow_decoder, torch_cut, torch_loader
from torch import Tensor, nn

from xmix_data import (
    Beton,
    ImageLoader,
    MixedBatch,
    PairedBatch,
    RandomCrop,
    XMixLoader,
    write_beton,
)
from xmix_data.backbones import load_backbone
from xmix_data.bench import Bench, machine
from xmix_data.beton import open_images
from xmix_data.images import select
from xmix_data.methods import METHODS, Method, Phase, TransferNetwork, split_classifier

FED_BY = ("resident batch", "xmix_data", "torch DataLoader")
FED_IN_ALL_WAYS = ("finetune", "xmixup", "cotrain")


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
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(memory_of(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = Data(options, Path(scratch))
        rows = make_rows(options, data)
        for name, row in rows.items():
            seconds = row()  # compile, fill caches, start workers
            print(f"{name}: first {options.steps} steps in {seconds:.1f} s", flush=True)
        times: dict[str, list[float]] = {name: [] for name in rows}
        for number in range(options.rounds):
            for name, row in rows.items():
                times[name].append(row() / options.steps)
            print(f"round {number + 1} of {options.rounds}", flush=True)
        memory = {name: memory_in_new_process(name, options) for name in METHODS}
    setup = {k: v for k, v in vars(options).items() if k not in ("folder", "json", "memory_of")}
    result = {
        "benchmark": "step_cost",
        "machine": machine.describe(),
        "configuration": {**setup, "threads": threads(options.device)},
        "seconds_per_step": times,
        "memory_mb": memory,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    plain = times["finetune, xmix_data"]
    for name, values in times.items():
        share = statistics.median(v / p for v, p in zip(values, plain, strict=True))
        print(f"{name:32} {1000 * statistics.median(values):8.1f} ms  {share:5.2f} x plain")


def threads(device: str) -> dict[str, int]:
    """On a CPU, training and loading share the cores; beside a GPU, loading has them all."""
    cores = len(os.sched_getaffinity(0))
    training = max(1, cores // 2) if device == "cpu" else cores
    return {"training": training, "loading": max(1, cores - training) if device == "cpu" else cores}


class Data:
    """The betons of a run."""

    def __init__(self, options: Any, scratch: Path) -> None:
        self.target = write_beton(
            options.folder, scratch / "target.beton", image_size=options.image_size
        )
        names = self.target.class_names
        self.source = [
            write_beton(
                select(open_images(self.target), classes=part),
                scratch / f"source-{i}.beton",
                image_size=options.image_size,
                encoding="keep",
            )
            for i, part in enumerate((names[::2], names[1::2]))
        ]
        self.pairing = scratch / "pairing.json"
        Bench(self.target, self.target).pairing.save(self.pairing)


class Learner:
    """A method with its network and optimizer, for one of its phases."""

    def __init__(self, options: Any, data: Data, method: Method, phase: Phase) -> None:
        torch.manual_seed(0)
        self.options, self.method = options, method
        body, classifier = split_classifier(load_backbone(options.model, "none").network)
        assert classifier is not None
        heads = {
            name: nn.Linear(classifier.in_features, len(data.target.class_names))
            for name in phase.heads
        }
        network = TransferNetwork(body, heads.get("target"), heads.get("source"))
        network.to(options.device, memory_format=torch.channels_last)
        network.autocast_dtype = None if options.dtype == "float32" else torch.bfloat16
        network.train()  # load_backbone gives eval mode, in which batch statistics cost nothing
        method.prepare(network, phase)
        learning = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(learning, lr=0.01, momentum=0.9)
        if options.compile:
            # Without the heads one graph serves several methods. Co-Train's batches are twice as
            # large: a graph for any size, which torch would make then, is slower.
            body.compile(dynamic=False)
        self.network = network
        self.steps = 0

    def step(self, batch: Any) -> None:
        """One step of SGD."""
        self.optimizer.zero_grad(set_to_none=True)
        self.method.backward(self.network, batch, step=self.steps)
        self.optimizer.step()
        self.steps += 1


def make_rows(options: Any, data: Data) -> dict[str, Callable[[], float]]:
    """For each method and feed what runs a few steps and returns the seconds."""
    if options.device == "cpu":
        torch.set_num_threads(threads("cpu")["training"])
    rows = {}
    for fed_by, name in itertools.product(FED_BY, METHODS):
        if fed_by == "xmix_data" or name in FED_IN_ALL_WAYS:
            rows[f"{name}, {fed_by}"] = make_row(options, data, name, fed_by)
    return rows


def make_row(options: Any, data: Data, name: str, fed_by: str) -> Callable[[], float]:
    """Seconds of some steps of each phase, the device's work included."""
    phases = []
    for number in range(len(METHODS[name]().phases)):
        method = METHODS[name]()
        phase = method.phases[number]
        learner = Learner(options, data, method, phase)
        phases.append((learner, feed(fed_by, phase, options, data)))

    def run() -> float:
        started = time.perf_counter()
        for learner, batches in phases:
            for batch in itertools.islice(batches, options.steps):
                learner.step(batch)
        if options.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def memory_in_new_process(name: str, options: Any) -> float:
    """Megabytes that a step of a method takes."""
    command = [sys.executable, __file__, str(options.folder), "--memory-of", name]
    for key in ("device", "model", "dtype", "image_size", "crop", "batch_size"):
        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory_of(options: Any) -> float:
    """The most of its phases; what network and momentum take is there before."""
    most = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        data = Data(options, Path(scratch))
        for number in range(len(METHODS[options.memory_of]().phases)):
            method = METHODS[options.memory_of]()
            phase = method.phases[number]
            learner = Learner(options, data, method, phase)
            batch = next(feed("resident batch", phase, options, data))
            learner.step(batch)  # what is made once, kernels say
            before = start_of_peak(options.device)
            learner.step(batch)
            most = max(most, peak_mb(options.device) - before)
    return most


def start_of_peak(device: str) -> float:
    """Megabytes held now, from where on the peak is looked for."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    return status_mb("VmRSS")


def peak_mb(device: str) -> float:
    """The most megabytes held since then."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return status_mb("VmHWM")


def status_mb(key: str) -> float:
    """What the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def feed(fed_by: str, phase: Phase, options: Any, data: Data) -> Iterator[Any]:
    """Batches of a phase without end."""
    if fed_by == "torch DataLoader":
        return from_torch(phase, options, data.target, data.pairing)
    ours = from_xmix(phase, options, data)
    return itertools.repeat(next(ours)) if fed_by == "resident batch" else ours


def from_xmix(phase: Phase, options: Any, data: Data) -> Iterator[Any]:
    """From this library."""
    settings: dict[str, Any] = {
        "batch_size": options.batch_size,
        "crop": RandomCrop(options.crop),
        "drop_last": True,
        "device": options.device,
        "num_workers": threads(options.device)["loading"],
        "dtype": getattr(torch, options.dtype),
        "flip": True,
    }
    if phase.batches == "target":
        loader: Any = ImageLoader(data.target, shuffle=True, **settings)
    elif phase.batches == "auxiliary":
        loader = ImageLoader(data.source, shuffle=True, pairing=data.pairing, **settings)
    else:
        mix = phase.batches == "mixed"
        loader = XMixLoader(data.target, data.source, data.pairing, mix=mix, **settings)
    while True:
        yield from loader


def from_torch(phase: Phase, options: Any, beton: Beton, pairing: Path) -> Iterator[Any]:
    """From torch's DataLoader, with Pillow and torchvision's transforms in its workers."""
    task = Task(
        str(beton.path),
        str(beton.path),
        str(pairing),
        batch_size=options.batch_size,
        size=options.crop,
        threads=threads(options.device)["loading"],
    )
    pairs, image = Pairs(task), pillow_decoder(torch_cut(task))
    kinds = {"target": TargetsOnly, "mixed": MixedDataset, "paired": PairDataset}
    dataset = kinds[phase.batches](pairs, image)
    loader = torch_loader(task, pairs, dataset, pin_memory=options.device != "cpu")
    torch.set_num_threads(threads(options.device)["training"])
    while True:
        for batch in loader:
            moved: list[Tensor] = [x.to(options.device, non_blocking=True) for x in batch]
            if phase.batches == "mixed":
                images, lam, labels, others = moved
                yield MixedBatch(images, labels, others, lam)
            elif phase.batches == "target":
                yield moved[0], moved[2]
            else:
                images, sources, labels, others = moved
                one_domain = torch.zeros_like(others)
                yield PairedBatch(images, sources, labels, others, one_domain, one_domain.float())


class TargetsOnly(PairDataset):
    """The target's images alone: a pair whose second image is never read."""

    def __getitem__(self, indices: tuple[int, int]) -> tuple[Any, Any, int, int]:
        target, _ = indices
        pairs = self._pairs
        return self._image(pairs.target.data(target)), 0, int(pairs.target.labels[target]), 0


if __name__ == "__main__":
    main()
