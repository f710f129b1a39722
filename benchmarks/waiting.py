"""Who waits for whom: what a profiler sees of a training, and what it costs that it can.

    python benchmarks/waiting.py [--rounds 9] [--json FILE]

Two trainings on a CPU, one with a short step and one with a long one, are recorded by torch's
profiler for some steps; `make tables` draws the ranges of each thread. Then the loader alone runs
with its ranges, with none, and while the profiler records it, in turn: what counts is the CPU time
of all its threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from xmix_data import RandomCrop, XMixLoader
from xmix_data.backends import host, queue
from xmix_data.backends.profiling import ProfiledRange
from xmix_data.bench import Bench, Row, interleave, machine

ROOT = Path(__file__).parents[1]
BATCH, CROP, WORKERS = 48, 224, 2
WARM, BEGUN, SHOWN = 24, 6, 5
"""Steps before the profiler begins, until all threads have got over it, and in the trace."""
PASSES = 4
STEPS = {"a short step": 1, "a long step": 30}
"""Training steps by name: how often each goes over its images."""
STEP = "training step"
AS_THEY_ARE, NONE, RECORDING = "ranges, nobody looks", "no ranges", "ranges, recorded"


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/waiting.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Bench.of(crop=RandomCrop(CROP), batch_size=BATCH, threads=WORKERS, passes=PASSES) as bench:
        traces = {name: trace(bench, repeats) for name, repeats in STEPS.items()}
        per_cpu_second = {
            pair: interleave(rows(bench, pair), options.rounds)
            for pair in ("raw + raw, uint8 pairs", "jpg + jpg, mixed")
        }
        configuration = bench.configuration(options.rounds)
    result = {
        "benchmark": "waiting",
        "machine": machine.describe(),
        "configuration": {**configuration, "training_threads": 1},
        "traces": traces,
        "pairs_per_cpu_second": per_cpu_second,
        "us_per_range": min(timeit.repeat(empty_range, number=1000, repeat=100)) * 1000,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for pair, measured in per_cpu_second.items():
        for name in (AS_THEY_ARE, RECORDING):
            times = [b / a for a, b in zip(measured[name], measured[NONE], strict=True)]
            spread = f"({min(times):.3f}-{max(times):.3f})"
            print(f"{pair}: CPU time, {name} / none: {statistics.median(times):.3f} {spread}")


def trace(bench: Bench, repeats: int) -> dict[str, list[tuple[str, float, float]]]:
    """By thread: the ranges of some steps, each with its name, begin and end in milliseconds."""
    weight = torch.zeros((), requires_grad=True)
    with XMixLoader(
        bench.jpg,
        bench.jpg,
        bench.pairing,
        batch_size=BATCH,
        crop=bench.crop,
        num_workers=WORKERS,
    ) as loader:
        batches = endless(loader)
        for _ in range(WARM):
            step(next(batches), weight, repeats)
        config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
        with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as recorded:
            for _ in range(BEGUN + SHOWN):
                batch = next(batches)
                with record_function(STEP):
                    step(batch, weight, repeats)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(path))
            names = {each.native_id: each.name for each in threading.enumerate()}
            return ranges(json.loads(path.read_text())["traceEvents"], names)


def step(batch: Any, weight: torch.Tensor, repeats: int) -> None:
    """Stand for a training step: so many times over small images, forward and backward."""
    images = batch.images[:, :, ::4, ::4].contiguous()
    torch.stack([(images * weight).square().mean() for _ in range(repeats)]).sum().backward()
    weight.grad = None


def endless(loader: XMixLoader) -> Iterator[Any]:
    """Batches of epoch after epoch."""
    while True:
        yield from loader


def ranges(
    events: list[dict[str, Any]], names: dict[int | None, str]
) -> dict[str, list[tuple[str, float, float]]]:
    """Pick from a trace in Chrome's format what is drawn, by the threads' names."""
    named = [e for e in events if e["name"] == STEP or e["name"].startswith("xmix: ")]
    steps = sorted(event["ts"] + event["dur"] for event in named if event["name"] == STEP)
    start = steps[BEGUN - 1]
    named = [event for event in named if start < event["ts"] + event["dur"]]
    found: dict[str, list[tuple[str, float, float]]] = {}
    for event in sorted(named, key=lambda event: event["ts"]):
        thread = names[event["tid"]]
        thread = thread if thread.startswith("xmix-") else "training"
        begin, end = ((at - start) / 1000 for at in (event["ts"], event["ts"] + event["dur"]))
        begin = max(0.0, begin)
        found.setdefault(thread, []).append((event["name"], round(begin, 3), round(end, 3)))
    return dict(sorted(found.items(), key=lambda item: (item[0] != "training", item[0])))


def empty_range() -> None:
    """A range that nobody records, and nothing in it."""
    with ProfiledRange("xmix: plan"):
        pass


def rows(bench: Bench, pair: str) -> dict[str, Row]:
    """The loader alone, the ranges as they are, as nothing, and recorded."""
    sides = (bench.raw, bench.raw) if "raw" in pair else (bench.jpg, bench.jpg)
    row = bench.paired(*sides, mix="mixed" in pair)

    def under(context: Callable[[], Any]) -> Row:
        def run() -> tuple[int, float]:
            with context():
                started = time.process_time()
                count, _ = row()
                return count, time.process_time() - started

        return run

    return {AS_THEY_ARE: under(nullcontext), NONE: under(no_ranges), RECORDING: under(recording)}


@contextmanager
def no_ranges() -> Iterator[None]:
    """Have nothing in the place of each range."""
    nothing = nullcontext()
    for module in (host, queue):
        vars(module)["ProfiledRange"] = lambda name: nothing
    try:
        yield
    finally:
        for module in (host, queue):
            vars(module)["ProfiledRange"] = ProfiledRange


def recording() -> Any:
    """Torch's profiler, of all threads."""
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    return profile(activities=[ProfilerActivity.CPU], experimental_config=config)


if __name__ == "__main__":
    main()
