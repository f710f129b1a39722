"""Trainings that are done, and processes that do more.

Comes in: tasks as plain values, and lines of those that are done. Goes out: a line for each task,
kept as soon as its training has ended, so that what was interrupted goes on.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from typing import Any

__all__ = ["Runs", "Task", "Wanted", "task_key"]

Task = Mapping[str, Any]
Wanted = Callable[[], Task | None]
"""A training that is to be done; ``None`` as long as others have to tell what it is."""


def task_key(one: Task) -> str:
    """Names a training."""
    return json.dumps(one, sort_keys=True)


class Runs:
    """Trainings by task.

    Args:
        done: Lines that earlier runs kept.
        keep: Called with each new line, ``{"task": ..., and what train returned}``.
        train: Called in another process with the task and ``given``; returns what came out.
        given: Further arguments of ``train``.
        jobs: Number of processes.
        work: How much a task is, in any unit.
    """

    def __init__(
        self,
        done: Iterable[Mapping[str, Any]],
        keep: Callable[[Mapping[str, Any]], None],
        train: Callable[..., Mapping[str, Any]],
        given: Sequence[Any],
        jobs: int,
        work: Callable[[Task], float] = lambda one: 1,
    ) -> None:
        self._done = {task_key(line["task"]): line for line in done}
        self._keep, self._train, self._given, self._jobs = keep, train, given, jobs
        self._work = work
        self._paces: list[float] = []
        """Seconds for a unit of work, of each training so far."""

    def line(self, one: Task) -> Mapping[str, Any] | None:
        """What is known of a training; ``None``: it is not done."""
        return self._done.get(task_key(one))

    def of(self, tasks: Sequence[Task]) -> dict[str, Mapping[str, Any]]:
        """Lines by key; trains what is missing."""
        problems = self.do([partial(dict, one) for one in tasks])
        if problems:
            raise SystemExit("\n".join(problems))
        return {task_key(one): self._done[task_key(one)] for one in tasks}

    def do(self, wanted: Iterable[Wanted], seconds: float = math.inf) -> list[str]:
        """Train what is missing: always the first that can begin, as many at a time as there may.

        A training that fails leaves the others alone. One that could not end in time is not begun,
        as far as the fastest so far tells: stopped, it would be lost.

        Args:
            wanted: What is to be done, in order of value.
            seconds: How long there is.

        Returns:
            What failed, and how many were not begun, as lines for people.
        """
        until = time.monotonic() + seconds
        waiting, problems = list(wanted), list[str]()
        running: dict[Future[Mapping[str, Any]], tuple[Task, float]] = {}
        with ProcessPoolExecutor(self._jobs, multiprocessing.get_context("spawn")) as pool:
            while True:
                while len(running) < self._jobs and (one := self._next(waiting, until)):
                    future = pool.submit(self._train, one, *self._given)
                    running[future] = one, time.monotonic()
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    one, began = running.pop(future)
                    if (error := future.exception()) is not None:
                        problems.append(f"{_described(one)}: {type(error).__name__}: {error}")
                        print(problems[-1], flush=True)
                        continue
                    self._paces.append((time.monotonic() - began) / self._work(one))
                    self._note(one, future.result())
        if waiting:
            problems.append(f"{len(waiting)} trainings are not begun; run it again for them")
        return problems

    def _next(self, waiting: list[Wanted], until: float) -> Task | None:
        """Take the first training off the list that can begin, and may end in time."""
        for entry in list(waiting):
            one = entry()
            if one is None:
                continue
            if self.line(one) is not None:
                waiting.remove(entry)
                continue
            if time.monotonic() + min(self._paces, default=0) * self._work(one) < until:
                waiting.remove(entry)
                return one
        return None

    def _note(self, one: Task, made: Mapping[str, Any]) -> None:
        line = {"task": one, **made}
        self._done[task_key(one)] = line
        self._keep(line)
        print(f"{_described(one)}: {100 * line['accuracy']:.2f} %", flush=True)


def _described(one: Task) -> str:
    """One line for people."""
    return ", ".join(f"{name} {value}" for name, value in one.items())
