"""Two minutes of the soak that runs an hour before a release; and that it can find something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from xmix_data.backends.host import HostBackend, HostStream

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_two_minutes(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, str(BENCHMARKS / "soak.py"), "--minutes", "2", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert result["problems"] == []
    assert result["configuration"]["rounds"] >= 10
    assert all(result["counts"][key] for key in ("images", "breaks", "resumes", "replaced"))


@pytest.fixture
def soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import soak

    return lambda: soak.soak(tmp_path, seconds=20, seed=1)["problems"]


def test_a_pixel_that_is_wrong_is_found(soak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = HostBackend.deliver

    def wrong(self: HostBackend, job: Any) -> tuple[torch.Tensor, ...]:
        images = deliver(self, job)
        images[-1][-1, 0, 3, 5] += 1
        return images

    monkeypatch.setattr(HostBackend, "deliver", wrong)
    (problem,) = soak()
    assert problem.startswith("scenario 0, {'crop'") and "differs by up to" in problem


def test_a_thread_that_is_left_is_found(soak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    close = HostStream.close

    def forgetful(self: HostStream) -> None:
        if self not in kept and len(kept) < 20:
            kept.append(self)
        else:
            close(self)

    monkeypatch.setattr(HostStream, "close", forgetful)
    problems = soak()
    monkeypatch.undo()
    for stream in kept:
        stream.close()
    assert "threads left: [" in problems[0] and "xmix-read-ahead" in problems[0]
