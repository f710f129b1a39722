"""XMixLoader beside this machine's limits and the loaders that people use, in one table.

    python benchmarks/loader_throughput.py FOLDER [--rounds 9] [--json FILE]

FOLDER is a class folder of photographs. Every peer has a process of its own, told by this one to
run an epoch while all others wait: rounds are interleaved, and no row changes another's settings.
Peers need `pip install 'xmix_data[bench]'`; one that cannot be set up is said and left out. With
``--append`` the rounds are added to those of an earlier run on the same machine: a machine that
others use as well takes more than one run to be seen.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from peers import PEERS, Task

from xmix_data import Beton, RandomCrop, RandomResizedCrop, machine, write_beton
from xmix_data.bench import TARGETS, Bench, Row, interleave, ratio

SIZE = 224
LEAST_IMAGES = 2000
"""Of an epoch: starting and ending one should weigh as little as with a real target set."""
CROPS = {"RandomCrop(224)": RandomCrop(SIZE), "RandomResizedCrop(224)": RandomResizedCrop(SIZE)}
JPG_JPG, RAW_JPG = "jpg + jpg, mixed", "raw + jpg, mixed"
COMPARED = (
    (RAW_JPG, "FFCV, one domain"),
    (JPG_JPG, "FFCV, two zipped"),
    (JPG_JPG, "DALI, CPU"),
    (JPG_JPG, "SPDL, TorchCodec"),
    (JPG_JPG, "torch DataLoader, TorchCodec"),
    (JPG_JPG, "torch DataLoader, Pillow"),
)
"""Our row and a peer's."""


class Repeated:
    """A map-style dataset: the images of a beton, several times over."""

    def __init__(self, beton: Beton, times: int) -> None:
        labels = np.tile(beton.labels, times)
        self._beton, self._order = beton, np.argsort(labels, kind="stable")
        self.classes, self.targets = beton.class_names, labels[self._order].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        data = self._beton.data(int(self._order[index]) % self._beton.num_samples)
        return data.tobytes(), self.targets[index]


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/loader_throughput.json")
    )
    parser.add_argument("--append", action="store_true", help="keep the rounds of the JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = prepare(options.folder, Path(scratch))
        crops = {name: measure(name, paths, options.rounds) for name in CROPS}
        configuration = make_bench("RandomCrop(224)", paths).configuration(options.rounds)
    del configuration["crop"]
    result = {
        "benchmark": "loader_throughput",
        "machine": machine.describe(),
        "configuration": configuration,
        "crops": crops,
    }
    if options.append:
        add(result, json.loads(options.json.read_text()))
    for name, crop in crops.items():
        crop["ratios"] = ratios(name, crop["rates"])
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, crop in crops.items():
        print(f"\n{name}")
        for row, values in crop["rates"].items():
            spread = f"({min(values):.0f}-{max(values):.0f})"
            print(f"{row:32} {statistics.median(values):8.0f} {spread}")
        for what, value in crop["ratios"].items():
            print(f"{value:6.2f}  {what}")


def prepare(folder: Path, scratch: Path) -> dict[str, str]:
    """Betons of the same JPEGs and their pixels, and a pairing."""
    photographs = write_beton(folder, scratch / "photographs.beton")
    repeated = Repeated(photographs, -(-LEAST_IMAGES // photographs.num_samples))
    paths = {encoding: str(scratch / f"{encoding}.beton") for encoding in ("keep", "raw")}
    for encoding, path in paths.items():
        write_beton(repeated, path, encoding=encoding)
    paths["pairing"] = str(scratch / "pairing.json")
    make_bench("RandomCrop(224)", paths).pairing.save(paths["pairing"])
    return paths


def make_bench(crop: str, paths: dict[str, str]) -> Bench:
    """What measures our own rows."""
    return Bench(Beton(paths["keep"]), Beton(paths["raw"]), crop=CROPS[crop])


def measure(crop: str, paths: dict[str, str], rounds: int) -> dict[str, Any]:
    """Rates of all rows, limits first."""
    peers = {}
    for name in PEERS:
        peer = Peer(name, crop, paths)
        if peer.problem is None:
            peers[name] = peer
        else:
            print(f"{name} is left out: {peer.problem}")
    rows: dict[str, Row] = {
        **make_bench(crop, paths).rows(),
        **{n: p.run for n, p in peers.items()},
    }
    try:
        rates = interleave(rows, rounds)
    finally:
        for peer in peers.values():
            peer.stop()
    return {"rates": rates}


def add(result: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Put the rounds of an earlier run before those of this one."""
    if earlier["machine"] != result["machine"]:
        raise SystemExit("the earlier run was made on another machine or with other versions")
    for name, crop in result["crops"].items():
        before = earlier["crops"][name]["rates"]
        if before.keys() != crop["rates"].keys():
            raise SystemExit("the earlier run has other rows")
        for row, values in crop["rates"].items():
            values[:0] = before[row]
    result["configuration"]["rounds"] += earlier["configuration"]["rounds"]


def ratios(crop: str, rates: dict[str, list[float]]) -> dict[str, float]:
    """What the design asks for, within each round."""
    targets = TARGETS if crop == "RandomCrop(224)" else ()  # limits are of unscaled crops
    found = {f"{t.row} / {t.against}": ratio(rates, t.row, t.expected) for t in targets}
    for ours, peer in COMPARED:
        if peer in rates:
            found[f"{ours} / {peer}"] = ratio(rates, ours, at(peer))
    if targets:
        found["a decode / a mix"] = ratio(rates, "mix alone", at("decode limit"))
    return found


def at(row: str) -> Callable[[Any], float]:
    """The rate of a row in a round."""
    return lambda rates: float(rates[row])


class Peer:
    """A process that runs epochs of one peer when it is told to."""

    def __init__(self, name: str, crop: str, paths: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, crop, paths))
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


def serve(pipe: Connection, name: str, crop: str, paths: dict[str, str]) -> None:
    """Set a peer up, then run an epoch whenever one is asked for."""
    task = Task(
        paths["keep"], paths["keep"], paths["pairing"], size=SIZE,
        resized=CROPS[crop].resizes, threads=machine.describe()["cores"],
    )  # fmt: skip
    try:
        epoch = PEERS[name](task)
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
