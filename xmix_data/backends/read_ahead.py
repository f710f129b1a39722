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
"""Number of batches, beyond those that are being decoded, that the kernel is asked to read."""


class ReadAhead:
    """Rows of the batches, while a thread asks the kernel for the bytes of later batches.

    A page that is not in memory stops a decoding thread for as long as the disk takes; the plan
    knows early which pages it will be. Asking costs time as well, so nothing is asked for twice,
    until a thread had to wait for the disk: then the memory does not hold it all.

    Args:
        rows: Rows of the batches, in order.
        domains: Target, and source if there is one.
        asked: For each domain (N,) bool: whether each sample has been asked for; changed here.
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
        """Ask for the bytes of batches until `stop`; run by the thread."""
        while (rows := self._wanted.get()) is not None and not self._stopped:
            for number, new in self._not_asked(rows):
                self._asked[number][new] = True
                domain = self._domains[number]
                read_ahead(domain.addresses(new), domain.sizes[new])

    def _not_asked(self, rows: PlanRows) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Yield each domain's number, and the samples that have not been asked for."""
        for number, asked in enumerate(self._asked):
            wanted = rows.target if number == 0 else rows.source
            assert wanted is not None
            yield number, wanted[~asked[wanted]]

    def disk_was_waited_for(self) -> None:
        """Forget what was asked for: it may be gone again, as a thread had to wait for the disk."""
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
        addresses, sizes: (B,) uint64: where the bytes begin in mapped files, and how many they are.
    """
    for item in range(len(addresses)):
        start = np.int64(addresses[item]) // _PAGE * _PAGE
        madvise(start, np.int64(addresses[item]) + np.int64(sizes[item]) - start, _WILLNEED)
