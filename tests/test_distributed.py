"""Jobs of several processes: the work is shared, and a process that dies ends the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Betons

from xmix_data import Pairing
from xmix_data.cli import main

SECONDS = 120
"""A job that takes longer hangs."""


def start(processes: int, *command: str) -> list[subprocess.Popen[str]]:
    """As a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes),
           "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]  # fmt: skip


def finish(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each."""
    try:
        return [
            (p.returncode, out, err)
            for p in started
            for out, err in [p.communicate(timeout=SECONDS)]
        ]
    finally:
        for process in started:
            process.kill()


def pair_command(betons: Betons, path: Path) -> list[str]:
    files = [str(b.path) for b in (betons.target_jpg, betons.source_jpg)]
    command = f"pair --target {files[0]} --source {files[1]} -o {path} --model mobilenet_v3_small"
    return f"{command} --weights none --device cpu --batch-size 3".split()


@pytest.fixture
def alone(betons: Betons, tmp_path: Path) -> Pairing:
    """The pairing of one process."""
    assert main([*pair_command(betons, tmp_path / "alone.json"), "--no-cache"]) == 0
    return Pairing.load(tmp_path / "alone.json")


def assert_same_pairing(one: Pairing, other: Pairing) -> None:
    def cosines(pairing: Pairing) -> Any:
        return np.array([p.cosine for paired in pairing.pairs.values() for p in paired])

    assert [[p.name for p in ps] for ps in one.pairs.values()] == [
        [p.name for p in ps] for ps in other.pairs.values()
    ]
    assert list(one.pairs) == list(other.pairs)
    assert np.abs(cosines(one) - cosines(other)).max() < 5e-6
    assert one.options == other.options and one.target == other.target


@pytest.mark.parametrize("processes", [2, 4])
def test_a_job_gives_the_pairing_of_one_process(
    betons: Betons, alone: Pairing, tmp_path: Path, own_cache: Path, processes: int
) -> None:
    command = ["-m", "xmix_data", *pair_command(betons, tmp_path / "pairing.json")]
    results = finish(start(processes, *command))
    assert [status for status, *_ in results] == [0] * processes, results
    assert_same_pairing(Pairing.load(tmp_path / "pairing.json"), alone)
    assert "mean cosine" in results[0][1]
    assert not any(out for _, out, _ in results[1:])
    assert len(list(own_cache.iterdir())) == 2  # finished: one a domain

    _, _, err = finish(start(1, *command, "--overwrite"))[0]
    assert err.count("read from") == 2
    assert_same_pairing(Pairing.load(tmp_path / "pairing.json"), alone)


def test_under_torchrun(betons: Betons, alone: Pairing, tmp_path: Path) -> None:
    path = tmp_path / "pairing.json"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [sys.executable, *torchrun, "-m", "xmix_data", *pair_command(betons, path)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert_same_pairing(Pairing.load(path), alone)


DIES = """
import os, signal, sys
from torch.nn.modules.module import register_module_forward_pre_hook
from torchvision.models import MobileNetV3
from xmix_data.cli import main

seen = []

def forward(module, inputs):
    if isinstance(module, MobileNetV3):
        seen.append(len(inputs[0]))
        if sum(seen) > 4 and os.environ["RANK"] == os.environ["DIES"]:
            os.kill(os.getpid(), signal.SIGKILL)

register_module_forward_pre_hook(forward)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("processes", "dies"), [(2, 1), (4, 0)])
def test_a_killed_process_ends_the_others(
    betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path,
    processes: int, dies: int,
) -> None:  # fmt: skip
    path = tmp_path / "pairing.json"
    monkeypatch.setenv("DIES", str(dies))
    command = pair_command(betons, path)
    results = finish(start(processes, "-c", DIES, *command))
    assert results[dies][0] == -signal.SIGKILL, results
    for rank, (status, out, err) in enumerate(results):
        if rank != dies:
            assert (status, out) == (2, ""), (out, err)
            line = [text for text in err.splitlines() if text.startswith("xmix: ")][-1]
            assert f"rank {rank} lost the other processes of this job" in line
    assert not path.exists() and not list(tmp_path.glob("*.partial"))

    if processes > 2:
        return
    monkeypatch.setenv("DIES", "none")
    again = finish(start(processes, "-c", DIES, *command))
    assert [status for status, *_ in again] == [0] * processes, again
    assert not [file.name for file in own_cache.iterdir() if "unfinished" in file.name]
