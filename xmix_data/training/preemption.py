"""SIGTERM during a training: noticed by one process, agreed on by all in the same step.

Comes in: a signal, from a scheduler that wants the machine back and kills what is left some time
later. Goes out: whether all processes end after this step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import distributed

from xmix_data.ranks import cpu_group, get_world_size

__all__ = ["Preemption"]


class Preemption:
    """Whether this process or another one of the job was sent SIGTERM while a block ran.

    Python handles signals in the main thread: in another one nothing is noticed, and a handler that
    was there before is called as well.

    Args:
        enabled: Whether there is anything to save; otherwise SIGTERM does what it did. The same in
            all processes.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled, self._noticed = enabled, False
        self._before: Any = signal.SIG_DFL
        self._listens = False
        self._asked: tuple[Any, torch.Tensor] | None = None
        self._alone = not enabled or get_world_size() == 1
        # Messages go over the CPU, so that no step waits for a GPU.
        self._group = None if self._alone else cpu_group()

    def __enter__(self) -> Preemption:
        if self._enabled and threading.current_thread() is threading.main_thread():
            # None is a handler that Python does not know, and cannot put back.
            self._before = signal.signal(signal.SIGTERM, self._notice) or signal.SIG_DFL
            self._listens = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._answer()
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)
            self._listens = False

    def _notice(self, number: int, frame: FrameType | None) -> None:
        """Remember it; more change nothing: a launcher and its scheduler may both send one."""
        self._noticed = True
        if callable(self._before):
            self._before(number, frame)

    def agreed(self) -> bool:
        """Return whether all processes end now; each asks after each step.

        Of several processes each learns what was asked after the step before, by when the others
        have answered: nobody waits for it.
        """
        if self._alone:
            return self._noticed
        ends = self._answer()
        noticed = torch.tensor([float(self._noticed)], device="cpu")
        work = distributed.all_reduce(
            noticed, distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._asked = work, noticed
        return ends

    def _answer(self) -> bool:
        asked, self._asked = self._asked, None
        if asked is None:
            return False
        work, noticed = asked
        work.wait()
        return bool(noticed)

    def wait_for_all(self) -> None:
        """Wait until all processes are here: the first one's end would end one that still saves."""
        if not self._alone:
            self._answer()
            distributed.barrier(group=self._group)
