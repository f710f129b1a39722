"""Trainings under other people's schedulers: Ray Train, and Lightning's plug-in for Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Betons, NumberedBetons
from test_frameworks import uninterrupted

CLUSTER = Path(__file__).parents[1] / "docs" / "examples" / "cluster"
SECONDS = 300

DIES_ONCE = """
import os, signal
from pathlib import Path
import torch
from torch import nn

class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, images):
        if self.training:
            self.steps += 1
            folder = Path(__file__).parent
            rank = os.environ["RANK"]
            with (folder / f"seen-{rank}").open("a") as log:
                log.write(" ".join(f"{image.double().sum():.6f}" for image in images) + "\\n")
            died = folder / "died"
            if rank == "1" and self.steps == 5 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return images.mean((2, 3))

def model():
    torch.manual_seed(1)
    return nn.Sequential(Told(), nn.Linear(3, 10))
"""

RUNS = """
import json, sys
import ray
from ray_train import train
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
*files, folder = sys.argv[1:]
result = train(*files, folder, model=f"{folder}/told.py:model", workers=2, images_of_a_step=8,
               iterations=9, crop=36, save_every=1, log_every=1)
print(json.dumps(result))
"""


@pytest.mark.slow
def test_ray_starts_its_processes_again_and_they_go_on(betons: Betons, tmp_path: Path) -> None:
    """Of two processes one is killed; each step has the images of one process's step."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray[train]'")
    pairing = tmp_path / "pairing.json"
    betons.pairing.save(pairing)
    (tmp_path / "told.py").write_text(DIES_ONCE)
    files = [str(beton.path) for beton in (betons.target_raw, betons.source_raw)]
    code = ["-c", RUNS, *files, str(pairing), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CLUSTER), *filter(None, sys.path)])},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert json.loads(done.stdout.splitlines()[-1])["method"].startswith("XMixup(")

    logs = [(tmp_path / f"seen-{rank}").read_text().splitlines() for rank in (0, 1)]
    steps = [" ".join(both) for both in zip(*logs, strict=True)]
    assert len(steps) == 10 and steps[4] == steps[5]  # the step in which it died, twice
    from xmix_data import RandomCrop, XMixLoader

    options: dict[str, Any] = {"batch_size": 8, "crop": RandomCrop(36), "num_workers": 1}
    alone = XMixLoader(betons.target_raw, betons.source_raw, betons.pairing, **options)
    whole = [batch for _ in range(3) for batch in alone]
    expected = [" ".join(f"{i.double().sum():.6f}" for i in batch.images) for batch in whole]
    assert steps[:5] + steps[6:] == expected[:9]


SCONTROL = """#!/bin/sh
# As Slurm's: what is requeued is sent SIGTERM.
echo "$@" > "$REQUEUED"
kill -TERM $PPID
"""

UNDER_SLURM = """
import json, os, signal, sys
from pathlib import Path
import lightning, torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
sys.path.insert(0, sys.argv[1])
from conftest import NumberedBetons
from test_frameworks import EPOCHS, loader_of, of
from xmix_data import Beton, Pairing

target, source, pairing, folder, when, place = sys.argv[2:]
numbered = NumberedBetons(Beton(target), Beton(source), Pairing.load(pairing))
seen = []

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def train_dataloader(self):
        return loader_of(numbered)

    def told(self, where):
        if where == place and len(seen) == int(when):
            os.kill(os.getpid(), signal.SIGUSR1)

    def training_step(self, batch, index):
        seen.append(of(batch))
        self.told("in a step")
        return self.layer(batch.target_images.float().mean((2, 3))).sum()

    def on_train_batch_end(self, *_):
        self.told("after a step")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-9)

try:
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, num_nodes=1, max_epochs=EPOCHS, logger=False,
        plugins=[SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder)
    trainer.fit(Module())
finally:
    print(json.dumps([trainer.global_step, seen]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["after a step", "in a step"])
@pytest.mark.parametrize("when", [3, 7, 9])
def test_lightnings_slurm_plug_in_requeues_and_goes_on(
    numbered: NumberedBetons, tmp_path: Path, when: int, place: str
) -> None:
    """Of seven steps an epoch. Lightning saves at once: a step that it is in is not made again."""
    pytest.importorskip("lightning", reason="needs lightning")
    numbered.pairing.save(tmp_path / "pairing.json")
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(SCONTROL)
    scontrol.chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "REQUEUED": str(tmp_path / "requeued"),
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
    }
    files = [numbered.target.path, numbered.source.path, tmp_path / "pairing.json", tmp_path]

    def run(when: int) -> tuple[int, list[list[int]]]:
        arguments = [str(Path(__file__).parent), *map(str, files), str(when), place]
        done = subprocess.run(
            [sys.executable, "-c", UNDER_SLURM, *arguments],
            env={**os.environ, **slurm},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.stdout, done.stderr
        step, seen = json.loads(done.stdout.splitlines()[-1])
        return step, seen

    whole = uninterrupted(numbered)
    first = run(when)
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    second = run(0)
    assert first[1][:when] == whole[:when]
    assert second[1] == whole[when:]
    lost = place == "in a step"
    assert second[0] == len(whole) - lost
