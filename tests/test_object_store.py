"""Betons in a bucket, from conversion to training: moto's S3 server, and s3fs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from conftest import Betons
from pictures import encoded, picture, written
from processes import ended

from xmix_data import Beton
from xmix_data.beton import open_domain
from xmix_data.cli import main

moto = pytest.importorskip("moto.server", reason="needs moto's server: pip install 'moto[server]'")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install s3fs")

SECONDS = 180
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples" / "cluster"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of this test's own, for this process and those that it starts."""
    for name, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere"),
        ("AWS_CONFIG_FILE", "/nowhere"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def names(bucket: str) -> list[str]:
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    return sorted(path.partition("/")[2] for path in store.find(bucket))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder of 60 JPEGs, which take some time to convert."""
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(60):
        path = folder / f"class{index % 3}" / f"{index:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(picture(300, 400, index)))
    return folder


def assert_same_samples(name: str | list[str], whole: Beton) -> None:
    domain = open_domain(name)
    assert domain.class_names == whole.class_names
    assert (domain.labels == whole.labels).all()
    for index in range(len(whole)):
        beton, local = domain.locate(index)
        assert np.array_equal(beton.data(local), whole.data(index))


def test_a_conversion_into_a_bucket(bucket: str, photographs: Path, tmp_path: Path) -> None:
    whole = written(photographs, tmp_path / "whole.beton")
    assert main(["convert", str(photographs), f"{bucket}/d/s.beton", "--workers", "2"]) == 0
    assert names(bucket) == ["d/s.beton", "d/s.beton.json"]
    assert Beton(f"{bucket}/d/s.beton").path.read_bytes() == whole.path.read_bytes()


def test_a_folder_in_a_bucket_is_the_folder(bucket: str, photographs: Path, tmp_path: Path) -> None:
    s3fs.S3FileSystem().put(str(photographs), f"{bucket}/train", recursive=True)
    here = written(photographs, tmp_path / "here.beton")
    for workers in (0, 2):
        out = tmp_path / f"{workers}.beton"
        there = written(f"{bucket}/train", out, num_workers=workers)
        assert there.path.read_bytes() == here.path.read_bytes()
        assert there.manifest == here.manifest


def test_a_killed_conversion_uploads_nothing(
    bucket: str, photographs: Path, own_cache: Path, forked: processes.Server
) -> None:
    out = f"{bucket}/s.beton"
    command = ["-m", "xmix_data", "convert", str(photographs), out, "--workers", "0"]
    process = forked.start(*command)
    deadline = time.monotonic() + SECONDS
    while not list((own_cache / "uploads").glob("*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(SECONDS)
    assert names(bucket) == []
    for left in (own_cache / "uploads").iterdir():
        os.utime(left, (0, 0))  # the next one removes what is old and of nobody
    assert ended([forked.start(*command)], SECONDS)[0][0] == 0
    assert len(Beton(out)) == 60 and not list((own_cache / "uploads").iterdir())


def test_shards_of_a_bucket_in_a_bucket(
    bucket: str,
    photographs: Path,
    tmp_path: Path,
    forked: processes.Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As jobs of Slurm's array run them, one of which is lost."""
    s3fs.S3FileSystem().put(str(photographs), f"{bucket}/train", recursive=True)
    out, bin_folder = f"{bucket}/out/s.beton", tmp_path / "bin"
    bin_folder.mkdir()
    xmix = bin_folder / "xmix"
    xmix.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m xmix_data "$@"\n')
    xmix.chmod(0o755)
    script = tmp_path / "convert.sh"
    text = (EXAMPLES / "convert_slurm.sh").read_text()
    assert "shards=64 " in text and "--array=0-63" in text
    script.write_text(text.replace("shards=64 ", "shards=2 "))

    def job(index: int) -> None:
        path = f"{bin_folder}:{os.environ['PATH']}"
        variables = {"PATH": path, "SLURM_ARRAY_TASK_ID": str(index), "SLURM_CPUS_PER_TASK": "1"}
        command = ["bash", str(script), f"{bucket}/train", out, "--image-size", "64"]
        subprocess.run(command, env=os.environ | variables, check=True, timeout=SECONDS)

    job(0)
    assert main(["inspect", out, "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["missing"] == [1]
    assert said.err.splitlines()[-1] == (
        f"xmix: {out}: lacks shards; run `xmix convert` with --shard 1/2"
    )
    job(1)
    assert main(["inspect", out, "--verify"]) == 0
    assert f"{out}: 2 of 2 shards, 60 images" in capsys.readouterr().out
    assert_same_samples(out, written(photographs, tmp_path / "whole.beton", image_size=64))


def train_command(bucket: str, output: Path) -> list[str]:
    files = (
        f"--target {bucket}/target.beton --source {bucket}/source.beton "
        f"--pairing {bucket}/pairing.json --test {bucket}/test.beton --output {output}"
    )
    numbers = "--iterations 3 --batch-size 4 --crop 32 --log-every 1 --workers 1 --device cpu"
    model = "--model mobilenet_v3_small --weights none"
    return f"train --method xmixup {files} {model} {numbers}".split()


def test_training_from_a_bucket(
    bucket: str, betons: Betons, tmp_path: Path, own_cache: Path, forked: processes.Server
) -> None:
    """By two ranks; the result is that of the same betons on the disk."""
    store = s3fs.S3FileSystem()
    here = tmp_path / "here"
    here.mkdir()
    for name, beton in (
        ("target", betons.target_raw),
        ("source", betons.source_jpg),
        ("test", betons.target_jpg),
    ):
        for end in (".beton", ".beton.json"):
            store.put(str(beton.path.with_suffix(end)), f"{bucket}/{name}{end}")
            os.symlink(beton.path.with_suffix(end), here / f"{name}{end}")
    betons.pairing.save(f"{bucket}/pairing.json")
    betons.pairing.save(here / "pairing.json")
    results = []
    for place, output in ((bucket, tmp_path / "distant"), (str(here), tmp_path / "near")):
        command = ["-m", "xmix_data", *train_command(place, output)]
        for status, _, err in ended(forked.job(2, *command), SECONDS):
            assert status == 0, err
        results.append(json.loads((output / "result.json").read_text()))
        lines = (output / "metrics.jsonl").read_text().splitlines()
        results[-1]["losses"] = [json.loads(line).get("loss") for line in lines]
    assert results[0]["losses"] == results[1]["losses"] and len(results[0]["losses"]) >= 3
    assert results[0]["accuracy"] == results[1]["accuracy"]
    cached = {path.parent.name for path in (own_cache / "betons").glob("*/*.beton")}
    given = (betons.target_raw, betons.source_jpg, betons.target_jpg)
    assert cached == {beton.fingerprint.removeprefix("sha256:") for beton in given}


# Bad input


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return line


def test_a_bucket_that_does_not_exist(
    bucket: str, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["inspect", "s3://none/x.beton"],
        ["convert", str(photographs), "s3://none/x.beton"],
        ["convert", "s3://none/train.beton", f"{bucket}/x.beton"],
    ):
        assert main(command) == 2
        line = line_of(capsys)
        assert line.startswith("xmix: s3://none/") and "bucket does not exist" in line
        assert line.endswith("check the names in it")


def test_credentials_that_are_missing(
    bucket: str,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    for command in (
        ["inspect", f"{bucket}/x.beton"],
        ["convert", str(photographs), f"{bucket}/x.beton"],
        ["convert", f"{bucket}/train", "here.beton"],
    ):
        assert main(command) == 2
        line = line_of(capsys)
        assert line.startswith(f"xmix: {bucket}/") and "there are no credentials for it" in line
        assert "`aws configure` or AWS_ACCESS_KEY_ID" in line


# On Ray


RAY = """
import os, runpy, sys
import ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """The processes below a process, with what they call themselves."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    todo = list(parents.get(pid, ()))
    while todo:
        child = todo.pop()
        todo += parents.get(child, ())
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        yield child, title


@pytest.mark.slow
def test_the_recipe_on_ray_bears_the_death_of_a_worker(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="needs ray: pip install ray")
    folder = tmp_path / "images"
    for index in range(120):
        path = folder / f"class{index % 3}" / f"{index:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(1200, 1600, index)))
    out = f"{bucket}/s.beton"
    recipe = [str(EXAMPLES / "convert_ray.py"), str(folder), out, "--shards", "4"]
    command = [sys.executable, "-c", RAY, *recipe, "--image-size", "200"]
    killed: Any = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as driver:
        deadline = time.monotonic() + SECONDS
        while killed is None and driver.poll() is None and time.monotonic() < deadline:
            tasks = [pid for pid, title in descendants(driver.pid) if title.startswith("ray::conv")]
            # Two tasks begin together; the first has begun its work when it has a file.
            if len(tasks) == 2:
                killed = tasks[0]
                os.kill(killed, signal.SIGKILL)
            time.sleep(0.02)
        said = driver.communicate(timeout=SECONDS)[0]
    assert driver.returncode == 0 and killed is not None, said
    assert sorted(line for line in said.splitlines() if line.endswith("is written")) == [
        f"shard {index}/4 is written" for index in range(4)
    ]
    assert main(["inspect", out, "--verify"]) == 0
    assert "4 of 4 shards, 120 images" in capsys.readouterr().out
    assert_same_samples(out, written(folder, tmp_path / "whole.beton", image_size=200))
