"""Part steps: what a training step costs, over whole epochs of a small target set.

Plain fine-tuning, XMixup and Co-Train, each fed by one batch that stays on the device (what
training alone takes) and by the loader, in turn. A fed row passes over all of a target of about
1,000 images in every round, several times, so that it pays for the ends of epochs. Goes out, by
case and row:

    ms            of a step, round by round
    times_plain   a step / a step of plain fine-tuning that is fed alike, within a round
    idle_share    1 - resident / fed within a round: how long the GPU waits for the loader
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import step_cost
import torch

from gpu_parts.data import SIZE, prepare
from gpu_parts.record import DATA, Figures, Options, in_turn
from xmix_data import Beton
from xmix_data.methods import METHODS

RESIDENT, FED = "resident batch", "xmix_data"
PLAIN = "finetune"
ROUNDS = 7
"""At most; ``ms`` has as many figures as there were."""


class Case(NamedTuple):
    """A network and a batch size."""

    model: str
    crop: int
    batch_size: int
    epochs: int
    """Of a row in a round."""
    seconds: float
    """For all rounds but the first."""
    compile: bool = False
    methods: tuple[str, ...] = (PLAIN, "xmixup", "cotrain")


CASES = {
    "batch 256": Case("resnet50", 224, 256, epochs=2, seconds=34),
    "resnet18 at 64 px, batch 48": Case("resnet18", 64, 48, epochs=5, seconds=12),
    "batch 48, compiled": Case(
        "resnet50", 224, 48, epochs=2, seconds=24, compile=True, methods=(PLAIN, "xmixup")
    ),
    "batch 48": Case("resnet50", 224, 48, epochs=1, seconds=24),
    # Its batches, twice as large, take half a minute of compiling more.
    "batch 48, compiled, Co-Train": Case(
        "resnet50", 224, 48, epochs=2, seconds=10, compile=True, methods=(PLAIN, "cotrain")
    ),
}
"""The most valuable first, and what takes long last: the part may be stopped."""
CASES_TINY = {"batch 8": Case("resnet18", 32, 8, epochs=1, seconds=0)}


def run(options: Options) -> bool:
    """Measure case after case."""
    prepare(options)
    data = SimpleNamespace(
        target=Beton(DATA / "target.beton"),
        source=[Beton(DATA / f"source-{number}.beton") for number in range(2)],
        pairing=DATA / "pairing.json",
    )
    cases = CASES_TINY if options.tiny else CASES
    rounds, dtype = (1, "float32") if options.tiny else (ROUNDS, "bfloat16")
    configuration = {
        "rounds": rounds,
        "device": options.device,
        "dtype": dtype,
        "image_size": SIZE,
        "target_images": data.target.num_samples,
        "loading_threads": step_cost.threads(options.device)["loading"],
        "cases": {name: case._asdict() for name, case in cases.items()},
    }
    figures = Figures("steps", options, configuration)
    for name, case in cases.items():
        settings = SimpleNamespace(
            **case._asdict(),
            device=options.device,
            dtype=dtype,
            steps=case.epochs * (data.target.num_samples // case.batch_size),
        )
        if options.cuda:
            torch.cuda.reset_peak_memory_stats()
        rows = make_rows(figures, f"{name}: ", settings, data)
        for runs in in_turn(figures, rows, rounds=rounds, seconds=case.seconds, prefix=f"{name}: "):
            figures.save(name, summary(runs, case.batch_size))
        rows.clear()
        if options.cuda:
            figures.save(f"{name}: peak_memory_GB", torch.cuda.max_memory_allocated() / 1e9)
            torch.cuda.empty_cache()
    return not figures.failed


def make_rows(
    figures: Figures, prefix: str, settings: Any, data: Any
) -> dict[str, Callable[[], float]]:
    """By method and feed: what trains for some epochs and returns the milliseconds of a step."""
    rows: dict[str, Callable[[], float]] = {}
    for name in settings.methods:
        method = METHODS[name]()
        (phase,) = method.phases
        try:
            learner = step_cost.Learner(settings, data, method, phase)
            for fed_by in (RESIDENT, FED):
                batches = step_cost.feed(fed_by, phase, settings, data)
                rows[f"{name}, {fed_by}"] = make_row(settings, learner, batches)
        except Exception as error:
            figures.error(prefix + name, error)
    return rows


def make_row(
    settings: Any, learner: step_cost.Learner, batches: Iterator[Any]
) -> Callable[[], float]:
    def row() -> float:
        started = time.perf_counter()
        for _ in range(settings.steps):
            learner.step(next(batches))
        if settings.device == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - started) / settings.steps

    return row


def summary(runs: dict[str, list[float]], batch_size: int) -> dict[str, dict[str, Any]]:
    """Raw figures, and what they say within the rounds."""
    rows = {}
    for name, times in runs.items():
        method, fed_by = name.split(", ")
        median = statistics.median(times)
        row: dict[str, Any] = {
            "ms": times,
            "median_ms": median,
            "images_per_s": 1000 * batch_size / median,
        }
        if plain := runs.get(f"{PLAIN}, {fed_by}"):
            row["times_plain"] = ratio(times, plain)
        if fed_by == FED and (resident := runs.get(f"{method}, {RESIDENT}")):
            row["idle_share"] = 1 - ratio(resident, times)
        rows[name] = row
    return rows


def ratio(ones: list[float], others: list[float]) -> float:
    """Median of the ratios within the rounds."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))
