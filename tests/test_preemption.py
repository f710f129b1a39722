"""Trainings that are preempted, resized and bereft: SIGTERM, other world sizes, SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from conftest import Betons
from processes import ended
from test_distributed import SECONDS
from torch import nn

from xmix_data import PreemptedError
from xmix_data.methods import FineTune
from xmix_data.training import Recipe, fit

MODEL = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn

class Told(nn.Module):
    \"\"\"A network that tells which images it is trained on, and ends a process in some step.\"\"\"

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.steps = 0

    def forward(self, images):
        if self.training:
            self.steps += 1
            rank = int(os.environ.get("RANK", "0"))
            with (Path(__file__).parent / f"seen-{rank}").open("a") as log:
                for image in images:
                    log.write(f"{image.double().sum().item():.6f}\\n")
                log.write("step\\n")
            how, who, when = os.environ.get("STOPS", "- 0 0").split()
            again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
            if (int(who), int(when)) == (rank, self.steps) and not again:
                launcher = how == "LAUNCHER"
                if launcher:
                    os.kill(os.getppid(), signal.SIGTERM)
                    time.sleep(2)  # until it has told its processes
                else:
                    os.kill(os.getpid(), getattr(signal, how))
        return self.body(images)

def model():
    return nn.Sequential(Told(), nn.Linear(12, 10))
"""


def command(betons: Betons, folder: Path, *options: str) -> list[str]:
    """What trains nine steps, and writes to a folder."""
    (folder / "told.py").write_text(MODEL)
    target = str(betons.target_raw.path)
    length = "" if "--epochs" in options else "--iterations 9"
    train = f"train --method finetune --target {target} --crop 36 {length} --log-every 1"
    words = f"{train} --device cpu --workers 1 --model {folder}/told.py:model --output {folder}/run"
    return ["-m", "xmix_data", *words.split(), *options]


def images(folder: Path, ranks: int) -> list[list[str]]:
    """The images of each step, over all ranks in order."""
    logs = [
        [step.split() for step in (folder / f"seen-{r}").read_text().split("step\n")[:-1]]
        for r in range(ranks)
    ]
    for rank in range(ranks):
        (folder / f"seen-{rank}").unlink()
    return [[image for part in step for image in part] for step in zip(*logs, strict=True)]


@pytest.fixture(scope="module")
def whole(
    betons: Betons,
    tmp_path_factory: pytest.TempPathFactory,
    forked: processes.Server,
) -> tuple[list[list[str]], dict[str, Any]]:
    """The images of each step, and the network, of one process that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    options = ["--batch-size", "12"]
    results = ended(forked.job(1, *command(betons, folder, *options)), SECONDS)
    assert results[0][0] == 0, results
    return images(folder, 1), weights(folder)


def weights(folder: Path) -> dict[str, Any]:
    network: dict[str, Any] = torch.load(folder / "run" / "model.pt", weights_only=True)["network"]
    return network


def step_of(folder: Path) -> int:
    saved = torch.load(folder / "run" / "checkpoint.pt", weights_only=True)
    step = int(saved["step"])
    state = saved["loaders"][0]
    assert (state["epoch"], state["position"]) == ((step - 1) // 2, 12 * (2 - step % 2))
    return step


def test_four_processes_go_on_as_two_and_as_three(
    betons: Betons,
    whole: Any,
    tmp_path: Path,
    forked: processes.Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM of any rank ends all after the same step; the images over all ranks stay the same."""
    seen: list[list[str]] = []
    for count, stop in ((4, "SIGTERM 3 2"), (2, "SIGTERM 0 2"), (3, "- 0 0")):
        monkeypatch.setenv("STOPS", stop)
        options = ["--batch-size", str(12 // count)]
        results = ended(forked.job(count, *command(betons, tmp_path, *options)), SECONDS)
        assert [status for status, *_ in results] == [0 if stop[0] == "-" else 143] * count, results
        seen += images(tmp_path, count)
        if stop[0] != "-":
            assert step_of(tmp_path) == len(seen)
            for *_, err in results:
                assert err.count(f"SIGTERM ended the training after step {len(seen)}; run it") == 1
                assert "Traceback" not in err
    assert 2 < len(seen) == 9 and seen == whole[0]
    for key, value in weights(tmp_path).items():
        torch.testing.assert_close(value, whole[1][key], rtol=1e-4, atol=1e-5)


def test_epochs_keep_their_number_of_steps_with_more_processes(
    betons: Betons, tmp_path: Path, forked: processes.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of twice the size: they are counted on, and the learning rate falls where it did."""
    lines = []
    for count, stop in ((1, "SIGTERM 0 3"), (2, "- 0 0")):
        monkeypatch.setenv("STOPS", stop)
        options = ["--batch-size", "4", "--epochs", "1.5"]  # 9 steps of one process, 4 of two
        results = ended(forked.job(count, *command(betons, tmp_path, *options)), SECONDS)
        assert [status for status, *_ in results] == [0 if stop[0] == "-" else 143] * count, results
        lines.append([len(step) for step in images(tmp_path, count)])
    assert lines == [[4] * 3, [8] * 6]
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = {line["step"]: line["lr"] for line in map(json.loads, log)}
    assert rates == {step: pytest.approx(0.01 if step <= 6 else 0.001) for step in range(1, 10)}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["iterations"], result["recipe"]["iterations"]) == ([9], None)


def test_an_unmixed_end_stays_where_it_was_with_fewer_processes(
    betons: Betons, tmp_path: Path, forked: processes.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an epoch of theirs is longer than all of the training."""
    for count, stop in ((2, "SIGTERM 0 3"), (1, "- 0 0")):
        monkeypatch.setenv("STOPS", stop)
        options = ["--batch-size", "2", "--method", "mixup", "--unmixed", "0.3"]
        results = ended(forked.job(count, *command(betons, tmp_path, *options)), SECONDS)
        assert [status for status, *_ in results] == [0 if stop[0] == "-" else 143] * count, results
    saved = torch.load(tmp_path / "run" / "checkpoint.pt")
    assert (saved["step"], saved["iterations"], saved["unmixed_from"]) == (9, 9, 6)


def test_another_step_is_refused_with_the_batch_size_that_fits(
    betons: Betons,
    tmp_path: Path,
    forked: processes.Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STOPS", "SIGTERM 0 1")
    ended(forked.job(2, *command(betons, tmp_path, "--batch-size", "6")), SECONDS)
    monkeypatch.setenv("STOPS", "- 0 0")
    for size, status, said in (
        ("5", 2, "is of steps of 12 images, 2 processes with batch_size 6, and here 1 have batch_"),
        ("6", 0, ""),
    ):
        job = forked.job(1, *command(betons, tmp_path, "--batch-size", size))
        [(found, _, err)] = ended(job, SECONDS)
        assert found == status and said in err, err
        remedy = "give a batch_size of 12 to keep the steps, or keep the batch_size of 6"
        assert (remedy in err) == (status == 2)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_dies_ends_the_others_with_a_line(
    betons: Betons,
    tmp_path: Path,
    forked: processes.Server,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
) -> None:
    monkeypatch.setenv("STOPS", f"SIGKILL {rank} 4")
    options = ["--batch-size", "4", "--save-every", "1"]
    results = ended(forked.job(3, *command(betons, tmp_path, *options)), 30)
    for number, (status, _, err) in enumerate(results):
        if number == rank:
            assert status == -signal.SIGKILL
            continue
        assert status == 2, err
        own = [line for line in err.splitlines() if line.startswith("xmix: ")]
        assert f"rank {number} lost the other processes of this job" in own[-1]
        assert own[-1].endswith("what was computed so far is in the checkpoint, if there is one")
        assert "Traceback" not in err
    assert step_of(tmp_path) == 3


def test_sigterm_ends_fit_of_one_process(betons: Betons, tmp_path: Path) -> None:
    """In Python an exception, and the handler that was there is back, and was called."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        recipe = Recipe(iterations=9, batch_size=8, crop=36, save_every=100)

        class Sends(FineTune):
            def loss(self, network: Any, batch: Any, *, step: int) -> torch.Tensor:
                if step == sends:
                    for _ in range(2):  # a launcher and its scheduler
                        os.kill(os.getpid(), signal.SIGTERM)
                return super().loss(network, batch, step=step)

        def train(output: str | None) -> Any:
            torch.manual_seed(0)
            model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
            folder = None if output is None else tmp_path / output
            method = Sends()
            return fit(method, model, betons.target_raw, recipe=recipe, output=folder)

        sends = 4
        with pytest.raises(PreemptedError, match=r"after step 5; run it again, .*checkpoint\.pt"):
            train("stopped")
        assert len(heard) == 2 and callable(signal.getsignal(signal.SIGTERM))
        assert not (tmp_path / "stopped" / "result.json").exists()
        sends = 8  # the last step: nothing is left to do
        train("last")
        sends = -1
        resumed, whole = train("stopped"), train("whole")
        for one, other in zip(
            resumed.network.parameters(), whole.network.parameters(), strict=True
        ):
            assert torch.equal(one, other)
        sends = 2
        train(None)  # without an output nothing could be saved: SIGTERM is the caller's own
        assert len(heard) == 6
    finally:
        signal.signal(signal.SIGTERM, before)


def torchrun(
    betons: Betons, folder: Path, stops: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun, six images of a step in each."""
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node 2 {' '.join(options)}"
    work = command(betons, folder, "--batch-size", "6", "--save-every", "1")
    return subprocess.run(
        [sys.executable, *launcher.split(), *work],
        env={**os.environ, "STOPS": stops},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGKILL 1 4", "SIGTERM 0 4"])
def test_torchrun_starts_it_again_and_it_goes_on(
    betons: Betons, whole: Any, tmp_path: Path, stop: str
) -> None:
    done = torchrun(betons, tmp_path, stop, "--max-restarts", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").exists()
    seen = images(tmp_path, 2)
    if "KILL" in stop:  # the step in which it died was begun twice
        assert seen[3] == seen[4]
        del seen[3]
    assert seen == whole[0] and "goes on after iteration" in done.stderr
    for key, value in weights(tmp_path).items():
        torch.testing.assert_close(value, whole[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sigterm_to_torchrun_ends_all_with_a_checkpoint(
    betons: Betons, whole: Any, tmp_path: Path
) -> None:
    """As a scheduler sends it; without a restart by the launcher, and then by hand."""
    done = torchrun(betons, tmp_path, "LAUNCHER 0 3")
    assert done.returncode != 0 and not (tmp_path / "run" / "result.json").exists()
    assert done.stderr.count("SIGTERM ended the training after step") == 2, done.stderr
    step = step_of(tmp_path)
    assert 3 <= step < 9
    assert torchrun(betons, tmp_path, "- 0 0").returncode == 0
    assert images(tmp_path, 2) == whole[0]
