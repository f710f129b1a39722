"""The paper's tables in small: a network trained from scratch, fine-tuned by every method.

Comes in: a source and a target, each a folder with the class folders ``train`` and ``test``; their
classes must not overlap. A network is trained on the source from scratch, classes are paired by its
features, and every method fine-tunes it to the target. Options of a method (six combinations for
each) are chosen by cross-validation within the training images; the test images are seen by the
chosen ones, trained on all of these, with several seeds, and by the sweeps that say why they came
out as they did. Goes out: results/transfer_accuracy_cpu.json, or ``_gpu``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from accuracy_parts.probes import features_of, probed
from accuracy_parts.runs import Runs, task_key
from xmix_data import (
    Beton,
    CenterCrop,
    Pairing,
    class_centroids,
    pair_classes,
    write_beton,
)
from xmix_data.bench import machine
from xmix_data.beton import open_images
from xmix_data.images import ClassFolder, Subset, select
from xmix_data.methods import METHODS, FineTune
from xmix_data.training import Recipe, fit

FOLDS, FINALISTS = 3, 3
"""Folds of the cross-validation, and the best combinations of the first that see the others too:
one fold is not enough to tell two learning rates apart."""
TUNING_SEED = 1000
"""Of the first fold."""


@dataclass(frozen=True)
class Scale:
    """What a machine can do in some hours."""

    widths: tuple[int, ...]
    image_size: int
    crop: int
    pretraining: Recipe
    iterations: int
    seeds: int
    sweep_seeds: int
    """Of everything but the methods themselves."""
    validation: int
    """Images of each target class that a fold keeps from training while options are chosen."""
    device: str = "cpu"


SCALES = {
    "cpu": Scale(
        (32, 64, 128, 256),
        56,
        48,
        Recipe(iterations=4700, batch_size=128, learning_rate=0.1, weight_decay=5e-4, crop=48),
        iterations=800,
        seeds=5,
        sweep_seeds=3,
        validation=8,
    ),
    "gpu": Scale(
        (64, 128, 256, 512),
        64,
        56,
        Recipe(iterations=12_000, batch_size=256, learning_rate=0.2, weight_decay=5e-4, crop=56),
        iterations=3000,
        seeds=5,
        sweep_seeds=3,
        validation=8,
        device="cuda",
    ),
}

RATES = (0.001, 0.003, 0.006, 0.01, 0.03, 0.1)
PAIR = "one round"
SINGLE_RATES = (0.003, 0.01, 0.03)


def _grid(rates: Sequence[float], **options: Sequence[Any]) -> list[dict[str, Any]]:
    names = ["learning_rate", *options]
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product(rates, *options.values())
    ]


GRIDS: Mapping[str, list[dict[str, Any]]] = {
    "finetune": _grid(RATES),
    "l2sp": _grid(SINGLE_RATES, alpha=(0.001, 0.01)),
    "bss": _grid(SINGLE_RATES, eta=(0.001, 0.01)),
    "seqtrain": _grid(RATES),
    "cotrain": _grid(SINGLE_RATES, source_weight=(0.3, 1.0)),
    "mixup": _grid(SINGLE_RATES, alpha=(0.2, 1.0)),
    "xmixup": _grid(SINGLE_RATES, loader_alpha=(1.0, 4.0)),
    "gradmix": _grid(SINGLE_RATES, gamma=(1.0, 4.0)),
}
"""Six combinations for each method. ``loader_alpha`` is that of λ ~ Beta(alpha, 1)."""


@dataclass(frozen=True)
class Row:
    """A line of a table: a method and what it trains on."""

    name: str
    method: str
    pairing: str = PAIR
    fixed: tuple[tuple[str, Any], ...] = ()
    """Options beside those of the grid."""
    like: str | None = None
    """Takes the options chosen for this row. Others: methods choose, ablations take `UNIFORM`."""
    folds: int = FOLDS
    """Of the cross-validation."""


METHOD_ROWS = (
    Row("L2", "finetune"),
    Row("L2-SP", "l2sp"),
    Row("BSS", "bss"),
    Row("Seq-Train", "seqtrain"),
    Row("Co-Train", "cotrain"),
    Row("Mixup", "mixup"),
    # A step costs four of the others'; with one fold it still has the largest tuning budget.
    Row("GradMix, two sources", "gradmix", pairing="two sources", folds=1),
    Row("XMixup", "xmixup"),
)
ABLATION_BASE = "XMixup, α = 1, rate 0.01"
"""What ablations, and other sizes of the auxiliary set, differ from in one thing."""
UNIFORM = {"learning_rate": 0.01, "loader_alpha": 1.0}
"""Its options: λ is uniform, so that the source weighs as much as the target."""
ABLATION_ROWS = (
    Row("XMixup, joint head", "xmixup", fixed=(("heads", "joint"),)),
    Row("XMixup, one λ a batch", "xmixup", fixed=(("lam", "batch"),)),
    Row("XMixup, w/o Label", "xmixup", fixed=(("source_labels", False),)),
    Row("XMixup, new source head", "xmixup", fixed=(("head_start", False),)),
    Row("XMixup, random classes", "xmixup", pairing="random"),
    Row("XMixup, random images", "xmixup", pairing="random-images"),
)
LONGER = (2,)
LONGER_ROWS = tuple(
    Row(f"{name}, {times} x the iterations", method, fixed=(("times", times),), like=name)
    for times in LONGER
    for name, method in (("L2", "finetune"), ("XMixup", "xmixup"))
)
CLEAN_ROWS = tuple(
    Row(f"{name}, clean statistics", method, fixed=(("clean_statistics", True),), like=name)
    for name, method in (("L2", "finetune"), ("XMixup", "xmixup"))
)
SWEEP_RATES = (0.003, 0.01)
ALPHAS = (0.5, 1.0, 2.0, 4.0, 16.0)
SIZES = (0.25, 0.5, 2.0, 3.0)
"""Source images, as multiples of those that one round selects."""


class SmallResNet(nn.Module):
    """A residual network of one block a stage with a linear classifier."""

    def __init__(self, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for number, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            layers.append(_Block(inputs, outputs, 1 if number == 0 else 2))
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(images))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if (inputs, stride) != (outputs, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def run(name: str, source: Path, target: Path, work: Path, jobs: int, path: Path) -> None:
    """Train everything that ``work`` does not hold yet, and write the JSON."""
    scale = SCALES[name]
    work.mkdir(parents=True, exist_ok=True)
    prepare(source, target, scale, work)
    pretrain(scale, work)
    selected = pair(scale, work)
    runs = trainings(scale, work, jobs)
    chosen = {row.name: choose(row, runs) for row in METHOD_ROWS}
    tasks = []
    for row in METHOD_ROWS:
        tasks += final_tasks(row, chosen[row.name], scale.seeds)
    sizes = [Row(f"XMixup, {s:g} x", "xmixup", pairing=f"{s:g} x") for s in SIZES]
    sweeps = [
        Row(
            f"XMixup, α = {a:g}, rate {r:g}",
            "xmixup",
            fixed=(("learning_rate", r), ("loader_alpha", a)),
        )
        for r, a in itertools.product(SWEEP_RATES, ALPHAS)
    ]
    others = (*sweeps, *LONGER_ROWS, *CLEAN_ROWS, *ABLATION_ROWS, *sizes)
    for row in others:
        tasks += final_tasks(row, chosen[row.like] if row.like else UNIFORM, scale.sweep_seeds)
    done = runs.of(tasks)

    def accuracies(row: Row) -> list[float]:
        return [
            done[key]["accuracy"]
            for key in (task_key(t) for t in tasks)
            if json.loads(key)["row"] == row.name
        ]

    rows = (*METHOD_ROWS, *others)
    result = {
        "benchmark": "transfer_accuracy",
        "machine": machine.describe(),
        "configuration": {
            "scale": name,
            "rounds": scale.seeds,
            **dataclasses.asdict(scale),
            "selected": selected,
            "grids": GRIDS,
            "folds": FOLDS,
            "finalists": FINALISTS,
            "first_fold_seed": TUNING_SEED,
            "longer": LONGER,
            "ablation_base": ABLATION_BASE,
        },
        "pretrained": json.loads((work / "pretraining" / "result.json").read_text())["accuracy"],
        "chosen": chosen,
        "validation": {row.name: tried(row, runs) for row in METHOD_ROWS},
        "accuracy": {row.name: accuracies(row) for row in rows},
        "model": what_it_does_to_the_model(scale, work, chosen),
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row.name:26} {100 * statistics.mean(accuracies(row)):.2f} %")
    print(f"{path} written")


def prepare(source: Path, target: Path, scale: Scale, work: Path) -> None:
    """Betons: source and target, train and test; the target's parts for choosing options."""
    shared = {p.name for p in (source / "train").iterdir()} & {
        p.name for p in (target / "train").iterdir()
    }
    if shared:
        raise SystemExit(f"{source} and {target} share the class {min(shared)}; separate them")
    parts: dict[str, Any] = {
        f"{name}-{part}": open_images(folder / part)
        for name, folder in (("source", source), ("target", target))
        for part in ("train", "test")
    }
    for fold in range(FOLDS):
        names = (f"target-fit-{fold}", f"target-validation-{fold}")
        parts |= zip(names, divided(parts["target-train"], fold, scale.validation), strict=True)
    names = parts["source-train"].class_names or []
    for number, part in enumerate((names[::2], names[1::2])):
        parts[f"source-half-{number}"] = select(parts["source-train"], classes=part)
    for name, images in parts.items():
        path = work / f"{name}.beton"
        if not path.exists():
            write_beton(images, path, image_size=scale.image_size, encoding="raw")


def divided(images: ClassFolder, fold: int, size: int) -> tuple[Subset, Subset]:
    """Each class without the images of a fold, and these; folds share none."""
    labels = images.labels()
    random = np.random.default_rng(0)
    held = np.concatenate(
        [
            random.permutation(np.flatnonzero(labels == label))[fold * size : (fold + 1) * size]
            for label in range(len(images.class_names))
        ]
    )
    kept = np.setdiff1d(np.arange(len(labels)), held)
    classes = range(len(images.class_names))
    return (
        Subset(images, kept, labels[kept], classes),
        Subset(images, np.sort(held), labels[np.sort(held)], classes),
    )


def pretrain(scale: Scale, work: Path) -> None:
    """The backbone, from scratch on the source."""
    torch.manual_seed(0)
    classes = len(Beton(work / "source-train.beton").class_names)
    fit(
        FineTune(),
        SmallResNet(classes, scale.widths),
        work / "source-train.beton",
        test=work / "source-test.beton",
        recipe=scale.pretraining,
        device=scale.device,
        output=work / "pretraining",
        progress=True,
    )


def pretrained(scale: Scale, work: Path) -> SmallResNet:
    """What `pretrain` made, as a classifier of the source."""
    saved = torch.load(work / "pretraining" / "model.pt", weights_only=True)
    network = SmallResNet(len(saved["target_classes"]), scale.widths)
    state = {
        key.replace("backbone.", "").replace("target_head.", "fc."): value
        for key, value in saved["network"].items()
    }
    network.load_state_dict(state)
    return network.eval()


def pair(scale: Scale, work: Path) -> dict[str, int]:
    """The pairings, and how many source images each selects."""
    network = pretrained(scale, work)

    def centroids(*names: str) -> Any:
        return class_centroids(
            [work / f"{name}.beton" for name in names],
            network,
            device=scale.device,
            crop=CenterCrop(scale.crop),
            cache=work / "features",
        )

    target, source = centroids("target-train"), centroids("source-train")
    pairings = {PAIR: pair_classes(target, source)}
    pairings["two sources"] = pair_classes(target, centroids("source-half-0", "source-half-1"))
    for method in ("random", "random-images"):
        pairings[method] = pair_classes(target, source, method=method)
    for size in SIZES:
        images = int(size * pairings[PAIR].num_images)
        pairings[f"{size:g} x"] = pair_classes(target, source, num_images=images)
    for name, pairing in pairings.items():
        pairing.save(work / f"pairing {name}.json")
    return {name: pairing.num_images for name, pairing in pairings.items()}


def task(row: Row, options: Mapping[str, Any], seed: int, train: str, test: str) -> dict[str, Any]:
    """One training, as plain values."""
    return {
        "row": row.name,
        "method": row.method,
        "pairing": row.pairing,
        "seed": seed,
        "train": train,
        "test": test,
        "options": {**options, **dict(row.fixed)},
    }


def final_tasks(row: Row, options: Mapping[str, Any], seeds: int) -> list[dict[str, Any]]:
    """A row's trainings on all of the target."""
    return [task(row, options, seed, "target-train", "target-test") for seed in range(seeds)]


def tried(row: Row, runs: Runs) -> list[dict[str, Any]]:
    """Each combination of options with its accuracy in the folds that it saw."""
    grids = GRIDS[row.method]

    def of(seen: Sequence[tuple[int, int]]) -> dict[tuple[int, int], float]:
        """Accuracy by combination and fold."""
        tasks = [
            task(
                row, grids[n], TUNING_SEED + fold, f"target-fit-{fold}", f"target-validation-{fold}"
            )
            for n, fold in seen
        ]
        done = runs.of(tasks)
        return {
            place: done[task_key(one)]["accuracy"] for place, one in zip(seen, tasks, strict=True)
        }

    accuracy = of([(n, 0) for n in range(len(grids))])
    best = sorted(range(len(grids)), key=lambda n: accuracy[n, 0], reverse=True)[:FINALISTS]
    accuracy |= of([(n, fold) for n in best for fold in range(1, row.folds)])
    return [
        {
            "options": options,
            "accuracy": [accuracy[n, fold] for fold in range(FOLDS) if (n, fold) in accuracy],
        }
        for n, options in enumerate(grids)
    ]


def choose(row: Row, runs: Runs) -> dict[str, Any]:
    """The finalist with the highest mean accuracy over all folds."""
    finalists = [one for one in tried(row, runs) if len(one["accuracy"]) == row.folds]
    options: dict[str, Any] = max(finalists, key=lambda one: statistics.mean(one["accuracy"]))[
        "options"
    ]
    return options


def trainings(scale: Scale, work: Path, jobs: int) -> Runs:
    """What is done, kept in a file of ``work``, and processes that do more."""
    path = work / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []

    def keep(line: Mapping[str, Any]) -> None:
        with path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    return Runs(map(json.loads, lines), keep, train, (scale, work), jobs)


def train(one: Mapping[str, Any], scale: Scale, work: Path) -> dict[str, Any]:
    """Accuracy of one training."""
    return {"accuracy": fine_tuned(one, scale, work).accuracy}


def fine_tuned(one: Mapping[str, Any], scale: Scale, work: Path) -> Any:
    """The network and accuracy of one training, in one thread."""
    if scale.device == "cpu":
        torch.set_num_threads(1)
    options = dict(one["options"])
    recipe = Recipe(
        iterations=scale.iterations * options.pop("times", 1),
        crop=scale.crop,
        seed=one["seed"],
        learning_rate=options.pop("learning_rate"),
        alpha=options.pop("loader_alpha", 1.0),
        clean_statistics=options.pop("clean_statistics", False),
    )
    names = {"two sources": ["source-half-0", "source-half-1"]}.get(
        one["pairing"], ["source-train"]
    )
    sources = [work / f"{name}.beton" for name in names]
    rows = None
    if options.pop("head_start", True):
        # The backbone was trained on the source: its classifier has the classes in beton's order.
        known = Beton(work / "source-train.beton").class_names
        rows = [known.index(name) for path in sources for name in Beton(path).class_names]
    return fit(
        METHODS[one["method"]](**options),
        pretrained(scale, work),
        work / f"{one['train']}.beton",
        source=sources,
        pairing=work / f"pairing {one['pairing']}.json",
        source_rows=rows,
        test=work / f"{one['test']}.beton",
        recipe=recipe,
        device=scale.device,
        num_workers=1,
    )


def what_it_does_to_the_model(
    scale: Scale, work: Path, chosen: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Table 2 and Fig. 2: source classes that a probe still tells, and singular values.

    Of the pre-trained network, and of those that L2 and XMixup made with seed 0. A linear probe is
    trained on the features of SOURCE/train and tested on SOURCE/test: on the classes that the
    pairing uses, on the others, and on all.
    """
    rows = {row.name: row for row in METHOD_ROWS}
    used = set(Pairing.load(work / f"pairing {PAIR}.json").source_classes)
    networks: dict[str, nn.Module] = {"pre-trained": pretrained(scale, work)}
    for name in ("L2", "XMixup"):
        one = final_tasks(rows[name], chosen[name], 1)[0]
        networks[name] = fine_tuned(one, scale, work).network.backbone
    names = Beton(work / "source-train.beton").class_names
    groups = {
        "auxiliary classes": [i for i, n in enumerate(names) if n in used],
        "other classes": [i for i, n in enumerate(names) if n not in used],
        "all classes": list(range(len(names))),
    }
    parts = [work / f"{name}.beton" for name in ("source-train", "source-test", "target-train")]
    options: dict[str, Any] = {"crop": CenterCrop(scale.crop), "device": scale.device}
    result = {}
    for name, network in networks.items():
        train, test, target = (features_of(network, part, **options) for part in parts)
        result[name] = probed(train, test, target, groups, scale.device)
    return result
