"""What the parts share: what they are told, rows that run in turn, and where their figures go.

Comes in: figures by name, one after the other. Goes out: $OUT/PART.json in the form of the files in
benchmarks/results, whole after each figure, so that a part that is stopped leaves what it had. What
a GPU gave goes to benchmarks/results/gpu_PART.json as well.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from xmix_data.bench import machine
from xmix_data.files import whole_file

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BUILD = ROOT / "build" / "gpu"
OUT = Path(os.environ.get("OUT") or BUILD).absolute()
DATA = Path(os.environ.get("DATA") or BUILD / "data").absolute()
KIT = Path(os.environ["KIT_DATA"]).absolute() if os.environ.get("KIT_DATA") else None

_LEAST_ROUNDS = 2
_SHOWN = 400
"""Characters of a figure that are printed; the file has all of them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What a part is told."""

    device: str
    """``"cuda"`` or ``"cpu"``."""
    tiny: bool = False
    """Whether all is small: the figures mean nothing then."""
    photographs: Path | None = None
    """A class folder; ``None``: the kit's photographs, or made-up ones."""

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"


class Figures:
    """The figures of a part.

    Args:
        part: Its name.
        options: What it was told.
        configuration: What a figure must say beside its machine, ``rounds`` among it.
        keep: Whether figures of a GPU are a result of the project.
    """

    def __init__(
        self, part: str, options: Options, configuration: Mapping[str, Any], *, keep: bool = True
    ) -> None:
        self.part = part
        self.failed = False
        """Whether an error stands in place of a figure."""
        self._paths = [OUT / f"{part}.json"]
        if keep and options.cuda and not options.tiny:
            self._paths.append(RESULTS / f"gpu_{part}.json")
        self._document: dict[str, Any] = {
            "benchmark": f"gpu_{part}",
            "machine": machine.describe(),
            "configuration": dict(configuration),
        }

    def save(self, key: str, value: Any) -> None:
        """Print a figure, and write it with all that came before it."""
        self._document[key] = value
        content = (json.dumps(self._document, indent=1) + "\n").encode()
        for path in self._paths:
            with whole_file(path) as file:
                file.write(content)
        text = json.dumps(value)
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
        print(f"{self.part}: {key}: {shown}", flush=True)

    def error(self, key: str, error: Exception) -> None:
        """Save what went wrong in place of a figure; called where ``error`` is handled."""
        traceback.print_exc()
        self.failed = True
        self.save(key, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"})

    def tried(self, key: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Save what a function returns, or its error: the other figures do not depend on it."""
        try:
            self.save(key, function(*args, **kwargs))
        except Exception as error:
            self.error(key, error)


def in_turn(
    figures: Figures,
    rows: Mapping[str, Callable[[], T]],
    *,
    rounds: int,
    seconds: float,
    prefix: str = "",
) -> Iterator[dict[str, list[T]]]:
    """Run all rows once a round, after one round that is not counted.

    A row that fails is left out from then on, and its error is saved.

    Args:
        figures: Where errors go, under ``prefix`` and the row's name.
        rows: By name.
        rounds: How many at most.
        seconds: No round begins that would end later than this after the first one began; but two
            are run in any case.
        prefix: What the names of errors begin with.

    Yields:
        After each round all that the rows returned so far.
    """
    runs: dict[str, list[T]] = {name: [] for name in rows}
    started = time.perf_counter()
    for number in range(rounds + 1):
        done = number - 1
        spent = time.perf_counter() - started
        if done >= _LEAST_ROUNDS and spent * (done + 1) / done > seconds:
            return
        for name in list(runs):
            try:
                value = rows[name]()
            except Exception as error:
                del runs[name]
                figures.error(prefix + name, error)
            else:
                runs[name].append(value)
        if number == 0:  # compiles, fills caches
            for values in runs.values():
                values.clear()
            started = time.perf_counter()
        else:
            yield runs
