"""All that is measured on a GPU, in parts: each of them, or one after the other.

    python benchmarks/gpu.py [PART] [--photographs FOLDER] [--device cuda] [--tiny]

    all         the parts below, most valuable first, within $LIMIT seconds (default 600)
    versions    what is installed, and what the GPU says of itself
    tests       pytest -m gpu, as JUnit
    steps       ResNet-50 and a small network over whole epochs of 1,000 images: plain fine-tuning,
                XMixup and Co-Train, fed by a resident batch and by the loader; the GPU's idle share
    feeding     pairs a second to the device by host threads and backend, alone and in training
    pairing     cosines of 1,000 target and 21,841 source classes: FAISS, torch
    kernel      the device stage against a device copy; host to device; what the host pays
    smoke       fit(): methods, half precision, compiled, resumed, in a group of one process;
                centroids against the CPU's
    doctor      xmix doctor
    data        the betons that the others read; written when first needed, and kept
    accuracy    what the methods gain with pre-trained weights (see gpu_parts/accuracy.py); alone,
                as it takes data of its own, and all the time it is given

Every figure is written to $OUT/PART.json (default build/gpu) as soon as it is there: a part that is
stopped leaves what it had. What a GPU gave is a result of the project as well, and goes to
benchmarks/results/gpu_PART.json. Betons are in $DATA (default build/gpu/data, about a gigabyte).
$KIT_DATA: a folder with photos.beton, tiny-target.beton, tiny-source.beton and tiny-test.beton
instead of made-up pictures. The exit status is 1 where anything failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from gpu_parts.record import OUT, Options

PARTS = {
    "versions": 90,
    "tests": 110,
    "steps": 210,
    "feeding": 150,
    "pairing": 50,
    "kernel": 45,
    "smoke": 180,
    "doctor": 30,
}
"""In order of value, with the seconds that each may take at most."""
CHECKS = ("versions", "tests", "doctor")
"""The parts that are in one module."""

_LEAST_SECONDS = 12
"""A part that has less is not begun: it would hardly have started."""
_GRACE_SECONDS = 5
"""From being asked to end to being ended: pytest writes its JUnit."""


def main() -> int:
    """Run a part, or all."""
    description, _, more = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("all", *PARTS, "data", "accuracy")
    parser.add_argument("part", nargs="?", default="all", choices=names, metavar="PART")
    parser.add_argument("--photographs", type=Path, help="a class folder (default: made up)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="only try it, in seconds; on a CPU always"
    )
    given = parser.parse_args()
    options = Options(given.device, given.tiny or given.device == "cpu", given.photographs)
    if options.cuda and given.part != "data":
        import torch

        if not torch.cuda.is_available():
            print("no CUDA device that torch can use; try it with --device cpu --tiny")
            return 2
    OUT.mkdir(parents=True, exist_ok=True)
    done = run_all(options) if given.part == "all" else run(given.part, options)
    return int(not done)


def run(part: str, options: Options) -> bool:
    """Run one part in this process; whether it went well."""
    if not options.cuda and part in ("steps", "feeding", "smoke"):
        import torch

        torch.set_num_threads(1)  # the loaders take the other cores
    if part in CHECKS:
        done = getattr(importlib.import_module("gpu_parts.checks"), part)(options)
    else:
        done = importlib.import_module(f"gpu_parts.{part}").run(options)
    return bool(done)


def run_all(options: Options) -> bool:
    """Run every part in a process of its own; whether none of them failed."""
    limit, started = float(os.environ.get("LIMIT", "600")), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stops the part, too
    failed = []

    def spent() -> float:
        return time.monotonic() - started

    # Betons are written while the tests run; who needs them waits until they are there.
    with Process("data", options) as data:
        for part, most in PARTS.items():
            seconds = min(most, limit - spent() - _GRACE_SECONDS)
            if seconds + _GRACE_SECONDS < _LEAST_SECONDS:
                say(f"{part}: left out, {max(0, limit - spent()):.0f} s are left")
                continue
            say(f"{part}: at most {seconds:.0f} s, begun after {spent():.0f} s")
            with Process(part, options) as process:
                status = process.wait(seconds)
            if status != 0:
                failed.append(part)
            how = "stopped, which leaves what it had" if status is None else f"exit {status}"
            say(f"{part}: {how}, ended after {spent():.0f} s")
        if status := data.wait(0):
            failed.append("data")
    say(f"data: {'stopped' if status is None else f'exit {status}'}")
    say(f"all ended after {spent():.0f} s; figures in {OUT}; failed: {', '.join(failed) or 'none'}")
    return not failed


class Process:
    """A part in a process of its own, which ends with the ``with`` block at the latest."""

    def __init__(self, part: str, options: Options) -> None:
        command = [sys.executable, __file__, part, "--device", options.device]
        command += ["--tiny"] if options.tiny else []
        command += ["--photographs", str(options.photographs)] if options.photographs else []
        # A session, so that what the part starts ends with it.
        self._process = subprocess.Popen(command, start_new_session=True)

    def wait(self, seconds: float) -> int | None:
        """Its exit status, or ``None``: it took longer, and has been stopped."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._stop()
            return None

    def _stop(self) -> None:
        for number in (signal.SIGINT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._stop()


def say(text: str) -> None:
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
