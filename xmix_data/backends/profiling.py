"""Ranges around decoding, copying, mixing and waiting, for torch's profiler and for NVTX.

Comes in: what a thread does now. Goes out: a range of that name in the trace of whoever profiles;
nothing, in well under a microsecond, where nobody does.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch.autograd import profiler

__all__ = ["ProfiledRange"]

_nvtx: Any = torch.cuda.nvtx if torch.backends.cuda.is_built() else None  # type: ignore[no-untyped-call]
"""Otherwise torch has no NVTX. Its calls do nothing until a tool such as Nsight Systems loads."""


class ProfiledRange:
    """Context manager: what its thread does inside is a range of this name.

    Args:
        name: ``"xmix: WHAT"``; docs/profiling.md lists all of them.
    """

    __slots__ = ("_name", "_recorded")

    def __init__(self, name: str) -> None:
        self._name = name
        self._recorded: Any = None

    def __enter__(self) -> None:
        if _nvtx is not None:
            _nvtx.range_push(self._name)
        # A record_function costs 5 µs even when nobody records.
        if getattr(profiler, "_is_profiler_enabled", True):
            self._recorded = profiler.record_function(self._name)
            self._recorded.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._recorded is not None:
            self._recorded.__exit__(kind, error, traceback)
        if _nvtx is not None:
            _nvtx.range_pop()
