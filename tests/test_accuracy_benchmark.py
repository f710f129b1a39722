"""The table of accuracies for pre-trained weights, run small: its plan, its lines, a resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pictures import picture
from PIL import Image
from processes import Server

ROOT = Path(__file__).parents[1]
MODEL = """
import torch
from torch import nn
from xmix_data.backbones import Backbone

def backbone():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU()
    body = *first, nn.AdaptiveAvgPool2d(2), nn.Flatten()
    network = nn.Sequential(*body, nn.Linear(32, 5))
    return Backbone(network, "small", mean=(0.5,) * 3, std=(0.5,) * 3)
"""


def class_folder(path: Path, prefix: str, classes: int, images: int, seed: int) -> None:
    for label in range(classes):
        folder = path / f"{prefix}{label}"
        folder.mkdir(parents=True)
        for number in range(images):
            pixels = picture(36, 40, seed=1000 * seed + 100 * label + number)
            Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A target, two sources and a model."""
    for name, prefix, *numbers in (
        ("target/train", "t", 3, 20, 0),
        ("target/test", "t", 3, 4, 1),
        ("source/train", "s", 4, 22, 2),
        ("second/train", "u", 3, 22, 3),
    ):
        class_folder(tmp_path / name, prefix, *numbers)
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path


TRAIN = """
import time

def train(one, log):
    with open(log, "a") as stream:
        stream.write(f"{one['name']}\\n")
    time.sleep(one.get("seconds", 0))
    if one["name"] == "wrong":
        raise ValueError("no such setting")
    return {"accuracy": one.get("accuracy", 0.5)}
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that `train` of a module that processes can import writes names to."""
    (tmp_path / "shortest_training.py").write_text(TRAIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return tmp_path / "log"


def test_a_training_that_fails_leaves_the_others_alone(log: Path) -> None:
    from accuracy_parts.runs import Runs
    from shortest_training import train

    kept: list[Any] = []
    known = [{"task": {"name": "done"}, "accuracy": 0.5}]
    runs = Runs(known, kept.append, train, (log,), 2)
    tasks = [{"name": name} for name in ("first", "wrong", "done", "third", "last")]

    def after_the_third() -> dict[str, Any] | None:
        return {"name": "chosen"} if runs.line({"name": "third"}) else None

    wanted = [after_the_third, *(lambda one=one: one for one in tasks)]
    problems = runs.do(wanted)
    assert problems == ["name wrong: ValueError: no such setting"]
    names = {line["task"]["name"] for line in kept}
    assert names == {"first", "third", "last", "chosen"}
    assert sorted(log.read_text().split()) == sorted({*names, "wrong"})
    with pytest.raises(SystemExit, match="no such setting"):
        runs.of(tasks)
    assert runs.of(tasks[2:])  # they are there


def test_a_training_that_would_not_end_in_time_is_not_begun(log: Path) -> None:
    from accuracy_parts.runs import Runs
    from shortest_training import train

    def work(one: Any) -> float:
        return float(one["seconds"])

    runs = Runs([], lambda line: None, train, (log,), 1, work)
    names = {"first": 0.1, "long": 1e6, "short": 0.1}
    wanted = [lambda n=n, s=s: {"name": n, "seconds": s} for n, s in names.items()]
    problems = runs.do(wanted, seconds=1000)
    assert log.read_text().split() == ["first", "short"]
    assert problems == ["1 trainings are not begun; run it again for them"]


def test_rows_are_added_to_a_plan_and_none_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decided on late stays known as such, and the budget is that of the beginning."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from accuracy_parts import pretrained

    main, others, sweeps = pretrained.GROUPS
    path = tmp_path / "result.json"

    def plan(groups: Any, **changes: Any) -> dict[str, Any]:
        monkeypatch.setattr(pretrained, "GROUPS", groups)
        regime = pretrained.Regime(**changes)
        document = pretrained.planned(regime, tmp_path, "model.py:backbone", {}, [path])
        pretrained.write([path], document)
        return document

    begun = plan((main, others))
    assert "added" not in begun
    grown = plan((main, sweeps, others))
    names = [row["name"] for row in grown["configuration"]["rows"]]
    assert names == [row.name for rows in (main, others, sweeps) for row in rows]
    assert grown["added"] == [row.name for row in sweeps]
    assert grown["configuration"]["budget"] == begun["configuration"]["budget"]
    assert plan((main, sweeps, others)) == grown
    for groups, changes in (((main, others), {}), ((main, others, sweeps), {"crop": 64})):
        with pytest.raises(SystemExit, match="another plan or other images"):
            plan(groups, **changes)
    assert json.loads(path.read_text()) == grown

    # A row without a training may change, and none with one.
    other = (replace(main[0], fixed={"nesterov": True}), *main[1:])
    changed = plan((other, sweeps, others))
    assert changed["added"] == [*grown["added"], main[0].name]
    assert sorted(row["name"] for row in changed["configuration"]["rows"]) == sorted(names)
    changed["runs"] = [{"task": {"row": main[0].name}}]
    pretrained.write([path], changed)
    with pytest.raises(SystemExit, match="another plan or other images"):
        plan((main, sweeps, others))


@pytest.mark.slow
def test_every_row_is_trained_once_and_a_lost_one_again(
    forked: Server, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = images / "transfer_accuracy_pretrained.json"
    given = (
        f"{images}/source {images}/target --second-source {images}/second --scale pretrained "
        f"--model {images}/model.py:backbone --iterations 12 --tuning-iterations 3 --crop 32 "
        f"--seeds 2 --jobs 1 --json {path} --work {images}/work"
    )
    command = [str(ROOT / "benchmarks/transfer_accuracy.py"), *given.split()]

    def trained(*more: str) -> tuple[dict[str, Any], str]:
        done = forked.run(*command, *more, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(path.read_text()), done.stdout

    document, _ = trained("--only", "^XMixup, unmixed end$")
    first = [run["task"]["row"] for run in document["runs"]]
    assert first == ["XMixup"] * 2 + ["XMixup, unmixed end"] * 2  # its settings are the other's
    document, _ = trained()
    assert [run["task"]["row"] for run in document["runs"]][:4] == first
    rows = document["configuration"]["rows"]
    runs = document["runs"]
    final = [run for run in runs if run["task"]["test"] == "target-test"]
    assert {run["task"]["row"] for run in final} == {row["name"] for row in rows}
    both = [run for run in final if run["task"]["row"] == "L2"]
    assert [run["task"]["seed"] for run in both] == [0, 1]
    assert set(document["configuration"]["held_out"]) == {"t0", "t1", "t2"}
    assert all(0 <= run["accuracy"] <= 1 for run in runs)
    assert sum("network" in run for run in final) == 3
    assert document["configuration"]["budget"]["total"] > len(rows)
    for name, options in document["chosen"].items():  # the better one of those that were tried
        tried = [r for r in runs if r["task"]["row"] == name and r not in final]
        assert len(tried) == 2
        assert max(tried, key=lambda r: r["accuracy"])["task"]["options"] == options

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import results
    from table_parts import pretrained

    monkeypatch.setattr(results, "RESULTS", images)
    methods = [row["name"] for row in rows if row["times"] == 1]
    assert [
        line.split(" | ")[0][2:] for line in pretrained.pretrained().splitlines()[2:-2]
    ] == methods
    for table, count in (
        (pretrained.pretrained_iterations, 4),
        (pretrained.pretrained_changes, 10),
        (pretrained.pretrained_networks, 4),  # and one as it was loaded
    ):
        assert len(table().splitlines()) == 2 + count + 2, table()

    lost = final[-1]
    path.write_text(json.dumps({**document, "runs": [run for run in runs if run != lost]}))
    again, said = trained()
    assert said.count(", seed ") == 1
    fresh = again["runs"][-1]
    assert (fresh["task"], fresh["accuracy"]) == (lost["task"], lost["accuracy"])
    more, _ = trained("--only", "^Mixup$", "--every-seed")
    beyond = [run["task"] for run in more["runs"][len(again["runs"]) :]]
    assert [(task["row"], task["seed"]) for task in beyond] == [("Mixup", 1)]
    assert "beyond it, of seeds of Mixup;" in pretrained.pretrained()


@pytest.mark.slow
def test_the_gpus_part(forked: Server, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = images / "out"
    for name, path in (("OUT", out), ("DATA", images / "data"), ("ACCURACY_DATA", images)):
        monkeypatch.setenv(name, str(path))
    command = [str(ROOT / "benchmarks/gpu.py"), "accuracy", "--device", "cpu", "--tiny"]
    done = forked.run(*command, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads((out / "accuracy.json").read_text())
    final = [run for run in document["runs"] if run["task"]["test"] == "target-test"]
    assert len(final) == len(document["configuration"]["rows"])
