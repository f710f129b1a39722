"""What mutated files do: betons, manifests, pairings, centroids, feature caches and images.

    python tests/fuzzing.py [--cases 60000] [--seed 0] [--only KIND ...] [--workers 2]
                                 [--case KIND:NUMBER] [--sanitize] [--json FILE]

Each case goes the way of a user's file: open, verify, load an epoch. It must end in one clear
error that names the file, or in the batches that the reference backend makes of the same file.
A conversion is given image files of every format, and the decoder JPEGs of any sampling; they are
held against Pillow. Anything else is a finding: another exception, a warning, a signal, a hang,
memory out of proportion to the file, pixels that differ. A case is a function of (seed, kind,
number), and ``--case`` shows it alone, in this process.

Mapped files, streams and the kernels' buffers lie against pages that nobody may touch: one byte
too far is a signal. ``--sanitize`` runs a part once more with bounds checks in the kernels
(NUMBA_BOUNDSCHECK), and with ``_jpeg.c`` compiled by gcc with ASan and UBSan.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import itertools
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from fuzz.memory import status_mb
from fuzz.ways import GROWTH_A_BYTE, GROWTH_MB, KINDS, UNCHANGED, Case, Verdict, judge, unchanged

import xmix_data
from xmix_data.bench import machine

SHARES = {
    "index": 7000,
    "data": 7000,
    "manifest": 4000,
    "pairing": 4000,
    "centroids": 3000,
    "feature cache": 2000,
    "jpeg": 8000,
    "sampling": 12000,
    "conversion": 13000,
}
"""Cases by kind, of 60,000."""
HANG_S = 20.0
DATA_LIMIT_MB = 512
"""What a worker may ask for beyond what it had at its start."""
SANITIZED_SHARE = 5
"""One case in so many is run once more under each checker."""


class Worker:
    """A forked process that judges one case after the other."""

    def __init__(self, seed: int, folder: Path, growth_mb: float | None) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.log = folder / f"{self.folder.name}.log"
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, seed, self.folder, self.log, growth_mb), daemon=True
        )
        self.process.start()
        theirs.close()
        self.case: Case | None = None
        self.started = 0.0

    def begin(self, case: Case) -> None:
        self.case, self.started = case, time.monotonic()
        self.pipe.send(case)

    def verdict(self) -> Verdict | None:
        """What came of the case; ``None`` while it runs."""
        try:
            if self.pipe.poll():
                verdict: Verdict = self.pipe.recv()
                return verdict
        except EOFError:
            self.process.join()
            return Verdict("finding", f"{self._death()}: {self._last_words()}")
        if time.monotonic() - self.started > HANG_S:
            self.process.kill()
            return Verdict("finding", f"hangs for {HANG_S:.0f} s: {self._last_words()}")
        return None

    def _death(self) -> str:
        code = self.process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        """The stack, the innermost frames first."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        told = [x.strip() for x in lines if "File " in x or "ERROR" in x or "runtime error" in x]
        return "; ".join(told[:6])[:600]

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def serve(pipe: Connection, seed: int, folder: Path, log: Path, growth_mb: float | None) -> None:
    """The worker's side."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # dies with its parent
    torch.set_num_threads(1)
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 2)
    faulthandler.disable()  # its handlers are set anew: a library may have put others over them
    faulthandler.enable(2)
    gc.collect()  # garbage of the parent, freed during a case, would hide what the case takes
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)
    if growth_mb is not None:
        limit = int(status_mb("VmData") + DATA_LIMIT_MB) << 20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warm_up(folder)  # what is read of libraries for the first time is no case's memory
    with contextlib.suppress(EOFError):
        while True:
            case = pipe.recv()
            faulthandler.dump_traceback_later(0.9 * HANG_S, file=2)
            verdict = judge(case, seed, folder, growth_mb)
            faulthandler.cancel_dump_traceback_later()
            pipe.send(verdict)


def run(
    cases: Iterable[Case], seed: int, workers: int = 1, growth_mb: float | None = GROWTH_MB
) -> Iterator[tuple[Case, Verdict]]:
    """Judge cases in processes of their own; one that dies is a finding, and another takes over."""
    todo, pool = deque(cases), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            pool = [Worker(seed, folder, growth_mb) for _ in range(min(workers, len(todo)))]
            while todo or any(worker.case for worker in pool):
                for place, worker in enumerate(pool):
                    verdict = worker.verdict() if worker.case else None
                    if worker.case and verdict:
                        yield worker.case, verdict
                        worker.case = None
                        if verdict.outcome == "finding":  # it may have left anything behind
                            worker.end()
                            pool[place] = worker = Worker(seed, folder, growth_mb)
                    if worker.case is None and todo:
                        worker.begin(todo.popleft())
                wait([worker.pipe for worker in pool if worker.case], timeout=1)
        finally:
            for worker in pool:
                worker.end()


def warm_up(folder: Path) -> None:
    """Load sound files in many ways, so that they are made, and all kernels compiled."""
    for kind, number in itertools.product(KINDS, range(0, 8 * UNCHANGED, UNCHANGED)):
        verdict = judge(Case(kind, number), 0, folder, None)
        if verdict.outcome != "right":
            raise RuntimeError(f"{kind}: the sound file is {verdict}")


def chosen_cases(count: int, kinds: Sequence[str]) -> list[Case]:
    """Cases of all kinds by `SHARES`, one kind after the other."""
    total = sum(SHARES[kind] for kind in kinds)
    return [Case(kind, n) for kind in kinds for n in range(-(-count * SHARES[kind] // total))]


def summed_up(cases: Iterable[tuple[Case, Verdict]], progress: Callable[[int], None]) -> Any:
    """Outcomes by kind, and all findings."""
    kinds: dict[str, Counter[str]] = {}
    findings, started = [], time.monotonic()
    for number, (case, verdict) in enumerate(cases):
        counts = kinds.setdefault(case.kind, Counter())
        counts.update(["cases", verdict.outcome])
        counts.update(["unchanged"] if unchanged(case) else [])
        if verdict.outcome == "finding":
            findings.append({"case": str(case), "what": verdict.detail})
            print(f"{case}: {verdict.detail}", flush=True)
        progress(number + 1)
    names = ("cases", "unchanged", "right", "error", "outside", "replaced", "finding")
    return {
        "kinds": {kind: {name: counts[name] for name in names} for kind, counts in kinds.items()},
        "findings": findings,
        "seconds": round(time.monotonic() - started, 1),
    }


def checked_runs(options: argparse.Namespace) -> dict[str, Any]:
    """The kinds that reach the kernels once more, in processes with checkers of their own."""
    count = str(-(-options.cases // SANITIZED_SHARE))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bounds = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(folder / "kernels")}
        shutil.copytree(
            Path(xmix_data.__file__).parent,
            folder / "xmix_data",
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        )
        compile_sanitized(folder / "xmix_data")
        runtime = subprocess.check_output(["gcc", "-print-file-name=libasan.so"], text=True).strip()
        address = {
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "PYTHONPATH": str(folder),
            "NUMBA_CACHE_DIR": str(folder / "kernels of asan"),
        }
        made = {}
        for name, what, settings in (
            ("bounds", "kernels compiled with NUMBA_BOUNDSCHECK=1", bounds),
            (
                "address",
                "_jpeg.c with gcc -fsanitize=address,undefined; Debian's libjpeg-turbo is "
                "not instrumented, its allocations are ASan's",
                address,
            ),
        ):
            path = folder / f"{name}.json"
            command = [
                sys.executable,
                __file__,
                "--cases",
                count,
                "--seed",
                str(options.seed + 1),
                "--only",
                "index",
                "--only",
                "data",
                "--only",
                "jpeg",
                "--only",
                "sampling",
                "--no-memory-limit",
                "--workers",
                str(options.workers),
                "--json",
                str(path),
            ]
            subprocess.run(command, env={**os.environ, **settings}, check=True)
            document = json.loads(path.read_text())
            made[name] = {
                "what": what,
                "seed": options.seed + 1,
                **{key: document[key] for key in ("kinds", "findings", "seconds")},
            }
    return made


def compile_sanitized(package: Path) -> None:
    subprocess.run(
        [
            "gcc",
            "-g",
            "-O1",
            "-shared",
            "-fPIC",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
            package / "_jpeg.c",
            "-o",
            package / "_jpeg.abi3.so",
            "-ljpeg",
        ],
        check=True,
    )


def shown_progress(total: int) -> Callable[[int], None]:
    step = max(1, total // 20)
    return lambda n: print(f"{n} of {total} cases", flush=True) if n % step == 0 else None


def main() -> None:
    """Run the cases and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=sum(SHARES.values()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(KINDS))
    parser.add_argument("--case", help="KIND:NUMBER, in this process")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--no-memory-limit", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/fuzzing.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("xmix_data").setLevel(logging.ERROR)
    if options.case:
        kind, _, number = options.case.rpartition(":")
        with tempfile.TemporaryDirectory() as folder:
            faulthandler.enable()
            warm_up(Path(folder))
            print(judge(Case(kind, int(number)), options.seed, Path(folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:  # before processes are forked
        warm_up(Path(scratch))
    cases = chosen_cases(options.cases, options.only or list(KINDS))
    growth_mb = None if options.no_memory_limit else GROWTH_MB
    made = summed_up(
        run(cases, options.seed, options.workers, growth_mb), shown_progress(len(cases))
    )
    result = {
        "benchmark": "fuzzing",
        "machine": machine.describe(),
        "configuration": {
            "rounds": 1,
            "seed": options.seed,
            "cases": len(cases),
            "workers": options.workers,
            "hang_s": HANG_S,
            "data_limit_mb": DATA_LIMIT_MB,
            "growth_mb": GROWTH_MB,
            "growth_a_byte": GROWTH_A_BYTE,
        },
        **made,
        "checked": checked_runs(options) if options.sanitize else {},
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.json} written: {len(made['findings'])} findings")


if __name__ == "__main__":
    main()
