"""How many host threads a GPU needs to be fed, with either backend that feeds one.

    python benchmarks/feeding.py FOLDER [--device cuda --model resnet50 --dtype bfloat16
        --threads 2 4 8 16 --batch-size 256 --image-size 256 --crop 224] [--json FILE]

FOLDER is a class folder of photographs. For jpg + jpg and raw + jpg pairs, each backend and number
of threads: pairs a second of the loader alone and the cores that it kept busy meanwhile; and
milliseconds of a training step that it feeds, beside those of the same step on one batch that stays
on the device. Where a step takes longer than that, the loader is what limits it. Rounds are
interleaved. On a CPU, where training would take the same cores, the loaders run alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmix_data import Beton, MixedBatch, Pairing, RandomCrop, XMixLoader, write_beton
from xmix_data.backbones import load_backbone
from xmix_data.bench import Bench, Repeated, machine
from xmix_data.methods import split_classifier

BACKENDS = ("host", "dali")
IMAGES = 4000
"""Of an epoch, at least: its start should weigh little."""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="resnet50", help="of torchvision")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, nargs="+", default=(2, 4, 8, 16))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--steps", type=int, default=40, help="of a row in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/feeding_DEVICE.json")
    options = parser.parse_args()
    path = options.json or Path(f"benchmarks/results/feeding_{options.device}.json")
    with tempfile.TemporaryDirectory() as scratch:
        jpg, raw = betons(options, Path(scratch))
        rows = make_rows(options, jpg, raw)
        for row in rows.values():
            row()  # compile, fill caches
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for number in range(options.rounds):
            for name, row in rows.items():
                figures[name].append(row())
            print(f"round {number + 1} of {options.rounds}", flush=True)
    setup = {k: v for k, v in vars(options).items() if k not in ("folder", "json")}
    result = {
        "benchmark": "feeding",
        "machine": machine.describe(),
        "configuration": {**setup, "jpg_bytes_per_image": int(jpg.sizes.mean())},
        "rows": figures,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    for name, runs in figures.items():
        medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(f"{name:34}", ", ".join(f"{key} {value:.1f}" for key, value in medians.items()))


def betons(options: Any, scratch: Path) -> tuple[Beton, Beton]:
    """The photographs often enough, as JPEG and raw."""
    once = write_beton(options.folder, scratch / "once.beton", image_size=options.image_size)
    repeated = Repeated(once, -(-IMAGES // once.num_samples))
    jpg, raw = (
        write_beton(repeated, scratch / f"{encoding}.beton", encoding=encoding)
        for encoding in ("keep", "raw")
    )
    return jpg, raw


def make_rows(options: Any, jpg: Beton, raw: Beton) -> dict[str, Callable[[], dict[str, float]]]:
    """By name: what runs a number of steps and says how it went."""
    pairing = Bench(jpg, jpg).pairing
    step = None if options.device == "cpu" else training_step(options, len(jpg.class_names))
    rows: dict[str, Callable[[], dict[str, float]]] = {}
    for pair, target in (("jpg + jpg", jpg), ("raw + jpg", raw)):
        for backend, threads in itertools.product(BACKENDS, options.threads):
            loader = make_loader(options, target, jpg, pairing, backend, threads)
            name = f"{pair}, {backend}, {threads} threads"
            rows[f"{name}, alone"] = lambda loader=loader: timed(options, loader, None)
            if step is not None:
                rows[f"{name}, training"] = lambda loader=loader: timed(options, loader, step)
    if step is not None:
        resident = next(iter(loader))
        rows["resident batch, training"] = lambda: timed(options, itertools.repeat(resident), step)
    return rows


def make_loader(
    options: Any, target: Beton, source: Beton, pairing: Pairing, backend: str, threads: int
) -> XMixLoader:
    """A loader of mixed batches on the device."""
    return XMixLoader(
        target,
        source,
        pairing,
        batch_size=options.batch_size,
        backend=backend,
        crop=RandomCrop(options.crop),
        device=options.device,
        dtype=getattr(torch, options.dtype),
        num_workers=threads,
    )


def training_step(options: Any, classes: int) -> Callable[[MixedBatch], Tensor]:
    """Forward, the loss of both labels in one softmax, backward, SGD.

    The loss is the cross-entropy of ``batch.soft_labels(classes, classes)``; but that checks the
    labels, for which the host would wait for the device in every step.
    """
    device = torch.device(options.device)
    body, classifier = split_classifier(load_backbone(options.model, "none").network)
    assert classifier is not None
    network = nn.Sequential(body, nn.Linear(classifier.in_features, 2 * classes))
    network = network.to(device, memory_format=torch.channels_last)
    network.train()  # load_backbone gives eval mode, in which batch statistics cost nothing
    half = torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16")
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step(batch: MixedBatch) -> Tensor:
        with half:
            logits = network(batch.images)
            target = nn.functional.cross_entropy(logits, batch.target_labels, reduction="none")
            source = nn.functional.cross_entropy(
                logits, classes + batch.source_labels, reduction="none"
            )
            loss = (batch.lam * target + (1 - batch.lam) * source).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def timed(
    options: Any, batches: Iterable[MixedBatch], step: Callable[[MixedBatch], Tensor] | None
) -> dict[str, float]:
    """A number of steps, or of batches alone, after the first."""
    several = itertools.chain.from_iterable(itertools.repeat(batches))
    last = use(next(several), step)
    last.item()  # waits for the device
    started, cores = time.perf_counter(), time.process_time()
    for batch in itertools.islice(several, options.steps):
        last = use(batch, step)
    last.item()
    seconds, cores = time.perf_counter() - started, time.process_time() - cores
    return {
        "pairs_per_s": options.steps * options.batch_size / seconds,
        "ms_per_step": 1000 * seconds / options.steps,
        "cores_used": cores / seconds,
    }


def use(batch: MixedBatch, step: Callable[[MixedBatch], Tensor] | None) -> Tensor:
    return batch.images[0, 0, 0, 0] if step is None else step(batch)


if __name__ == "__main__":
    main()
