"""Figures in the documents are those of the committed results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_name_machine_versions_and_rounds() -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert results
    for path in results:
        document = json.loads(path.read_text())
        assert document["machine"]["cpu"] and document["machine"]["versions"]["torch"], path
        assert document["configuration"]["rounds"] >= 1, path


def test_tables_notice_a_changed_figure(tmp_path: Path) -> None:
    copy = tmp_path / "project"
    copy.mkdir()
    for part in ("README.md", "benchmarks", "docs"):
        subprocess.run(["cp", "-r", str(ROOT / part), str(copy / part)], check=True)
    path = copy / "benchmarks" / "results" / "conversion.json"
    document = json.loads(path.read_text())
    document["encodings"]["jpg"]["bytes_per_image"] *= 2
    path.write_text(json.dumps(document))
    command = [sys.executable, str(copy / "benchmarks" / "tables.py")]
    assert subprocess.run([*command, "--check"], stdout=subprocess.DEVNULL).returncode == 1
    subprocess.run(command, check=True)
    assert subprocess.run([*command, "--check"]).returncode == 0


def test_plots_notice_changed_results(tmp_path: Path) -> None:
    copy = tmp_path / "project"
    copy.mkdir()
    for part in ("README.md", "benchmarks", "docs"):
        subprocess.run(["cp", "-r", str(ROOT / part), str(copy / part)], check=True)
    path = copy / "benchmarks" / "results" / "growth.json"
    document = json.loads(path.read_text())
    document["memory_mb_by_epoch"][-1] *= 2
    path.write_text(json.dumps(document))
    command = [sys.executable, str(copy / "benchmarks" / "tables.py")]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert done.returncode == 1 and "growth-epochs.svg" in done.stdout
    subprocess.run(command, check=True)
    assert subprocess.run([*command, "--check"]).returncode == 0
