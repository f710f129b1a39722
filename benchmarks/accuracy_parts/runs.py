"""Trainings that are done, and processes that do more.

Comes in: tasks as plain values, and lines of those that are done. Goes out: a line for each task,
kept as soon as its training has ended, so that what was interrupted goes on.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

__all__ = ["Runs", "task_key"]


def task_key(one: Mapping[str, Any]) -> str:
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
    """

    def __init__(
        self,
        done: Iterable[Mapping[str, Any]],
        keep: Callable[[Mapping[str, Any]], None],
        train: Callable[..., Mapping[str, Any]],
        given: Sequence[Any],
        jobs: int,
    ) -> None:
        self._done = {task_key(line["task"]): line for line in done}
        self._keep, self._train, self._given, self._jobs = keep, train, given, jobs

    def of(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Lines by key; trains what is missing, in the order of the tasks."""
        missing = [one for one in tasks if task_key(one) not in self._done]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._jobs, spawn) as pool:
            futures = {pool.submit(self._train, one, *self._given): one for one in missing}
            for future in as_completed(futures):
                one = futures[future]
                line = {"task": one, **future.result()}
                self._done[task_key(one)] = line
                self._keep(line)
                print(f"{describe(one)}: {100 * line['accuracy']:.2f} %", flush=True)
        return {task_key(one): self._done[task_key(one)] for one in tasks}


def describe(one: Mapping[str, Any]) -> str:
    """One line for people."""
    return ", ".join(f"{name} {value}" for name, value in one.items())
