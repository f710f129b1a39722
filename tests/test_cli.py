"""Habits of the command: one JSON document, exit statuses, terminals, Ctrl-C, the doctor."""

from __future__ import annotations

import argparse
import functools
import io
import json
import logging
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import Betons
from pictures import Images, written
from PIL import Image
from processes import Server

from xmix_data import Beton, RandomCrop, XMixLoader, bench, cli
from xmix_data.bench import rows
from xmix_data.bench.rates import decode_rate, read_rate, training_rate
from xmix_data.beton import shard_name
from xmix_data.cli import _parser, main
from xmix_data.commands import doctor
from xmix_data.commands.doctor import verdict
from xmix_data.commands.probes import Check
from xmix_data.demo import steps as demo
from xmix_data.training import Recipe

Capture = pytest.CaptureFixture[str]

COMMAND = [sys.executable, "-m", "xmix_data"]


def environment(**more: str) -> dict[str, str]:
    """Buffered as for users, whatever the tests run with."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | more


def parsers() -> dict[str, argparse.ArgumentParser]:
    actions = _parser()._subparsers
    assert actions is not None
    (choices,) = [a.choices for a in actions._actions if isinstance(a.choices, dict)]
    return choices


# Help


@pytest.mark.parametrize("name", sorted(parsers()))
def test_help_has_examples_that_parse(name: str) -> None:
    examples = re.findall(r"^Example: xmix (.*)", parsers()[name].format_help(), re.M)
    assert len(examples) >= 2
    for example in examples:
        assert (
            _parser().parse_args(shlex.split(example)).run.__module__
            == f"xmix_data.commands.{name}"
        )


def test_without_arguments_it_says_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    begin, way = said.index("xmix demo"), said.index("xmix convert")
    assert begin < way and "xmix --help" in said


def test_the_first_help_shows_the_way_and_the_statuses() -> None:
    text = _parser().format_help()
    lines = re.findall(r"^  xmix (.*)", text.replace("\\\n", ""), re.M)
    commands = ["convert", "convert", "pair", "report", "train"]
    assert [shlex.split(line)[0] for line in lines] == commands
    for line in lines:
        _parser().parse_args(shlex.split(line))
    assert "Exit status: 0 done, 2 an error, 130 Ctrl-C, 141" in text


# JSON


def document(capsys: Capture, *arguments: object) -> object:
    """What a command prints with --json: stdout holds that and no more."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_command_takes_json() -> None:
    for name, parser in parsers().items():
        assert "--json" in parser._option_string_actions, name


def test_results_as_json(betons: Betons, tmp_path: Path, capsys: Capture) -> None:
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / "images" / label / "0.png")
    out = tmp_path / "out.beton"
    made = document(capsys, "convert", tmp_path / "images", out, "--image-size", 32)
    assert made == document(capsys, "inspect", out)
    assert isinstance(made, dict)
    assert (made["num_samples"], made["class_names"]) == (2, ["a", "b"])
    text = (Path(__file__).parents[1] / "docs" / "reference" / "commands.md").read_text()
    (row,) = re.findall(r"^\| `xmix convert`, `xmix inspect` \|(.*)$", text, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) - {"false"} == made.keys()

    domains = ["--target", betons.target_raw.path, "--source", betons.source_raw.path]
    pairing = tmp_path / "pairing.json"
    paired = document(
        capsys,
        "pair",
        *domains,
        "--model",
        "resnet18",
        "--weights",
        "none",
        "--crop",
        32,
        "--device",
        "cpu",
        "-o",
        pairing,
    )
    assert isinstance(paired, dict)
    assert paired["pairs"] == json.loads(pairing.read_text())["pairs"]
    assert paired["path"] == str(pairing) and -1 <= paired["mean_cosine"] <= 1
    assert paired["similarity"]["tells_classes_apart"] is False

    report = tmp_path / "report.html"
    assert document(capsys, "report", pairing, *domains, "-o", report) == {
        "path": str(report),
        "byte_length": report.stat().st_size,
    }


def test_bench_prints_json_or_writes_it(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = _parser().parse_args
    assert [parse(["bench", *a]).json for a in ([], ["--json"], ["--json", "-"])] == [
        None,
        True,
        True,
    ]
    assert parse(["bench", "--json", "--rounds", "2"]).json is True
    monkeypatch.setattr(rows, "MIN_IMAGES", 96)
    for index in range(4):
        (tmp_path / "data" / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        pixels = Images([4], "x", size=(32, 32))[index][0]
        Image.fromarray(pixels).save(tmp_path / "data" / "ab"[index % 2] / f"{index}.png")
    options = ["--data", tmp_path / "data", "--rounds", 1, "--crop", 24]
    printed = document(capsys, "bench", *options)
    assert isinstance(printed, dict) and printed["rates"].keys() > printed["ratios"].keys()


@pytest.mark.parametrize(
    "command",
    [
        "bench --json",
        "convert no-folder --overwrite",
        "pair --target no.beton --source no.beton --method random --overwrite -o",
        "report no.json --target no.beton --source no.beton --overwrite -o",
    ],
)
def test_an_output_that_cannot_be_written_is_an_error_before_any_work(
    command: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "report", lambda *_, **__: pytest.fail("it measured"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place, problem in (
        (tmp_path, f"{tmp_path}: is a folder; give the name of a file"),
        (tmp_path / "no" / "out", f"{tmp_path}/no: no such folder; create it first"),
        (Path("/proc/out"), "/proc/out: cannot be written (No such file or directory)"),
        (pipe, f"{pipe}: is no regular file; give another name"),
    ):
        assert main([*shlex.split(command), str(place)]) == 2
        assert capsys.readouterr().err.startswith(f"xmix: {problem}")
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_the_demo_tells_its_way_beside_its_json(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Recipe(iterations=2, batch_size=15, crop=28, flip=False)
    small = functools.partial(
        demo._Settings,
        variations=1,
        per_class=3,
        pretraining=short,
        fine_tuning=short,
        measured_pairs=30,
    )
    monkeypatch.setattr(demo, "_Settings", small)
    assert main(["demo", "--json", "--seeds", "1", "--output", str(tmp_path / "demo")]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert {str(path) for path in (tmp_path / "demo").iterdir()} >= set(made["files"])
    assert all(Path(file).is_file() for file in made["files"])
    assert [pair["target"] for pair in made["pairs"]] == [f"digit {i}" for i in range(10)]
    assert "seed 0: plain" in captured.err and "xmix: source head" not in captured.err


def test_an_error_leaves_no_json(capsys: Capture, tmp_path: Path) -> None:
    assert main(["inspect", str(tmp_path / "no.beton"), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


def test_verify_says_what_it_could_check(betons: Betons, tmp_path: Path, capsys: Capture) -> None:
    """Without a manifest, as FFCV writes betons, no hash says what the pixels were."""
    for beton, words in ((betons.target_jpg, "27 JPEGs decode"), (betons.target_raw, "27 raw")):
        path = shutil.copy(beton.path, tmp_path / "copy.beton")
        with open(path, "r+b") as stream:
            if beton is betons.target_raw:
                stream.seek(int(beton.pointers[0]))
                stream.write(bytes(300))
        found = document(capsys, "inspect", path, "--verify")
        assert isinstance(found, dict)
        assert (found["verified"], found["manifest"]) == (False, False)
        assert main(["inspect", str(path), "--verify"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("verified in part: the structure is sound") and words in last
        assert ("JPEGs" in last) == (beton is betons.target_jpg) == ("raw" not in last)


@pytest.mark.parametrize("name", ["set", "set.beton"])
def test_missing_shards_are_named_in_their_folder(
    name: str, betons: Betons, tmp_path: Path, capsys: Capture
) -> None:
    """Also where the set has no suffix, and the folder a dot."""
    (tmp_path / "d.v2").mkdir()
    place = tmp_path / "d.v2" / name
    for index in (0, 2):
        convert = ["convert", str(betons.target_raw.path), str(place), "--shard", f"{index}/3"]
        assert main([*convert, "--workers", "0"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(place)]) == 2
    missing = place.with_name("set-00001-of-00003" + place.suffix)
    assert f"missing: {missing}\n" in capsys.readouterr().out


# Exit statuses, of real processes


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        **{"env": environment(), "capture_output": True, "text": True, "timeout": 60, **options},  # type: ignore[call-overload]
    )


def test_what_cannot_be_parsed_is_one_line_too() -> None:
    done = run("train", "--method", "no\x1b[2J")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "see `xmix train --help`" in done.stderr and "\x1b" not in done.stderr
    done = run("report", "p.json", "--target", "t", "--source", "s", "-o", "r.html", "--page", "1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "xmix report: unrecognized arguments: --page 1; see `xmix report --help`\n"
    )


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        ("cache --clear ''", "--clear"),
        ("cache --clear=", "--clear"),
        ("convert '' out.beton", "SRC"),
        ("convert file:// out.beton", "SRC"),
        ("convert in ''", "OUT.beton"),
        ("convert in out.beton --classes ''", "--classes"),
        ("inspect ''", "FILE.beton"),
        ("doctor ''", "FILE.beton"),
        ("report '' --target t --source s -o r.html", "PAIRING.json"),
        ("report p.json --target t --source s -o ''", "-o/--output"),
        ("pair --target t --target '' --source s --method random -o p.json", "--target"),
        ("train --method finetune --target t --model resnet18 --output ''", "--output"),
        ("bench --data ''", "--data"),
        ("bench --json ''", "--json"),
        ("demo --output ''", "--output"),
    ],
)
def test_an_empty_text_is_one_error(
    command: str, argument: str, own_cache: Path, capsys: Capture
) -> None:
    """As of a variable that is not set: it is no name of the folder, nor of all there is."""
    kept = own_cache / "betons" / ("0" * 64)
    kept.mkdir(parents=True)
    for name in ("lock", "source.beton"):
        (kept / name).touch()
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert f"argument {argument}: the text is empty" in said
    assert (kept / "source.beton").exists()


@pytest.mark.parametrize(
    ("option", "unbuffered"), [("--json", ""), ("--json", "1"), ("--help", "")]
)
def test_output_that_cannot_be_written(betons: Betons, option: str, unbuffered: str) -> None:
    """A full disk is an error; a reader that has gone is none to talk about."""
    arguments = [*COMMAND, "inspect", str(betons.target_raw.path), option]
    variables = environment(PYTHONUNBUFFERED=unbuffered)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, text=True, env=variables
        )
    told = "No space left on device" in done.stderr
    assert (done.returncode, told, done.stderr.count("\n")) == (2, True, 1), done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        arguments, stdout=writer, stderr=subprocess.PIPE, text=True, env=variables
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_stdout_is_no_error(betons: Betons) -> None:
    command = shlex.join([*COMMAND, "inspect", str(betons.target_raw.path)])
    done = subprocess.run(
        ["sh", "-c", f"{command} >&-"], stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, "")


# Terminals


def on_a_terminal(
    arguments: Sequence[object],
    *,
    columns: int = 80,
    until: bytes | None = None,
    then: Callable[[int], object] | None = None,
    **variables: str,
) -> tuple[int, str]:
    """Run the command on a terminal of its own; status and all that it showed.

    ``then`` is done once, with the terminal, when ``until`` has been shown.
    """
    terminal, inside = pty.openpty()
    ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=environment(**variables),
        start_new_session=True,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(inside)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # the last process that had the terminal is gone
            break
        shown += part
        if then is not None and until is not None and until in shown:
            then(terminal)
            then = None
    else:
        process.kill()
    os.close(terminal)
    return process.wait(), shown.decode()


@pytest.mark.parametrize("columns", [80, 0])
def test_progress_is_a_bar_without_colours(betons: Betons, columns: int) -> None:
    """Also where the terminal says that it is 0 columns wide, as in containers."""
    command = ["inspect", betons.target_jpg.path, "--verify"]
    status, shown = on_a_terminal(command, columns=columns, NO_COLOR="1")
    assert status == 0
    assert re.search(r"\rverify: 100%\|.*\| 27/27 ", shown)
    assert "\x1b" not in shown


def test_a_dumb_terminal_and_a_log_have_plain_lines(betons: Betons) -> None:
    command = ["inspect", betons.target_jpg.path, "--verify"]
    status, shown = on_a_terminal(command, TERM="dumb")
    assert status == 0 and shown.startswith("verify: 27/27 (100 %), ")
    done = run(*command)
    assert re.fullmatch(r"verify: 27/27 \(100 %\), \d+ images/s\n", done.stderr)
    assert "\r" not in done.stdout + done.stderr


def test_training_leaves_no_escape_sequence(betons: Betons, tmp_path: Path) -> None:
    """Libraries that colour their own messages reset the terminal when the process ends."""
    status, shown = on_a_terminal(
        [
            "train",
            "--method",
            "finetune",
            "--target",
            betons.target_raw.path,
            "--model",
            "resnet18",
            "--weights",
            "none",
            "--iterations",
            1,
            "--batch-size",
            2,
            "--crop",
            32,
            "--device",
            "cpu",
            "--output",
            tmp_path / "run",
        ],
        OMP_NUM_THREADS="1",
    )
    assert status == 0, shown
    assert "finetune: 100%" in shown and "\x1b" not in shown


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_with_one_line(tmp_path: Path, times: int) -> None:
    """Typed on a terminal, it reaches the worker processes as well."""
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)).save(
        folder / "0.jpg"
    )
    for index in range(1, 600):
        (folder / f"{index}.jpg").hardlink_to(folder / "0.jpg")
    out = tmp_path / "out.beton"
    status, shown = on_a_terminal(
        ["convert", folder.parent, out, "--workers", 2],
        until=b"| 1",
        then=lambda terminal: os.write(terminal, b"\x03" * times),
    )
    assert status == 130, shown
    lines = re.split(r"[\r\n]+", shown[shown.index("^C") :].replace("^C", "").strip())
    lines = [line for line in lines if line and not line.startswith("convert out.beton: ")]
    assert lines == ["xmix: interrupted; nothing was left half-written"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_an_interrupt_signal_ends_a_command_in_a_log(
    betons: Betons, tmp_path: Path, forked: Server
) -> None:
    files = f"--target {betons.target_raw.path} --output {tmp_path / 'run'}"
    model = "--model resnet18 --weights none --crop 32 --batch-size 2 --device cpu"
    command = f"train --method finetune {files} {model} --iterations 100000 --log-every 1"
    process = forked.start(
        "-m", "xmix_data", *command.split(), environment={"OMP_NUM_THREADS": "1"}
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
    finally:
        process.kill()
    assert (status, process.stdout) == (130, "")
    assert process.stderr.splitlines()[-1] == "xmix: interrupted; nothing was left half-written"
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_temporary_folder(
    tmp_path: Path, forked: Server, number: signal.Signals
) -> None:
    data, temporary = tmp_path / "data" / "a", tmp_path / "temporary"
    temporary.mkdir()
    data.mkdir(parents=True)
    for index in range(3):
        Image.fromarray(np.full((300, 300, 3), 80 * index, np.uint8)).save(data / f"{index}.jpg")
    script = (
        f"import sys, tempfile, xmix_data.cli; tempfile.tempdir = {str(temporary)!r}; "
        "sys.exit(xmix_data.cli.main(sys.argv[1:]))"
    )
    bench = ["bench", "--data", str(data.parent), "--rounds", "1000"]
    process = forked.start("-c", script, *bench)
    try:
        deadline = time.monotonic() + 100
        while not list(temporary.glob("xmix-bench-*/raw.beton")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(temporary.iterdir())
        process.send_signal(number)
        status = process.wait(60)
    finally:
        process.kill()
    assert list(temporary.iterdir()) == []
    what = {signal.SIGTERM: "ended by SIGTERM", signal.SIGINT: "interrupted"}[number]
    last = process.stderr.splitlines()[-1]
    assert (status, last) == (128 + number, f"xmix: {what}; nothing was left half-written")


def test_a_callers_handler_of_sigterm_stays(tmp_path: Path, capsys: Capture) -> None:
    for handler in (signal.SIG_DFL, lambda *_: None):
        before = signal.signal(signal.SIGTERM, handler)
        try:
            assert main(["inspect", str(tmp_path / "no.beton")]) == 2
            assert signal.getsignal(signal.SIGTERM) is handler
        finally:
            signal.signal(signal.SIGTERM, before)


# The doctor


def test_the_doctor_names_versions_and_limits(capsys: Capture, betons: Betons) -> None:
    checks = document(capsys, "doctor", betons.source_jpg.path)
    assert isinstance(checks, list)
    values = {check["name"]: check["values"] for check in checks}
    assert values["torch"]["version"] == torch.__version__
    assert values["torch"]["cuda"] == torch.version.cuda
    assert re.fullmatch(r"\d+\.\d+[\w.]*", values["libjpeg-turbo"]["version"])
    assert Path(values["libjpeg-turbo"]["path"]).name.startswith("libjpeg.")
    assert values["dali"]["version"] and values["faiss"]["gpus"] == torch.cuda.device_count()
    assert values["memory"]["total_bytes"] > values["memory"]["free_bytes"] > 0
    assert values["cores"]["count"] == values["decoding"]["cores"]
    assert values["decoding"]["of_beton"] is True
    assert values["decoding"]["images_per_second"] > 0
    assert values["storage"].get("path", str(betons.source_jpg.path)) == str(betons.source_jpg.path)
    assert ("gpu step" in values) == torch.cuda.is_available() == ("jpg_jpg" in values["feeding"])
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ok +storage +not measured: ", said, re.M) and "made-up JPEGs" in said


def test_the_doctor_looks_at_a_set_of_shards(tmp_path: Path, capsys: Capture) -> None:
    shards = [tmp_path / shard_name("set.beton", index, 2) for index in range(2)]
    for index, path in enumerate(shards):
        written(Images([3, 3], "s", size=(24, 24)), path, image_size=24, shard=(index, 2))
    checks = document(capsys, "doctor", tmp_path / "set.beton")
    assert isinstance(checks, list)
    values = {check["name"]: check["values"] for check in checks}
    assert values["decoding"]["of_beton"] is True
    assert values["storage"].get("path", str(shards[0])) == str(shards[0])
    shards[1].unlink()
    assert main(["doctor", str(tmp_path / "set.beton")]) == 2
    assert "is one of 2 shards, and the list lacks shard 1" in capsys.readouterr().err


def test_the_doctor_fails_after_its_list(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(["doctor", "--json"]) == 2
    captured = capsys.readouterr()
    (faiss,) = [check for check in json.loads(captured.out) if check["name"] == "faiss"]
    assert not faiss["ok"] and "pip install faiss-cpu" in faiss["found"]
    assert captured.err == "xmix: something that xmix_data needs is missing; see the list\n"


def test_marks() -> None:
    assert Check("a", True, "").mark == Check("a", True, "", True).mark == "ok"
    assert Check("a", False, "").mark == "missing"
    assert Check("a", False, "", True).mark == "absent"
    assert Check("a", False, "", True, {"free_bytes": 1}).mark == "weak"


@pytest.mark.parametrize(
    ("rates", "ok", "words"),
    [
        ((4000.0, None, 2000.0), True, "decode 100% of that for two JPEG domains, 200% for"),
        ((2000.0, 9000.0, 2000.0), True, "50% of that for two JPEG domains, 100% for a raw"),
        ((1000.0, None, 2000.0), False, "raw betons, smaller images or more cores"),
        ((4000.0, 500.0, 2000.0), False, "reads 25% of the source images, until they are in"),
        ((4000.0, 500.0, None), True, "no GPU to feed"),
        ((None, None, 2000.0), True, "decoding was not measured"),
    ],
)
def test_the_verdict_compares_pairs(
    rates: tuple[float | None, float | None, float | None], ok: bool, words: str
) -> None:
    check = verdict(*rates)
    assert check.ok is ok and words in check.found
    assert check.mark == ("ok" if ok else "weak")


def test_rates_are_of_the_work_that_was_done(betons: Betons) -> None:
    """A larger picture takes longer; a step of a network is counted in images."""
    jpegs = [betons.target_jpg.data(i).tobytes() for i in range(4)]
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    beton = written(
        [(pixels, 0)] * 2,
        betons.target_jpg.path.with_name("noise.beton"),
        image_size=None,
        overwrite=True,
    )
    small = decode_rate(jpegs, 1, seconds=0.1)
    large = decode_rate([beton.data(0).tobytes()], 1, seconds=0.1)
    assert 0 < large < small / 4
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    device = torch.device("cpu")
    assert training_rate(network, device, batch_size=2, size=16, seconds=0.05) > 2
    assert all(p.grad is not None for p in network.parameters())


def test_reading_goes_past_the_page_cache_or_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(1 << 20))
    starts, sizes = np.array([0, 5000, (1 << 20) - 100], np.uint64), np.array([9000, 1, 100])
    try:
        assert read_rate(path, starts, sizes, seconds=0) > 0
    except OSError as error:
        assert "takes no direct reads" in str(error)
    with pytest.raises(OSError, match="takes no direct reads"):
        read_rate(Path("/proc/self/stat"), starts, sizes, seconds=0)


def test_a_raw_beton_is_read_and_made_up_pictures_decoded(betons: Betons) -> None:
    jpeg = betons.target_jpg.data(0).tobytes()
    beton = Beton(betons.source_raw.path)
    checks = {check.name: check for check in doctor.feeding([jpeg], beton)}
    assert checks["decoding"].values["of_beton"] is False
    assert checks["decoding"].values["bytes_per_image"] == len(jpeg)
    if checks["storage"].ok:
        assert checks["storage"].values["bytes_per_image"] == 40 * 40 * 3


# Random pairs


@pytest.mark.parametrize("model", [[], ["--model", "resnet18", "--weights", "nowhere.pt"]])
def test_random_pairs_compute_no_features(
    betons: Betons, tmp_path: Path, own_cache: Path, capsys: Capture, model: list[str]
) -> None:
    domains = ["--target", betons.target_raw.path, "--source", betons.source_raw.path]
    out = tmp_path / "p.json"
    made = document(capsys, "pair", *domains, *model, "--method", "random", "-o", out)
    assert isinstance(made, dict)
    assert (made["mean_cosine"], made["similarity"]) == (None, None)
    assert len(made["pairs"]) == 4 and not own_cache.exists()
    assert (
        main(["pair", *map(str, domains), "--method", "random", "-o", str(out), "--overwrite"]) == 0
    )
    said = capsys.readouterr().out
    assert "nan" not in said and "xmix report" not in said  # which shows cosines, and refuses
    with XMixLoader(
        betons.target_raw, betons.source_raw, out, batch_size=9, crop=RandomCrop(32), num_workers=1
    ) as loader:
        assert len(list(loader)) == 3
    assert main(["report", str(out), *map(str, domains), "-o", str(tmp_path / "r.html")]) == 2
    assert "no cosines to report: it was made without" in capsys.readouterr().err
    assert main(["pair", *map(str, domains), "-o", str(tmp_path / "q.json")]) == 2
    assert "--model is missing" in capsys.readouterr().err


# Terminals that do not know every character


class Terminal(NamedTuple):
    """Both streams of a process, in an encoding as a terminal may have it."""

    out: io.TextIOWrapper
    err: io.TextIOWrapper

    def read(self) -> tuple[str, str]:
        for stream in self:
            stream.flush()
        return tuple(s.buffer.getvalue().decode(s.encoding) for s in self)  # type: ignore[attr-defined, return-value]


def terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put in place by the test itself: pytest sets the streams anew before it."""
    made = Terminal(*(io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)))
    monkeypatch.setattr(sys, "stdout", made.out)
    monkeypatch.setattr(sys, "stderr", made.err)
    monkeypatch.setattr(logging.getLogger("xmix_data"), "handlers", [])
    return made


every_encoding = pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])


@every_encoding
@pytest.mark.parametrize("command", ["", *(c.__name__.rpartition(".")[2] for c in cli.COMMANDS)])
def test_help_on_every_terminal(
    encoding: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = terminal(encoding, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    out, err = shown.read()
    assert out.startswith("usage: xmix") and err == ""


@every_encoding
def test_names_on_every_terminal(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = terminal(encoding, monkeypatch)
    names = {"\u03bb\u5b57": 2, "\u00e4 \U0001f408": 1, os.fsdecode(b"\xff"): 1}
    for name, count in names.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "in" / name / f"{i}.png")
    (tmp_path / "in" / "\u03bb\u5b57" / "\u5b57.png").write_bytes(b"none")
    out = tmp_path / "\u5b57.beton"
    convert = ["convert", str(tmp_path / "in"), str(out), "--workers", "0"]
    assert main([*convert]) == 2
    assert main([*convert, "--on-error", "skip"]) == 0
    assert main(["inspect", str(out)]) == 0
    assert main(["inspect", str(out), "--json"]) == 0
    with pytest.raises(SystemExit):
        main(["inspect", "--\u03bb\u5b57"])
    printed, said = seen.read()
    shown = "\u5b57" if encoding == "utf-8" else r"\u5b57"
    assert f"{shown}.beton: 4 images, 3 classes" in printed
    assert f"{shown}.png: not an image" in said and f"convert {shown}.beton: 5/5" in said
