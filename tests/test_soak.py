"""Thirty scenarios of the soak that runs for long before a release; and that it can find something.

However long they take: on a busy machine they are the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soak
import torch

from xmix_data.backends.host import HostBackend
from xmix_data.backends.stream import HostStream

SCENARIOS = 30


def test_thirty_scenarios(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, soak.__file__, "--scenarios", str(SCENARIOS), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert result["problems"] == []
    assert result["configuration"]["rounds"] == SCENARIOS
    kinds = ("images", "breaks", "resumes", "replaced", "closed in a pass")
    assert all(result["counts"][key] for key in kinds)
    changes = {key for key in result["counts"] if key.startswith("between passes")}
    assert len(changes) == 10  # each kind came up
    assert result["memory_mb"]["last"] > 0  # it was looked at


def problems(folder: Path) -> list[str]:
    """Of a few scenarios in this process."""
    found: list[str] = soak.soak(folder, seed=1, scenarios=10)["problems"]
    return found


def test_a_pixel_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver = HostBackend.deliver

    def wrong(self: HostBackend, job: Any) -> tuple[torch.Tensor, ...]:
        images = deliver(self, job)
        images[-1][-1, 0, 3, 5] += 1
        return images

    monkeypatch.setattr(HostBackend, "deliver", wrong)
    (problem,) = problems(tmp_path)
    assert problem.startswith("scenario 0, {'crop'") and "differs by up to" in problem


def test_a_thread_that_is_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    close = HostStream.close

    def forgetful(self: HostStream) -> None:
        if self not in kept and len(kept) < 20:
            kept.append(self)
        else:
            close(self)

    monkeypatch.setattr(HostStream, "close", forgetful)
    found = problems(tmp_path)
    monkeypatch.undo()
    for stream in kept:
        stream.close()
    assert "threads left: [" in found[0] and "xmix-plan" in found[0]
