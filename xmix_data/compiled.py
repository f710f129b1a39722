"""`kernel`: functions that numba compiles, without the GIL, kept on disk.

Comes in: a function of numbers and arrays. Goes out: the same, compiled on its first use.
"""

from __future__ import annotations

import logging
from typing import Any

import numba

__all__ = ["kernel"]


_log = logging.getLogger("xmix_data")


def kernel(function: Any) -> Any:
    """Compile a function on its first use, and keep it on disk where that can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError as error:
        if not getattr(kernel, "said", False):
            kernel.said = True  # type: ignore[attr-defined]
            _log.warning("kernels are compiled anew in every process: %s", error)
        return numba.njit(nogil=True)(function)
