"""How many cores this process may use: its affinity, and the CPU quotas of its control groups.

Comes in: what Linux says of this process. Goes out: the number of threads to start by default. A
container that may use 2 of a machine's 64 cores sees all 64, and 64 threads would stop one another.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_quota", "lines_of", "rank_cores", "share_of", "usable_cores"]


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), _whole_quota()))


def rank_cores() -> int:
    """Return how many cores are this rank's own, at least 1: the ranks of a machine share them.

    Threads stay with the cores that the launcher bound the process to, those of a NUMA node say,
    as affinity is inherited.
    """
    own, ranks = usable_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    launcher = own
    with contextlib.suppress(OSError):  # of a parent that has ended, or that may not be asked
        launcher = min(len(os.sched_getaffinity(os.getppid())), _whole_quota())
    return share_of(ranks, own, launcher)


def share_of(ranks: int, own: int, launcher: int) -> int:
    """Return a rank's share of the cores.

    Args:
        ranks: Number of processes that the launcher started on this machine.
        own: Cores that this process may use.
        launcher: Cores that the launcher may use; more, if it bound its ranks to parts of them,
            which are not shared out once more.
    """
    return max(1, min(own, max(own, launcher) // max(ranks, 1)))


def _whole_quota() -> int:
    quota = cpu_quota()
    return sys.maxsize if math.isinf(quota) else math.ceil(quota)


def cpu_quota(proc: Path = Path("/proc/self")) -> float:
    """Return how many cores' time the control groups grant, of both versions; inf without a limit.

    Args:
        proc: Folder of the process.
    """
    return min(_quotas(proc), default=math.inf)


def _quotas(proc: Path) -> Iterator[float]:
    """Yield the limits of this process's groups and of all groups above them."""
    try:
        groups, mounts = (lines_of(proc / name) for name in ("cgroup", "mountinfo"))
    except OSError:
        return
    for line in mounts:
        before, _, after = line.partition(" - ")
        _, _, _, root, place, *_ = before.split(" ")
        kind, _, options = after.split(" ")[:3]
        for group in groups:
            _, controllers, path = group.split(":", 2)
            second = kind == "cgroup2" and controllers == ""
            first = kind == "cgroup" and "cpu" in controllers.split(",")
            if not (second or (first and "cpu" in options.split(","))):
                continue
            top = Path(place.replace("\\040", " "))
            # In a container the mount may begin at the container's own group, or be elsewhere.
            inside = Path(path).is_relative_to(root)
            here = top / Path(path).relative_to(root) if inside else top
            for folder in (here, *here.parents):
                if folder.is_relative_to(top):
                    yield _limit(folder, second)


def lines_of(path: Path) -> list[str]:
    """Read a file of the system's, in which names of other files may be in any encoding."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    return [line for line in text.split("\n") if line]


def _limit(folder: Path, second: bool) -> float:
    try:
        if second:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        limited = quota != "max" and int(quota) > 0 and int(period) > 0
        return int(quota) / int(period) if limited else math.inf
    except (OSError, ValueError):  # the top group has no such file, and others none without "cpu"
        return math.inf
