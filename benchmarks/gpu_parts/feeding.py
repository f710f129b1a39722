"""Part feeding: how many host threads feed a training GPU; `benchmarks/feeding.py`, in less time.

Goes out under ``rows``, as there: pairs a second of the loader alone, the cores it kept busy, and
milliseconds of a step that it feeds, by kind of pair, backend and threads; and those of the same
step on a batch that stays on the device. ``explained``: who waited for whom.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from feeding import BACKENDS, make_loader, timed, training_step

from gpu_parts.data import SIZE, prepare
from gpu_parts.record import DATA, Figures, Options, in_turn
from xmix_data import Beton, MixedBatch, XMixLoader
from xmix_data.backends.dali_pipeline import load
from xmix_data.bench import Bench, explain
from xmix_data.errors import MissingDependencyError

HOST, DALI = BACKENDS
THREADS = {HOST: (2, 4, 8, 16), DALI: (2, 8)}
"""Of DALI fewer: there is no time for all."""
THREADS_TINY = {HOST: (2,), DALI: (2,)}
ROUNDS, SECONDS = 7, 95.0
"""Rounds at most, and how long all but the first may take."""

Row = Callable[[], dict[str, float]]


def run(options: Options) -> bool:
    """Measure all rows in turn."""
    prepare(options)
    jpg, raw = Beton(DATA / "jpg.beton"), Beton(DATA / "raw.beton")
    tiny = options.tiny
    settings = SimpleNamespace(
        device=options.device,
        model="resnet18" if tiny else "resnet50",
        dtype="float32" if tiny else "bfloat16",
        batch_size=4 if tiny else 256,
        image_size=SIZE,
        crop=32 if tiny else 224,
        steps=2 if tiny else 20,
        rounds=1 if tiny else ROUNDS,
    )
    size = int(jpg.sizes.mean())
    figures = Figures("feeding", options, {**vars(settings), "jpg_bytes_per_image": size})
    threads = dict(THREADS_TINY if tiny else THREADS)
    try:
        load(torch.device(options.device))
    except MissingDependencyError as error:
        del threads[DALI]
        figures.save("dali", f"left out: {error}")
    loaders: dict[str, XMixLoader] = {}
    pairing = Bench(jpg, jpg).pairing
    for pair, target in (("jpg + jpg", jpg), ("raw + jpg", raw)):
        for backend, counts in threads.items():
            for count in counts:
                name = f"{pair}, {backend}, {count} threads"
                try:
                    loaders[name] = make_loader(settings, target, jpg, pairing, backend, count)
                except Exception as error:
                    figures.error(name, error)
    with make_loader(settings, jpg, jpg, pairing, HOST, threads[HOST][-1]) as loader:
        resident = next(iter(loader))
    rows = make_rows(settings, loaders, resident, len(jpg.class_names))
    for runs in in_turn(figures, rows, rounds=settings.rounds, seconds=SECONDS):
        figures.save("rows", runs)
    figures.save("explained", {name: explain(one.stats()) for name, one in loaders.items()})
    if DALI in threads:
        refused = {name: one._backend.refused for name, one in loaders.items() if DALI in name}
        figures.save("refused_by_dali", refused)
    return not figures.failed


def make_rows(
    settings: Any, loaders: Mapping[str, XMixLoader], resident: MixedBatch, classes: int
) -> dict[str, Row]:
    """Training alone, and each loader alone and training."""
    step = training_step(settings, classes)
    rows: dict[str, Row] = {
        "resident batch, training": lambda: timed(settings, itertools.repeat(resident), step)
    }
    for name, loader in loaders.items():
        rows[f"{name}, alone"] = lambda loader=loader: timed(settings, loader, None)
        rows[f"{name}, training"] = lambda loader=loader: timed(settings, loader, step)
    return rows
