"""The paper's regime: pre-trained weights, few images of fine-grained classes, many epochs.

Comes in: sources and a target as class folders, and a backbone that was trained on ImageNet; a
source whose classes are named by WordNet ids starts its head from the backbone's classifier. Every
method fine-tunes the backbone for as many iterations. Two settings of each are tried, in shorter
trainings, on training images that are held out; the test images are seen by the better one, trained
on all images, and by the sweeps. Goes out: a JSON with the plan, written before the first training,
and a line for each training as soon as it has ended. Run again, it does what is missing there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accuracy_parts.probes import features_of, probed
from accuracy_parts.runs import Runs, Wanted, task_key
from xmix_data import Beton, CenterCrop, Pairing, class_centroids, pair_classes, write_beton
from xmix_data.backbones import Backbone, load_backbone
from xmix_data.bench import machine
from xmix_data.beton import open_images
from xmix_data.files import whole_file
from xmix_data.images import ClassFolder, Subset
from xmix_data.methods import METHODS, split_classifier
from xmix_data.training import Recipe, fit

__all__ = ["Regime", "run"]

PAIR = "one round"
RANDOM, SHORT, MORE = "random classes", "half the images", "twice the images"
FIRST = "first source alone"
SIZES = {SHORT: 0.5, MORE: 2.0}
"""Source images, as multiples of those that one round selects."""
HELD_SHARE = {"target": 0.2, "source": 0.15}
"""Of each class: target images that options are chosen on, and source images that probes see."""
STEPS_TAKEN = {"cotrain": 2, "seqtrain": 2, "gradmix": 4, "delta": 4 / 3}
"""What an iteration of a method costs, times plain fine-tuning's."""


@dataclass(frozen=True)
class Regime:
    """What all rows share."""

    iterations: int = 3000
    """Of every method; some rows have other numbers, up to `MOST_ITERATIONS`."""
    tuning_iterations: int = 500
    crop: int = 96
    batch_size: int = 48
    seeds: int = 5
    """Of the rows that matter; the others have one."""
    device: str = "cpu"
    compile: bool = False
    every_row: bool = False
    """Whether every method has all seeds."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the stored images: that of 256 to crops of 224."""
        return round(self.crop * 256 / 224)


GPU_THREADS = 2
"""CPU threads of a training on a GPU, and as many that load."""
MOST_ITERATIONS = 9000
"""The paper's."""
ON_A_GPU = Regime(
    iterations=MOST_ITERATIONS, tuning_iterations=1500, device="cuda", compile=True, every_row=True
)


@dataclass(frozen=True)
class Row:
    """A method and what it trains with."""

    name: str
    method: str
    alternatives: tuple[Mapping[str, Any], ...] = ()
    """Settings to choose from."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Options beside the chosen ones: of the recipe, and of the method."""
    like: str | None = None
    """Takes the settings chosen for this row."""
    pairing: str = PAIR
    matters: bool = False
    """Whether it has all seeds; the others have one."""
    times: float = 1
    """Iterations, as a multiple of the regime's."""


CLEAN_END = {"unmixed": 1 / 3, "clean_statistics": True}
L2, XMIXUP, XMIXUP_END = "L2", "XMixup", "XMixup, unmixed end"

MAIN_ROWS = (
    Row(L2, "finetune", ({"learning_rate": 0.01}, {"learning_rate": 0.003}), matters=True),
    Row(XMIXUP_END, "xmixup", fixed=CLEAN_END, like=XMIXUP, matters=True),
    Row(XMIXUP, "xmixup", ({"mix_alpha": 2.0}, {"mix_alpha": 8.0})),
)
OTHER_ROWS = (
    Row("Mixup", "mixup", ({"alpha": 0.2}, {"alpha": 1.0})),
    Row("L2-SP", "l2sp", ({"alpha": 0.01}, {"alpha": 0.001})),
    Row("BSS", "bss", ({"eta": 0.001}, {"eta": 0.01})),
    Row("DELTA", "delta", ({"alpha": 1e-4}, {"alpha": 1e-5})),  # 0.01 ends in a loss of nan here
    Row("Co-Tuning", "cotuning", ({"weight": 2.3}, {"weight": 0.5})),
    Row("Co-Train", "cotrain", ({"source_weight": 1.0}, {"source_weight": 0.3})),
    Row("Seq-Train", "seqtrain", ({"learning_rate": 0.01}, {"learning_rate": 0.003})),
    Row("GradMix, two sources", "gradmix"),  # a step costs four: it has its defaults
)
"""The methods, each with two settings to choose from."""


def _lengths() -> tuple[Row, ...]:
    return tuple(
        replace(
            row,
            name=f"{row.name}, {times:.3g} x the iterations",
            alternatives=(),
            like=row.like or row.name,
            matters=False,
            times=times,
        )
        for times in (1 / 6, 1 / 2, 3)
        for row in MAIN_ROWS[:2]
    )


def _half(name: str, fixed: Mapping[str, Any] | None = None, pairing: str = PAIR) -> Row:
    """XMixup with an unmixed end in half the iterations, changed in one thing."""
    options = {**CLEAN_END, **(fixed or {})}
    return Row(f"{HALF}, {name}", "xmixup", fixed=options, like=XMIXUP, pairing=pairing, times=0.5)


HALF = f"{XMIXUP_END}, 0.5 x the iterations"
"""What the next rows change one thing of; it is one of the lengths."""
SWEEPS = (
    *_lengths(),
    Row("Co-Train, 0.5 x the iterations", "cotrain", like="Co-Train", times=0.5),
    *(_half(f"α = {a:g}", {"mix_alpha": a}) for a in (1.0, 16.0, 64.0)),
    _half("w/o Label", {"source_labels": False}),
    _half("joint head", {"heads": "joint"}),
    *(_half(pairing, pairing=pairing) for pairing in (RANDOM, FIRST, SHORT, MORE)),
)
"""The number of iterations, as much compute as XMixup, α, labels, heads, the auxiliary set."""
GROUPS = (MAIN_ROWS, OTHER_ROWS, SWEEPS)
"""In order of value."""
LONG = 3
"""Trainings of plain fine-tuning: what takes as many comes behind what takes fewer."""
PROBED = (L2, XMIXUP, XMIXUP_END)
"""Rows whose first network is looked at, as the loaded one is."""


def run(
    regime: Regime,
    sources: Sequence[Path],
    target: Path,
    model: str,
    work: Path,
    jobs: int,
    paths: Sequence[Path],
    only: str = "",
    seconds: float = math.inf,
    every_seed: bool = False,
) -> None:
    """Train everything that the JSON does not hold yet.

    Args:
        regime: What all rows share.
        sources: Folders with the class folder ``train``; the first one is the one of `FIRST`.
        target: A folder with the class folders ``train`` and ``test``.
        model: The backbone, as `xmix train --model` takes it.
        work: Where betons and pairings go; made anew where they are not there.
        jobs: Number of trainings at a time.
        paths: Where the JSON goes; it is read from the first of them that exists.
        only: A regular expression for the names of the rows to train now; the others wait.
        seconds: How long there is; a training that would not end in time waits as well.
        every_seed: Whether these rows get all seeds, also where the plan has one.

    Raises:
        SystemExit: A training failed or was not begun; the others are kept.
    """
    until = time.monotonic() + seconds
    known = [row for rows in groups_of(regime) for row in rows]
    rows = [row for row in known if re.search(only, row.name)]
    if not rows:
        names = "; ".join(row.name for row in known)
        raise SystemExit(f"--only {only}: fits none of the rows: {names}")
    work.mkdir(parents=True, exist_ok=True)
    held = prepare(regime, sources, target, model, work)
    document = planned(regime, work, model, held, paths)

    def keep(line: Mapping[str, Any]) -> None:
        document["runs"].append(line)
        choices = ((row.name, chosen(row, regime, runs)) for row in known if row.alternatives)
        document["chosen"] = {name: options for name, options in choices if options is not None}
        write(paths, document)

    runs = Runs(document["runs"], keep, train, (regime, model, work), jobs, work_of)
    counted = [(row, regime.seeds if every_seed else seeds_of(row, regime)) for row in rows]
    problems = runs.do(wanted(counted, regime, runs), until - time.monotonic())
    for row, count in counted:
        finals = (final_task(row, seed, regime, runs) for seed in range(count))
        lines = [runs.line(one) for one in finals if one is not None]
        values = [line["accuracy"] for line in lines if line is not None]
        if values:
            print(f"{row.name:60} {100 * statistics.mean(values):.2f} %, n = {len(values)}")
    if "as loaded" not in document:
        backbone = load_backbone(model, "default")
        body, _ = split_classifier(backbone.network, regime.crop)
        document["as loaded"] = looked_at(body, backbone, regime, work)
        write(paths, document)
    if problems:
        raise SystemExit("\n".join(problems))


def wanted(rows: Sequence[tuple[Row, int]], regime: Regime, runs: Runs) -> list[Wanted]:
    """The trainings of rows, as many of each, in order of value, with those that choose settings.

    First come the rows that matter, with all their seeds; then a first seed of the others, what
    takes as long as several trainings last; then the others' further seeds.
    """
    final = [(row, seed) for row, count in rows for seed in range(count)]
    groups = groups_of(regime)

    def place(entry: tuple[Row, int]) -> tuple[bool, bool, int, int]:
        row, seed = entry
        group = next(number for number, group in enumerate(groups) if row in group)
        return bool(seed) and not row.matters, _trainings(row) >= LONG, group, seed

    ordered: list[Wanted] = []
    seen: set[str] = set()
    for row, seed in sorted(final, key=place):
        chooser = _chooser(row, regime)
        if chooser.name not in seen:
            seen.add(chooser.name)
            ordered += [partial(dict, one) for one in tuning_tasks(chooser, regime)]
        ordered.append(partial(final_task, row, seed, regime, runs))
    return ordered


def groups_of(regime: Regime) -> list[list[Row]]:
    """The groups, without what would be longer than the paper's trainings."""
    return [
        [row for row in rows if row.times * regime.iterations <= MOST_ITERATIONS] for rows in GROUPS
    ]


def _trainings(row: Row) -> float:
    """How much one training of a row is, in trainings of plain fine-tuning."""
    return STEPS_TAKEN.get(row.method, 1) * row.times


def seeds_of(row: Row, regime: Regime) -> int:
    """How many trainings of a row differ by their seed alone."""
    every = row.matters or (regime.every_row and row in (*MAIN_ROWS, *OTHER_ROWS))
    return regime.seeds if every else 1


def planned(
    regime: Regime, work: Path, model: str, held: Mapping[str, Any], paths: Sequence[Path]
) -> dict[str, Any]:
    """The document: as it is, with rows that the script has now; or one with no training yet."""
    pairings = {
        p.stem.removeprefix("pairing "): Pairing.load(p)
        for p in sorted(work.glob("*.json"))
        if p.stem.startswith("pairing ")
    }
    configuration = {
        **asdict(regime),
        "rounds": regime.seeds,
        "image_size": regime.image_size,
        "model": model.rpartition("/")[2],
        "images": {p.stem: Beton(p).num_samples for p in sorted(work.glob("*.beton"))},
        "selected": {name: pairing.num_images for name, pairing in pairings.items()},
        "held_out": held,
        "rows": [asdict(row) for rows in groups_of(regime) for row in rows],
        "budget": budget(regime),
    }
    for path in filter(Path.exists, paths):
        document: dict[str, Any] = json.loads(path.read_text())
        before, now = document["configuration"], json.loads(json.dumps(configuration))
        apart = {key for key in {*before, *now} if before.get(key) != now.get(key)}
        trained = {run["task"]["row"] for run in document["runs"]}
        names = {row["name"] for row in now["rows"]}
        gone = [row for row in before["rows"] if row not in now["rows"]]
        # A row without a training may get other settings, and may not get lost.
        lost = [row for row in gone if row["name"] in trained or row["name"] not in names]
        if lost or apart - {"rows", "budget"}:
            raise SystemExit(
                f"{path}: holds trainings of another plan or other images; choose another --json, "
                "or delete it to begin anew"
            )
        later = [row for row in now["rows"] if row not in before["rows"]]
        if later:  # the budget stays that of the plan before the first training
            before["rows"] = [row for row in before["rows"] if row not in gone] + later
            document["added"] = [*document.get("added", []), *(row["name"] for row in later)]
        return document
    document = {
        "benchmark": "transfer_accuracy_pretrained",
        "machine": machine.describe(),
        "configuration": configuration,
        "chosen": {},
        "runs": [],
    }
    write(paths, document)
    return document


def budget(regime: Regime) -> dict[str, Any]:
    """What is to be trained, in trainings of plain fine-tuning, by row."""
    split: dict[str, float] = {}
    for row in (row for rows in groups_of(regime) for row in rows):
        cost = STEPS_TAKEN.get(row.method, 1)
        tuning = len(row.alternatives) * regime.tuning_iterations / regime.iterations
        split[row.name] = round(cost * (seeds_of(row, regime) * row.times + tuning), 2)
    return {
        "unit": f"plain fine-tuning, {regime.iterations} iterations",
        "total": round(sum(split.values()), 2),
        "split": split,
    }


def write(paths: Sequence[Path], document: Mapping[str, Any]) -> None:
    """Write the document whole."""
    for path in paths:
        with whole_file(path) as stream:
            stream.write((json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def prepare(
    regime: Regime, sources: Sequence[Path], target: Path, model: str, work: Path
) -> dict[str, list[str]]:
    """Write betons and pairings; return which target images were held out, by class."""
    parts: dict[str, Any] = {"target-test": open_images(target / "test")}
    images = open_images(target / "train")
    kept, held = divided(images, HELD_SHARE["target"])
    parts |= {"target-train": images, "target-fit": kept, "target-held": held}
    for number, folder in enumerate(sources):
        parts[f"source-{number}"], parts[f"probe-{number}"] = divided(
            open_images(folder / "train"), HELD_SHARE["source"]
        )
    with locked(work):
        for name, part in parts.items():
            path = work / f"{name}.beton"
            if not path.exists():
                write_beton(part, path, image_size=regime.image_size, encoding="raw")
        if not (work / f"pairing {PAIR}.json").exists():
            pair(regime, len(sources), model, work)
    names: dict[str, list[str]] = {}
    for index in range(len(held)):
        path = Path(held.where(index))
        names.setdefault(path.parent.name, []).append(path.name)
    return names


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """One process at a time."""
    with open(work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def divided(images: ClassFolder, share: float) -> tuple[Subset, Subset]:
    """Each class without a share of its images, at least one, and these."""
    labels, random = images.labels(), np.random.default_rng(0)
    held = []
    for label in range(len(images.class_names)):
        own = np.flatnonzero(labels == label)
        held.append(random.permutation(own)[: max(1, round(share * len(own)))])
    out = np.sort(np.concatenate(held))
    kept, classes = np.setdiff1d(np.arange(len(labels)), out), range(len(images.class_names))
    return Subset(images, kept, labels[kept], classes), Subset(images, out, labels[out], classes)


def pair(regime: Regime, sources: int, model: str, work: Path) -> None:
    """Write the pairings."""
    backbone = load_backbone(model, "default")

    def centroids(*names: str) -> Any:
        return class_centroids(
            [work / f"{name}.beton" for name in names],
            backbone,
            device=regime.device,
            crop=CenterCrop(regime.crop),
            cache=work / "features",
        )

    target = centroids("target-train")
    source = centroids(*(f"source-{number}" for number in range(sources)))
    made = {
        RANDOM: pair_classes(target, source, method="random"),
        FIRST: pair_classes(target, centroids("source-0")),
        PAIR: pair_classes(target, source),
    }
    for name, size in SIZES.items():
        made[name] = pair_classes(target, source, num_images=int(size * made[PAIR].num_images))
    for name, pairing in sorted(made.items(), key=lambda item: item[0] == PAIR):  # it comes last
        pairing.save(work / f"pairing {name}.json")


def tuning_tasks(row: Row, regime: Regime) -> list[dict[str, Any]]:
    """A training of each setting, on what is not held out."""
    return [
        {
            "row": row.name,
            "method": row.method,
            "pairing": row.pairing,
            "train": "target-fit",
            "test": "target-held",
            "seed": regime.seeds,  # none of the final trainings has it
            "iterations": regime.tuning_iterations,
            "options": {**row.fixed, **options},
        }
        for options in row.alternatives
    ]


def chosen(row: Row, regime: Regime, runs: Runs) -> dict[str, Any] | None:
    """The setting with the highest accuracy, of equal ones the first; ``None``: not known yet."""
    tasks = tuning_tasks(_chooser(row, regime), regime)
    if not tasks:
        return {}
    done = [line for line in map(runs.line, tasks) if line is not None]
    if len(done) < len(tasks):
        return None
    return dict(max(done, key=lambda line: line["accuracy"])["task"]["options"])


def _chooser(row: Row, regime: Regime) -> Row:
    """The row whose settings a row takes."""
    rows = (other for group in groups_of(regime) for other in group)
    return row if row.like is None else next(other for other in rows if other.name == row.like)


def final_task(row: Row, seed: int, regime: Regime, runs: Runs) -> dict[str, Any] | None:
    """A training on all target images; ``None`` as long as its settings are not chosen."""
    options = chosen(row, regime, runs)
    if options is None:
        return None
    return {
        "row": row.name,
        "method": row.method,
        "pairing": row.pairing,
        "train": "target-train",
        "test": "target-test",
        "seed": seed,
        "iterations": max(1, round(row.times * regime.iterations)),
        "options": {**options, **row.fixed},
    }


def work_of(one: Mapping[str, Any]) -> float:
    """How much a training is, in iterations of plain fine-tuning."""
    return float(STEPS_TAKEN.get(one["method"], 1) * one["iterations"])


def train(one: Mapping[str, Any], regime: Regime, model: str, work: Path) -> dict[str, Any]:
    """Do one training; accuracy, seconds, and for some rows what it did to the network."""
    torch.set_num_threads(1 if regime.device == "cpu" else GPU_THREADS)
    if regime.compile:  # a process trains many networks; past its limit Dynamo only warns
        torch._dynamo.config.recompile_limit = 64
    started = time.perf_counter()
    options = dict(one["options"])
    # L2-SP and others have an alpha of their own.
    of_recipe = {f.name for f in fields(Recipe)} - {"alpha", "beta"}
    recipe = Recipe(
        iterations=one["iterations"],
        batch_size=regime.batch_size,
        crop=regime.crop,
        seed=one["seed"],
        alpha=options.pop("mix_alpha", 1.0),
        compile=regime.compile,
        compile_mode="reduce-overhead",
        save_every=500 if regime.device == "cpu" else one["iterations"],  # a GPU would wait for it
        **{name: options.pop(name) for name in list(options) if name in of_recipe},
    )
    sources = sorted(work.glob("source-*.beton"))[: 1 if one["pairing"] == FIRST else None]
    backbone = load_backbone(model, "default")
    output = work / "running" / hashlib.sha256(task_key(one).encode()).hexdigest()[:16]
    result = fit(
        METHODS[one["method"]](**options),
        backbone,
        work / f"{one['train']}.beton",
        source=sources,
        pairing=work / f"pairing {one['pairing']}.json",
        test=work / f"{one['test']}.beton",
        recipe=recipe,
        device=regime.device,
        num_workers=1 if regime.device == "cpu" else GPU_THREADS,
        output=output,  # goes on where it was interrupted
    )
    shutil.rmtree(output)
    line = {
        "accuracy": result.accuracy,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu": machine.describe()["cpu"],
    }
    if one["row"] in PROBED and one["seed"] == 0:
        line["network"] = looked_at(result.network.backbone, backbone, regime, work)
    return line


def looked_at(network: Any, backbone: Backbone, regime: Regime, work: Path) -> dict[str, Any]:
    """Table 2 and Fig. 2: what a probe still tells of the source, and singular values."""
    options: dict[str, Any] = {
        "crop": CenterCrop(regime.crop),
        "device": regime.device,
        "mean": backbone.mean,
        "std": backbone.std,
        "num_workers": 1,
    }
    sources = sorted(work.glob("source-*.beton"))
    probes = [path.with_name(path.name.replace("source", "probe")) for path in sources]
    used = set(Pairing.load(work / f"pairing {PAIR}.json").source_classes)
    names = [name for path in sources for name in Beton(path).class_names]
    groups = {
        "auxiliary classes": [i for i, name in enumerate(names) if name in used],
        "other classes": [i for i, name in enumerate(names) if name not in used],
        "all classes": list(range(len(names))),
    }
    parts = (
        features_of(network, part, **options)
        for part in (sources, probes, work / "target-train.beton")
    )
    return probed(*parts, groups, regime.device)
