"""Default numbers of threads: affinity, quotas of control groups, ranks of a machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Betons

from xmix_data import CenterCrop, ImageLoader
from xmix_data.cores import cpu_quota, rank_cores, share_of, usable_cores

SECOND = "30 20 0:28 {root} {top} rw - cgroup2 cgroup2 rw,nsdelegate"
FIRST = "32 31 0:29 {root} {top} rw,relatime - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "35 31 0:32 / {top} rw,relatime - cgroup cgroup rw,memory"


def machine(tmp_path: Path, groups: str, mount: str, root: str, limits: dict[str, str]) -> Path:
    """What Linux shows of a process: its groups, where they are mounted, and their files."""
    top = tmp_path / "control groups"
    for name, text in limits.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "cgroup").write_text(groups)
    line = mount.format(root=root, top=str(top).replace(" ", "\\040"))
    (tmp_path / "mountinfo").write_text(f"24 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n{line}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("groups", "mount", "root", "limits", "cores"),
    [
        ("0::/\n", SECOND, "/", {"cpu.max": "200000 100000"}, 2),  # a container of its own view
        ("0::/\n", SECOND, "/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b\n", SECOND, "/", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 1"}, 1.5),
        ("0::/a/b\n", SECOND, "/", {"a/cpu.max": "900000 100000", "a/b/cpu.max": "5 10"}, 0.5),
        ("0::/a\n", SECOND, "/", {"cgroup.procs": "1"}, math.inf),
        ("0::/docker/x\n", SECOND, "/docker/x", {"cpu.max": "300000 100000"}, 3),
        ("0::/../other\n", SECOND, "/docker/x", {"cpu.max": "300000 100000"}, 3),
        (
            "4:memory:/a\n2:cpu,cpuacct:/a\n",
            FIRST,
            "/",
            {"a/cpu.cfs_quota_us": "250000", "a/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (
            "2:cpu,cpuacct:/a/b\n",
            FIRST,
            "/a",
            {"b/cpu.cfs_quota_us": "-1", "b/cpu.cfs_period_us": "100000"},
            math.inf,
        ),
        (
            "2:cpu,cpuacct:/a/b\n",
            FIRST,
            "/a",
            {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"},
            4,
        ),
        ("2:cpu,cpuacct:/\n", MEMORY, "/", {"cpu.cfs_quota_us": "1"}, math.inf),
        ("0::/\n", SECOND, "/", {"cpu.max": "damaged"}, math.inf),
    ],
)
def test_quotas_of_both_versions(
    tmp_path: Path, groups: str, mount: str, root: str, limits: dict[str, str], cores: float
) -> None:
    assert cpu_quota(machine(tmp_path, groups, mount, root, limits)) == cores


def test_names_of_mounts_may_be_in_any_encoding(tmp_path: Path) -> None:
    proc = machine(tmp_path, "0::/\n", SECOND, "/", {"cpu.max": "300000 100000"})
    with open(proc / "mountinfo", "ab") as stream:
        stream.write(b"40 1 0:33 / /mnt/Fotos_M\xfcller rw - cifs //server/Fotos_M\xfcller rw\n")
        stream.write("41 1 0:34 / /mnt/a\x85b\u2028c rw - cifs //server/share rw\n".encode())
    assert cpu_quota(proc) == 3


def test_an_empty_file_names_no_group(tmp_path: Path) -> None:
    proc = machine(tmp_path, "", SECOND, "/", {"cpu.max": "300000 100000"})
    assert cpu_quota(proc) == math.inf


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("ranks", "own", "launcher", "share"),
    [
        (1, 8, 64, 8),
        (8, 64, 64, 8),  # not bound
        (8, 8, 64, 8),  # each to cores of its own
        (8, 32, 64, 8),  # four to a NUMA node
        (8, 16, 16, 2),  # a container with a part of the machine
        (8, 16, 2, 2),  # started by something narrower
        (8, 4, 4, 1),
        (0, 4, 4, 4),
    ],
)
def test_ranks_share_what_their_launcher_has(
    ranks: int, own: int, launcher: int, share: int
) -> None:
    assert share_of(ranks, own, launcher) == share


SAYS = """
import json, os, sys
from xmix_data import CenterCrop, ImageLoader
if sys.argv[2] != "-":
    os.sched_setaffinity(0, {int(sys.argv[2])})
loader = ImageLoader(sys.argv[1], batch_size=4, crop=__import__("xmix_data").CenterCrop(32))
batches = iter(loader)
next(batches)
import threading
masks = [os.sched_getaffinity(t.native_id) for t in threading.enumerate() if "xmix" in t.name]
print(json.dumps([loader.num_workers, sorted(map(sorted, masks))]))
"""


def says(betons: Betons, core: str, *before: str) -> tuple[int, list[list[int]]]:
    command = [*before, sys.executable, "-c", SAYS, str(betons.target_jpg.path), core]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    workers, masks = json.loads(done.stdout)
    return workers, masks


def test_threads_stay_with_the_cores_of_their_process(betons: Betons) -> None:
    core = max(os.sched_getaffinity(0))
    workers, masks = says(betons, str(core))
    assert workers == 1 and masks and all(mask == [core] for mask in masks)


@pytest.fixture
def group_of_one_core() -> Iterator[Path]:
    """A control group with the time of one core, of whichever version is here."""
    for top, limit in (
        ("/sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "100000")),
        ("/sys/fs/cgroup", ("cpu.max", "100000 100000")),
    ):
        folder = Path(top) / f"xmix-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit[0]).write_text(limit[1])
        except OSError:
            folder.rmdir()
            continue
        yield folder
        folder.rmdir()
        return
    pytest.skip("may not make control groups")


def test_a_quota_decides_how_many_threads_are_started(
    betons: Betons, group_of_one_core: Path
) -> None:
    if usable_cores() < 2:
        pytest.skip("has one core anyway")
    join = ["sh", "-c", f'echo $$ > {group_of_one_core}/cgroup.procs; exec "$@"', "sh"]
    assert says(betons, "-", *join)[0] == 1
    assert says(betons, "-")[0] == usable_cores() == rank_cores()


def test_a_loader_may_be_given_more(betons: Betons) -> None:
    options: dict[str, Any] = {"batch_size": 4, "crop": CenterCrop(32), "num_workers": 7}
    with ImageLoader(betons.target_raw, **options) as loader:
        assert loader.num_workers == 7
