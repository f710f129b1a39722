"""Reading ahead: the system is asked for the bytes of later batches while this one is decoded."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from xmix_data.beton import Domain
from xmix_data.decode.llvm import kernel, madvise
from xmix_data.plan import PlanRows

__all__ = ["ReadAhead", "read_ahead"]


_READ_AHEAD_BATCHES = 4
"""How many batches, beyond those that are being decoded, the kernel is asked to read."""


class ReadAhead:
    """Hands out the rows of batches, and has a thread ask the kernel for later batches' bytes.

    A page that is not in memory stops a decoding thread for as long as the disk takes; the plan
    knows early which pages it will be. Asking costs time as well, so nothing is asked for twice,
    until a thread had to wait for the disk: then the memory does not hold it all.

    Args:
        rows: Of the batches, in order.
        domains: Target, and source if there is one.
        asked: For each domain (N,) bool, which samples have been asked for; changed here.
    """

    def __init__(
        self,
        rows: Iterator[PlanRows],
        domains: Sequence[Domain],
        asked: Sequence[npt.NDArray[np.bool_]],
    ) -> None:
        self._rows, self._domains, self._asked = rows, domains, asked
        self._ahead: deque[PlanRows] = deque()
        self._wanted: SimpleQueue[PlanRows | None] = SimpleQueue()
        self._stopped = False

    def __next__(self) -> PlanRows:
        while len(self._ahead) <= _READ_AHEAD_BATCHES:
            rows = next(self._rows, None)
            if rows is None:
                break
            self._ahead.append(rows)
            if any(len(new) for _, new in self._not_asked(rows)):
                self._wanted.put(rows)
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft()

    def run(self) -> None:
        """The thread."""
        while (rows := self._wanted.get()) is not None and not self._stopped:
            for number, new in self._not_asked(rows):
                self._asked[number][new] = True
                domain = self._domains[number]
                read_ahead(domain.addresses(new), domain.sizes[new])

    def _not_asked(self, rows: PlanRows) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """For each domain its number, and the samples that have not been asked for."""
        for number, asked in enumerate(self._asked):
            wanted = rows.target if number == 0 else rows.source
            assert wanted is not None
            yield number, wanted[~asked[wanted]]

    def disk_was_waited_for(self) -> None:
        """What was asked for may be gone again."""
        for asked in self._asked:
            asked.fill(False)

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wanted.put(None)


_WILLNEED = np.int32(3)

_PAGE = mmap.PAGESIZE


@kernel
def read_ahead(addresses: Any, sizes: Any) -> None:
    """Ask the system to have these bytes in memory soon, without waiting for them.

    Args:
        addresses, sizes: (B,) uint64, of mapped files.
    """
    for item in range(len(addresses)):
        start = np.int64(addresses[item]) // _PAGE * _PAGE
        madvise(start, np.int64(addresses[item]) + np.int64(sizes[item]) - start, _WILLNEED)
