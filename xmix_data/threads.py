"""Names of threads, for `top -H`, `py-spy`, `perf` and the traces of profilers.

Comes in: a thread that Python has named. Goes out: the same name in the system's eyes.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

__all__ = ["name_this_thread"]


def name_this_thread() -> None:
    """Tell the system the name that this thread has in Python, as Python does itself from 3.14 on.

    The system keeps the first 15 bytes of it.
    """
    with suppress(OSError):  # a system without /proc: then it stays the process's name
        Path("/proc/thread-self/comm").write_text(threading.current_thread().name)
