"""XMixLoader beside this machine's limits and the loaders that people use, in one table.

    python benchmarks/loader_throughput.py FOLDER [--rounds 7] [--json FILE]

FOLDER is a class folder of photographs. Every peer has a process of its own, told by this one to
run an epoch while all others wait: rounds are interleaved, and no row changes another's settings.
Peers need `pip install 'xmix_data[bench]'`; one that cannot be set up is said and left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import PIL
from peers import PEERS, Task
from PIL import features

from xmix_data import Beton, RandomCrop, RandomResizedCrop
from xmix_data.bench import TARGETS, Bench, Row, interleave, machine, ratios

SIZE = 224
CROPS = {"RandomCrop(224)": RandomCrop(SIZE), "RandomResizedCrop(224)": RandomResizedCrop(SIZE)}
PASSES = 3
"""Epochs of our rows in a round; a peer's is longer."""
JPG_JPG, RAW_JPG = "jpg + jpg, mixed", "raw + jpg, mixed"
COMPARED = (
    (JPG_JPG, "FFCV, one domain", 1.0),
    (JPG_JPG, "FFCV, one domain, uint8", None),
    (RAW_JPG, "FFCV, one domain", None),
    (JPG_JPG, "FFCV, two zipped", 1.8),
    (JPG_JPG, "FFCV, xmix_data.ffcv", None),
    (JPG_JPG, "TurboLoader, one domain", None),
    (JPG_JPG, "TurboLoader, two zipped", 1.5),
    (JPG_JPG, "DALI, CPU", 1.8),
    (JPG_JPG, "XMixLoader, DALI", None),
    (JPG_JPG, "torch DataLoader, Pillow", 4.0),
    (JPG_JPG, "torch DataLoader, TorchCodec", None),
    (JPG_JPG, "SPDL, TorchCodec", None),
)
"""Our row, a peer's, and how many times as fast ours should be, where the design says so."""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/loader_throughput.json")
    )
    options = parser.parse_args()
    with Bench.of(options.folder, passes=PASSES) as bench:
        bench.pairing.save(bench.jpg.path.with_name("pairing.json"))
        crops = {name: measure(name, bench, options.rounds) for name in CROPS}
        configuration = bench.configuration(options.rounds)
    del configuration["crop"]
    result = {
        "benchmark": "loader_throughput",
        "machine": machine.describe(),
        "configuration": configuration,
        "crops": crops,
    }
    for name, crop in crops.items():
        crop["ratios"] = all_ratios(name, crop["rates"])
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, crop in crops.items():
        print(f"\n{name}")
        for row, values in crop["rates"].items():
            spread = f"({min(values):.0f}-{max(values):.0f})"
            print(f"{row:32} {statistics.median(values):8.0f} {spread}")
        for what, value in crop["ratios"].items():
            print(f"{statistics.median(value['rounds']):6.2f}  {what} (asked: {value['asked']})")


def measure(crop: str, bench: Bench, rounds: int) -> dict[str, Any]:
    """Rates of all rows, limits first."""
    peers = {}
    for name in (*PEERS, *other_libjpegs()):
        peer = Peer(name, crop, bench)
        if peer.problem is None:
            peers[name] = peer
        else:
            print(f"{name} is left out: {peer.problem}")
    rows: dict[str, Row] = {
        **replace(bench, crop=CROPS[crop]).rows(),
        **{n: p.run for n, p in peers.items()},
    }
    try:
        rates = interleave(rows, rounds)
    finally:
        for peer in peers.values():
            peer.stop()
    return {"rates": rates}


def all_ratios(crop: str, rates: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """By name: what the design asks for, or nothing, and what each round had."""
    limits = TARGETS if crop == "RandomCrop(224)" else ()  # limits are of unscaled crops
    found: dict[str, dict[str, Any]] = {
        f"{t.row} / {t.against}": {"asked": t.share, "rounds": ratios(rates, t.row, t.expected)}
        for t in limits
    }
    if limits:
        rounds = ratios(rates, "mix alone", at("decode limit"))
        found["a decode / a mix, seconds"] = {"asked": 4.0, "rounds": rounds}
    for ours, peer, asked in COMPARED:
        if peer in rates:
            rounds = ratios(rates, ours, at(peer))
            found[f"{ours} / {peer}"] = {"asked": asked, "rounds": rounds}
    return found


def at(row: str) -> Callable[[Any], float]:
    """The rate of a row in a round."""
    return lambda rates: float(rates[row])


class Peer:
    """A process that runs epochs of one peer when it is told to."""

    def __init__(self, name: str, crop: str, bench: Bench) -> None:
        task = Task(
            str(bench.jpg.path),
            str(bench.jpg.path),
            str(bench.jpg.path.with_name("pairing.json")),
            batch_size=bench.batch_size,
            size=SIZE,
            resized=CROPS[crop].resizes,
            threads=bench.threads,
        )
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, task))
        with preloaded(other_libjpegs().get(name)):
            self._process.start()
        theirs.close()
        try:
            self.problem: str | None = self._pipe.recv()
        except EOFError:
            self.problem = "its process died"

    def run(self) -> tuple[int, float]:
        """One epoch."""
        self._pipe.send("run")
        count, seconds = self._pipe.recv()
        return count, seconds

    def stop(self) -> None:
        """End the process; some loaders' threads would not let it."""
        self._process.kill()
        self._process.join()


def other_libjpegs() -> dict[str, Path]:
    """The libjpeg-turbo in Pillow's wheel, by the name of the decode limit's row with it."""
    libraries = sorted(Path(PIL.__file__).parents[1].glob("pillow.libs/libjpeg-*.so*"))
    version = features.version("libjpeg_turbo")
    return {f"decode limit, libjpeg-turbo {version}": path for path in libraries}


@contextmanager
def preloaded(library: Path | None) -> Iterator[None]:
    """Have the processes that are started meanwhile take functions from a library first."""
    if library is not None:
        os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        os.environ.pop("LD_PRELOAD", None)


def decode_limit(task: Task) -> Callable[[], int]:
    """The decode limit in this process, with the libjpeg-turbo that is loaded here."""
    beton = Beton(task.target)
    bench = Bench(beton, beton, batch_size=task.batch_size, threads=task.threads, passes=PASSES)
    row = bench.decode_limit()
    return lambda: row()[0]


def serve(pipe: Connection, name: str, task: Task) -> None:
    """Set a peer up, then run an epoch whenever one is asked for."""
    try:
        epoch = decode_limit(task) if name in other_libjpegs() else PEERS[name](task)
        epoch()
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(None)
    while pipe.recv() == "run":
        started = time.perf_counter()
        count = epoch()
        pipe.send((count, time.perf_counter() - started))


if __name__ == "__main__":
    main()
