"""Jobs of several processes: the work is shared, and a process that dies ends the others."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from conftest import Betons
from processes import ended
from torch import distributed

from xmix_data import Pairing
from xmix_data.cli import main

SECONDS = 120
"""A job that takes longer hangs."""


def pair_command(betons: Betons, path: Path) -> list[str]:
    files = [str(b.path) for b in (betons.target_jpg, betons.source_jpg)]
    command = f"pair --target {files[0]} --source {files[1]} -o {path} --model mobilenet_v3_small"
    return f"{command} --weights none --device cpu --batch-size 3".split()


@pytest.fixture(scope="module")
def alone(betons: Betons, tmp_path_factory: pytest.TempPathFactory) -> Pairing:
    """The pairing of one process."""
    path = tmp_path_factory.mktemp("alone") / "alone.json"
    assert main([*pair_command(betons, path), "--no-cache"]) == 0
    return Pairing.load(path)


def assert_same_pairing(one: Pairing, other: Pairing) -> None:
    def cosines(pairing: Pairing) -> Any:
        return np.array([p.cosine for paired in pairing.pairs.values() for p in paired])

    assert [[p.name for p in ps] for ps in one.pairs.values()] == [
        [p.name for p in ps] for ps in other.pairs.values()
    ]
    assert list(one.pairs) == list(other.pairs)
    assert np.abs(cosines(one) - cosines(other)).max() < 5e-6
    assert one.options == other.options and one.target == other.target


@pytest.mark.parametrize("count", [2, 4])
def test_a_job_gives_the_pairing_of_one_process(
    betons: Betons,
    alone: Pairing,
    tmp_path: Path,
    own_cache: Path,
    forked: processes.Server,
    count: int,
) -> None:
    command = ["-m", "xmix_data", *pair_command(betons, tmp_path / "pairing.json")]
    results = ended(forked.job(count, *command), SECONDS)
    assert [status for status, *_ in results] == [0] * count, results
    assert_same_pairing(Pairing.load(tmp_path / "pairing.json"), alone)
    assert "mean cosine" in results[0][1]
    assert not any(out for _, out, _ in results[1:])
    assert len(list(own_cache.iterdir())) == 2  # finished: one a domain

    _, _, err = ended(forked.job(1, *command, "--overwrite"), SECONDS)[0]
    assert err.count("read from") == 2
    assert_same_pairing(Pairing.load(tmp_path / "pairing.json"), alone)


JOINS = """
import os, sys, time, torch
from torch.distributed.distributed_c10d import _get_default_store
from xmix_data.ranks import job
time.sleep(float(sys.argv[1]))
with job():
    assert _get_default_store().timeout.total_seconds() == 12 * 3600  # a rank may be slow
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    os._exit(int(total) - 2)  # it takes nothing back
"""


def test_a_job_that_starts_again_does_not_look_for_the_processes_before(
    forked: processes.Server,
) -> None:
    """As torchrun has it: its store is the same, and who comes first finds the first one's keys."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for attempt in range(2):
        own = {"TORCHELASTIC_RESTART_COUNT": str(attempt)}
        job = [
            forked.start("-c", JOINS, late, environment=shared | own | {"RANK": rank})
            for rank, late in (("0", "1.5" if attempt else "0"), ("1", "0"))
        ]
        assert [status for status, _, _ in ended(job, SECONDS)] == [0, 0], job[1].stderr


@pytest.mark.slow
def test_under_torchrun(betons: Betons, alone: Pairing, tmp_path: Path) -> None:
    path = tmp_path / "pairing.json"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [sys.executable, *torchrun, "-m", "xmix_data", *pair_command(betons, path)]
    done = subprocess.run(command, text=True, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert_same_pairing(Pairing.load(path), alone)


STOPS = """
import os, signal, sys
from torch.nn.modules.module import register_module_forward_pre_hook
from torchvision.models import MobileNetV3
from xmix_data.cli import main

seen, stop = [], os.environ["STOPS"].split()

def forward(module, inputs):
    if isinstance(module, MobileNetV3):
        seen.append(len(inputs[0]))
        rank, images, kind = int(os.environ["RANK"]), sum(seen), stop[0]
        if kind == "kill" and (rank, images > 4) == (int(stop[1]), True):
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "interrupt" and images > int(stop[1 + rank]):
            raise KeyboardInterrupt

register_module_forward_pre_hook(forward)
sys.exit(main(sys.argv[1:]))
"""
"""The command, but a process kills or interrupts itself after some images."""


def assert_lost(results: list[tuple[int, str, str]], but: int) -> None:
    """All processes but one ended with status 2, and say why."""
    for rank, (status, out, err) in enumerate(results):
        if rank != but:
            assert (status, out) == (2, ""), (out, err)
            line = [text for text in err.splitlines() if text.startswith("xmix: ")][-1]
            assert f"rank {rank} lost the other processes of this job" in line


def test_a_killed_process_ends_the_others(
    betons: Betons,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forked: processes.Server,
) -> None:
    path = tmp_path / "pairing.json"
    monkeypatch.setenv("STOPS", "kill 0")
    results = ended(forked.job(4, "-c", STOPS, *pair_command(betons, path)), SECONDS)
    assert results[0][0] == -signal.SIGKILL, results
    assert_lost(results, but=0)
    assert not path.exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("batch", ["3", "2"])
def test_an_interrupted_job_goes_on(
    betons: Betons,
    alone: Pairing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
    forked: processes.Server,
    batch: str,
) -> None:
    """Each process where it was, or from the start where another batch size deals images anew."""
    command = pair_command(betons, tmp_path / "pairing.json")
    monkeypatch.setenv("STOPS", "interrupt 10 5")
    results = ended(forked.job(2, "-c", STOPS, *command), SECONDS)
    assert [status for status, *_ in results] == [130, 130], results
    assert len([f for f in own_cache.iterdir() if ".unfinished." in f.name]) == 2
    monkeypatch.setenv("STOPS", "none")
    results = ended(forked.job(2, "-c", STOPS, *command, "--batch-size", batch), SECONDS)
    assert [status for status, *_ in results] == [0, 0], results
    assert_same_pairing(Pairing.load(tmp_path / "pairing.json"), alone)


OF_ITS_OWN = """
import os, sys
from xmix_data.cli import main
option, value, *command = sys.argv[1:]
if os.environ["RANK"] == "1":
    command[command.index(option) + 1] = value
sys.exit(main(command))
"""
"""A command of which the second process has another value of an option.

As on machines that keep different files under one name."""


def test_processes_with_different_images_are_refused(
    betons: Betons, tmp_path: Path, forked: processes.Server
) -> None:
    command = [*pair_command(betons, tmp_path / "pairing.json"), "--no-cache"]
    own = ["--source", str(betons.source_raw.path)]
    results = ended(forked.job(2, "-c", OF_ITS_OWN, *own, *command), SECONDS)
    assert [status for status, *_ in results] == [2, 2], results
    assert "rank 1 has other images, weights or options than rank 0" in results[1][2]
    assert not (tmp_path / "pairing.json").exists()


def test_a_training_of_different_images_is_refused(
    betons: Betons, tmp_path: Path, forked: processes.Server
) -> None:
    """Of as many images and classes: nothing else would tell."""
    command = ["train", "--method", "finetune", "--target", str(betons.source_jpg.path)]
    command += ["--model", "resnet18", "--weights", "none", "--iterations", "2"]
    command += ["--batch-size", "4", "--crop", "32", "--output", str(tmp_path / "run")]
    own = ["--target", str(betons.source_raw.path)]
    results = ended(forked.job(2, "-c", OF_ITS_OWN, *own, *command), SECONDS)
    assert [status for status, *_ in results] == [2, 2], results
    assert "rank 1 has other target images or class names than rank 0" in results[1][2]
    assert not (tmp_path / "run" / "model.pt").exists()
