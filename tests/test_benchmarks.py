"""Figures in the documents are those of the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def test_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_name_machine_versions_and_rounds() -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert results
    for path in results:
        document = json.loads(path.read_text())
        assert document["machine"]["cpu"] and document["machine"]["versions"]["torch"], path
        assert document["configuration"]["rounds"] >= 1, path


def double_a_size(document: Any) -> None:
    document["encodings"]["jpg"]["bytes_per_image"] *= 2


def double_the_memory(document: Any) -> None:
    document["memory_mb_by_epoch"][-1] *= 2


@pytest.mark.parametrize(
    ("result", "change", "stale"),
    [
        ("conversion", double_a_size, "README.md"),
        ("growth", double_the_memory, "growth-epochs.svg"),
    ],
)
def test_a_changed_figure_is_noticed_and_redrawn(
    tmp_path: Path, result: str, change: Callable[[Any], None], stale: str
) -> None:
    for part in ("README.md", "benchmarks", "docs"):
        subprocess.run(["cp", "-r", str(ROOT / part), str(tmp_path / part)], check=True)
    path = tmp_path / "benchmarks" / "results" / f"{result}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    command = [sys.executable, str(tmp_path / "benchmarks" / "tables.py")]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert done.returncode == 1 and stale in done.stdout
    subprocess.run(command, check=True)
    assert subprocess.run([*command, "--check"]).returncode == 0


def test_epochs_are_counted_alike_in_every_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images seen by the number of images, rounded down: 38 is 800 steps of 48 of 1,000 images."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from table_parts import pretrained

    rows = [line.split(" | ") for line in pretrained.pretrained_iterations().splitlines()[2:]]
    epochs = {row[0].removeprefix("| "): row[1] for row in rows if len(row) > 1}
    assert epochs["3,000"] == "163"  # of 880 images
    prose = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())  # without line ends
    assert "trainings of 27 to 163 epochs" in prose
