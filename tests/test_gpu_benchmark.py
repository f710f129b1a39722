"""The measurements for a GPU, run small on the CPU: every part, and all within a limit."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from processes import Server

from xmix_data.methods import METHODS

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
MEASURED = ("kernel", "steps", "feeding", "pairing", "smoke")


OPTIONS = ("--device", "cpu", "--tiny")


def results() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()}


@pytest.fixture(scope="module")
def documents(
    tmp_path_factory: pytest.TempPathFactory, forked: Server
) -> dict[str, dict[str, Any]]:
    """What each part leaves."""
    folder, before = tmp_path_factory.mktemp("gpu"), results()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUT", str(folder / "out"))
        patch.setenv("DATA", str(folder / "data"))
        patch.delenv("KIT_DATA", raising=False)
        for part in ("data", *MEASURED):
            done = forked.run(str(BENCHMARKS / "gpu.py"), part, *OPTIONS, timeout=300)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert results() == before  # a CPU's figures are no result
    assert sorted(p.name for p in (folder / "out").iterdir()) == sorted(
        f"{part}.json" for part in MEASURED
    )
    return {part: json.loads((folder / "out" / f"{part}.json").read_text()) for part in MEASURED}


def errors(value: Any) -> Iterator[Any]:
    """What stands in place of a figure."""
    if isinstance(value, dict):
        if "error" in value:
            yield value
        for inner in value.values():
            yield from errors(inner)


@pytest.mark.parametrize("part", MEASURED)
def test_figures_have_the_form_of_a_result_and_no_errors(
    documents: dict[str, dict[str, Any]], part: str
) -> None:
    document = documents[part]
    assert document["benchmark"] == f"gpu_{part}"
    assert document["machine"]["cpu"] and document["machine"]["versions"]["torch"]
    assert document["configuration"]["rounds"] >= 1
    assert list(errors(document)) == []


def test_kernel(documents: dict[str, dict[str, Any]]) -> None:
    document = documents["kernel"]
    assert document["device"] == "cpu"
    for dtype in ("bfloat16", "float32"):
        row = document[f"mix 4 {dtype}"]
        assert row["max_error_to_plain"] == 0
        assert row["plain"]["us"] > 0 and row["copy_of_as_many_bytes"]["GBps"] > 0
    assert document["normalise 4 bfloat16"]["us"] > 0


def test_steps(documents: dict[str, dict[str, Any]]) -> None:
    rows = documents["steps"]["batch 8"]
    methods, feeds = ("finetune", "xmixup", "cotrain"), ("resident batch", "xmix_data")
    assert set(rows) == {f"{method}, {fed_by}" for method, fed_by in product(methods, feeds)}
    for name, row in rows.items():
        assert row["median_ms"] > 0 and len(row["ms"]) == 1
        plain = rows[f"finetune, {name.split(', ')[1]}"]["ms"]
        assert row["times_plain"] == pytest.approx(row["ms"][0] / plain[0])
    for method in methods:
        resident, fed = (rows[f"{method}, {fed_by}"] for fed_by in feeds)
        assert fed["idle_share"] == pytest.approx(1 - resident["ms"][0] / fed["ms"][0])


def test_feeding(documents: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from feeding import BACKENDS

    document, (host, dali) = documents["feeding"], BACKENDS
    has_dali = importlib.util.find_spec("nvidia.dali") is not None
    fed = [
        f"{pair}, {backend}, 2 threads"
        for pair, backend in product(("jpg + jpg", "raw + jpg"), BACKENDS if has_dali else (host,))
    ]
    how = ("alone", "training")
    expected = {"resident batch, training", *(", ".join(row) for row in product(fed, how))}
    assert set(document["rows"]) == expected
    for runs in document["rows"].values():
        for figures in runs:
            assert figures.keys() == {"pairs_per_s", "ms_per_step", "cores_used"}
            assert figures["pairs_per_s"] > 0 and figures["ms_per_step"] > 0
    assert set(document["explained"]) == set(fed)
    refused = document.get("refused_by_dali", {})
    assert refused == {name: 0 for name in fed if dali in name}


def test_pairing(documents: dict[str, dict[str, Any]]) -> None:
    document = documents["pairing"]
    assert document["import_faiss_s"] > 0
    for name in ("cosine_similarity, CPU", "torch, float32, cpu"):
        assert len(document[name]["seconds"]) == 4
        assert document[name]["error_to_float64"] < 2e-6  # half of it is rounding to 6 decimals


def test_smoke(documents: dict[str, dict[str, Any]]) -> None:
    document = documents["smoke"]
    trained = {key: row for key, row in document.items() if key.startswith("xmixup, ")}
    assert set(trained) == {
        "xmixup, amp",
        "xmixup, float32",
        "xmixup, resumed at its end",
        "xmixup, amp, a job of one process",
    }
    for method in set(METHODS) - {"delta"}:
        trained[method] = document[f"{method}, amp"]
    assert all(0 <= row["accuracy"] <= 1 and row["s"] > 0 for row in trained.values())
    assert trained["xmixup, resumed at its end"]["accuracy"] == trained["xmixup, amp"]["accuracy"]
    assert document["centroids, device against CPU"]["relative_error"] == 0
    assert document["backend auto"][1] == 8


@pytest.mark.slow
def test_parts_for_which_there_is_no_time_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("OUT", tmp_path / "out"), ("DATA", tmp_path / "data"), ("LIMIT", 17)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("KIT_DATA", raising=False)
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "all", *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    for part in ("feeding", "pairing", "kernel", "smoke", "doctor"):
        assert f"== {part}: left out" in done.stdout, done.stdout
    assert "== versions: at most 12 s, begun after 0 s" in done.stdout
    assert json.loads((tmp_path / "out" / "versions.json").read_text())["packages"]["torch"]


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_part_that_takes_too_long_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it waits for another process, which seems to write the betons."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("DATA", str(tmp_path))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    import gpu

    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with gpu.Process("data", gpu.Options("cpu", tiny=True)) as process:
            assert process.wait(2) is None
            assert process.wait(0) != 0
    assert not (tmp_path / "ready").exists()
