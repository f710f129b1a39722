"""Put XMixup into a training codebase of somebody else's, and see what that takes and keeps.

    python benchmarks/clients/run.py NAME --checkout DIR [--rounds 5] [--data DIR]

NAME is a folder beside this file. It holds ``client.json`` (what the codebase is, where it is
published, how it is run), ``edits.txt`` (our lines) and, where the codebase no longer runs as it
is, ``port.txt``: what it needs with or without us, which is not counted; ``prepare.py`` makes what
else it reads. DIR is a checkout of the version that ``client.json`` names; it stays as it is.

Then, on a small data set that is made first:

1. theirs and ours train two epochs, evaluate, and say how exact they are;
2. ours is killed in the middle and goes on in the way that the codebase has; the samples of both
   parts are those of the run that was not interrupted, pixel for pixel;
3. both train in turn, round after round: seconds per step.

What comes of it is written to ``benchmarks/results/clients.json``, and to ``log.txt`` beside
``client.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import edits
import tiny

from xmix_data.bench import machine

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "clients.json"
EPOCHS = 2


@dataclass
class Client:
    """A codebase, and a folder for what is done with it."""

    name: str
    checkout: Path
    scratch: Path
    data: Path
    log: list[str] = field(default_factory=list)
    setup: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.setup = json.loads((HERE / self.name / "client.json").read_text())
        self.port = self._edits("port.txt")
        self.edits = self._edits("edits.txt")
        touched = {edit.file for edit in [*self.port, *self.edits]}
        if touched != set(self.setup["files"]):
            raise ValueError(f"client.json names other files than the edits: {sorted(touched)}")
        published = f"{self.setup['repository']} at {self.setup['version']}"
        edits.check(self.checkout, self.setup["files"], published)

    def _edits(self, name: str) -> list[edits.Edit]:
        path = HERE / self.name / name
        return edits.parse(path.read_text(encoding="utf-8")) if path.exists() else []

    def say(self, text: str) -> None:
        """Print a line and keep it for the log, without paths of this machine."""
        for path, name in ((self.data, "DATA"), (self.scratch, "DIR"), (self.checkout, "CHECKOUT")):
            text = text.replace(str(path), name)
        print(text, flush=True)
        self.log.append(text)

    def tree(self, name: str, *, ours: bool) -> Path:
        """Make a copy of the checkout, edited."""
        tree = self.scratch / name
        shutil.copytree(self.checkout, tree, ignore=shutil.ignore_patterns(".git"))
        edits.apply(tree, self.port + (self.edits if ours else []))
        return tree

    def run(
        self, tree: Path, *, ours: bool, samples: bool = False, stop: int = 0, resume: bool = False
    ) -> Run:
        """Train in a tree, watched.

        Raises:
            RuntimeError: The script failed, or was not killed where it should be.
        """
        setup = self.setup
        places = {"data": self.data, "output": tree / "output", "tree": tree}
        arguments = [
            argument.format(**places)
            for argument in (
                *setup["arguments"],
                *setup.get("ours" if ours else "theirs", ()),
                *(setup["resume"] or () if resume else ()),
            )
        ]
        observed = self.scratch / "observed.jsonl"
        observed.unlink(missing_ok=True)
        directory = tree / setup.get("directory", ".").format(**places)
        environment = {
            **os.environ,
            **{
                name: value.format(**places) for name, value in setup.get("environment", {}).items()
            },
            "XMIX_OBSERVED": str(observed),
            "XMIX_SAMPLES": setup.get("samples", "loader") if samples else "",
            "XMIX_STOP_AFTER": str(stop),
        }
        command = [sys.executable, str(HERE / "observe.py"), str(tree / setup["script"])]
        done = subprocess.run(
            [*command, *arguments],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        expected = -signal.SIGKILL if stop else setup.get("exit_status", 0)
        if done.returncode != expected:
            shown = "\n".join(done.stdout.splitlines()[-30:])
            raise RuntimeError(f"{shown}\n{self.name}: {arguments}: exit status {done.returncode}")
        records = [json.loads(line) for line in observed.read_text().splitlines()]
        found = re.findall(setup["accuracy"], done.stdout)
        for pattern in (setup["accuracy"], *setup.get("shows", ())):
            if not stop and not re.search(pattern, done.stdout):
                raise RuntimeError(f"{self.name}: nothing that was said fits {pattern!r}")
        return Run(
            [record["seconds"] for record in records if "step" in record],
            [record for record in records if "step" not in record],
            None if stop else float(found[-1]),
        )


@dataclass
class Run:
    """What a run showed."""

    step_times: list[float]
    samples: list[dict[str, Any]]
    accuracy: float | None

    @property
    def seconds_per_step(self) -> float:
        """Mean of the steps after each epoch's first, which has the start of the workers in it."""
        steps, rest = divmod(len(self.step_times), EPOCHS)
        if rest or steps < 2:
            raise RuntimeError(f"{len(self.step_times)} steps are not {EPOCHS} epochs")
        ends = [
            (self.step_times[e * steps], self.step_times[(e + 1) * steps - 1])
            for e in range(EPOCHS)
        ]
        return sum(last - first for first, last in ends) / (EPOCHS * (steps - 1))


def continued(whole: Run, rest: Run, stop: int, *, by_image: bool) -> dict[str, Any]:
    """Compare the samples after a resume with those of an uninterrupted run.

    Args:
        whole, rest: The uninterrupted run, and the one that resumed.
        stop: Number of steps before the interrupt.
        by_image: Compare what is drawn for each image of each epoch, whatever their order, which is
            not ours.
    """
    if by_image:
        drawn, again = (
            {
                (record["epoch"], index): source
                for record in run.samples
                for index, source in zip(record["target"], record["source"], strict=True)
            }
            for run in (whole, rest)
        )
        epochs = {epoch for epoch, _ in again}
        same = again == {key: drawn[key] for key in drawn if key[0] in epochs}
        return {"samples_compared": len(again), "skipped": 0, "equal": bool(again) and same}
    start = len(whole.samples) - len(rest.samples)
    same = bool(rest.samples) and rest.samples == whole.samples[start:]
    return {
        "samples_compared": sum(len(record["target"]) for record in rest.samples),
        "went_on_after_step": start,
        "skipped": max(0, start - stop),
        "equal": same and start <= stop,
    }


def measure(client: Client, rounds: int) -> dict[str, Any]:
    """Do all that this file's first lines say."""
    setup = client.setup
    plain, mixed = client.tree("theirs", ours=False), client.tree("ours", ours=True)
    counts = edits.changed_lines(plain, mixed, setup["files"])
    added, removed = (sum(count[i] for count in counts.values()) for i in (0, 1))
    client.say(f"{client.name}, {setup['repository']} at {setup['version']}")
    client.say(f"lines added {added}, removed {removed}")
    theirs = client.run(plain, ours=False)
    client.say(f"theirs: {len(theirs.step_times)} steps, accuracy {theirs.accuracy}")
    ours = client.run(mixed, ours=True, samples=True)
    client.say(f"ours: {len(ours.step_times)} steps, accuracy {ours.accuracy}")
    steps = len(ours.step_times)
    stop = setup.get("interrupt_after", steps * 3 // 4)
    broken = client.tree("interrupted", ours=True)
    client.run(broken, ours=True, stop=stop)
    resumed = client.run(broken, ours=True, samples=True, resume=True)
    by_image = setup.get("samples") == "ffcv"
    resume = continued(ours, resumed, stop, by_image=by_image)
    again = f"started with {' '.join(setup['resume'])}" if setup["resume"] else "started anew"
    client.say(
        f"ours, killed after step {stop} of {steps}, then {again}: {resume['samples_compared']} "
        f"samples, {'those' if resume['equal'] else 'NOT those'} of the uninterrupted run"
    )
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for number in range(1, rounds + 1):
        seconds["theirs"].append(client.run(plain, ours=False).seconds_per_step)
        seconds["ours"].append(client.run(mixed, ours=True).seconds_per_step)
        client.say(
            f"round {number}: seconds per step, theirs {seconds['theirs'][-1]:.4f}, "
            f"ours {seconds['ours'][-1]:.4f}"
        )
    ratios = [b / a for a, b in zip(seconds["theirs"], seconds["ours"], strict=True)]
    if ratios:
        client.say(f"ours / theirs: median {statistics.median(ratios):.3f}")
    return {
        **{key: setup[key] for key in ("title", "repository", "version", "licence", "had", "lost")},
        "files": sorted({edit.file for edit in client.edits}),
        "added": added,
        "removed": removed,
        "ported": bool(client.port),
        "resumes": setup["resume"] is not None,
        "interrupted_after": stop,
        "steps": steps,
        "resumed": resume,
        "accuracy": {"theirs": theirs.accuracy, "ours": ours.accuracy},
        "rounds": rounds,
        "target_images": tiny.TARGET_CLASSES * tiny.TRAIN,
        "source_images": tiny.SOURCE_CLASSES * tiny.SOURCE,
        "seconds_per_step": seconds,
        "machine": machine.describe(),
        "versions": {name: _version(name) for name in setup.get("packages", ())},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> int:
    """Measure a client and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(path.parent.name for path in HERE.glob("*/client.json"))
    parser.add_argument("name", choices=known)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="a folder for the data set, to be used again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or Path(scratch) / "data"
        client = Client(options.name, options.checkout.resolve(), Path(scratch), data.resolve())
        if not (data / "pairing.json").exists():
            tiny.make(data)
        prepare = HERE / options.name / "prepare.py"
        if prepare.exists() and not (data / f"{options.name}.prepared").exists():
            runpy.run_path(str(prepare))["make"](data)
            (data / f"{options.name}.prepared").touch()
        found = measure(client, options.rounds)
    (HERE / client.name / "log.txt").write_text("\n".join(client.log) + "\n")
    document = json.loads(RESULT.read_text()) if RESULT.exists() else {"clients": {}}
    clients = {**document["clients"], client.name: found}
    document = {
        "benchmark": "clients",
        "machine": found["machine"],
        "configuration": {
            "rounds": max(one["rounds"] for one in clients.values()),
            "epochs": EPOCHS,
        },
        "clients": dict(sorted(clients.items())),
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if found["resumed"]["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
