"""Reading ahead: the system is asked for the bytes of later batches while this one is decoded."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from xmix_data.beton import Domain
from xmix_data.compiled import kernel
from xmix_data.decode.llvm import madvise
from xmix_data.plan import PlanRows

__all__ = ["ReadAhead", "read_ahead"]


class ReadAhead:
    """Asks the system for the bytes of a batch that will be decoded soon.

    A page that is not in memory stops a decoding thread for as long as the disk takes; the plan
    knows early which pages it will be. Asking costs time as well, so nothing is asked for twice,
    until a thread had to wait for the disk: then the memory does not hold it all.

    Args:
        domains: Target, and source if there is one.
    """

    def __init__(self, domains: Sequence[Domain]) -> None:
        self._domains = domains
        self._asked = [np.zeros(len(domain), bool) for domain in domains]

    def __call__(self, rows: PlanRows) -> None:
        """Ask for a batch's bytes, without waiting for them."""
        for domain, asked, wanted in zip(
            self._domains, self._asked, (rows.target, rows.source), strict=False
        ):
            assert wanted is not None
            new = wanted[~asked[wanted]]
            if len(new):
                asked[new] = True
                read_ahead(domain.addresses(new), domain.sizes[new])

    def disk_was_waited_for(self) -> None:
        """Note that what was asked for may be gone again."""
        for asked in self._asked:
            asked.fill(False)


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
