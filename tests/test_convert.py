"""`xmix convert` and `xmix inspect`: what they write and print, and one line for every error."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from pictures import picture
from PIL import Image

from xmix_data import Beton, BetonError, PairedClass, Pairing
from xmix_data.beton import open_domain
from xmix_data.beton.layout import JPG, RAW
from xmix_data.cli import main

COUNTS = {"ant": 4, "bee": 2, "cat": 1, "dog": 5}
TIMEOUT_S = 120

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's log handler belongs to the stderr of one test."""
    monkeypatch.setattr(logging.getLogger("xmix_data"), "handlers", [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dozen JPEGs of 32 x 40 pixels in four classes."""
    root = tmp_path / "images"
    for label, (name, count) in enumerate(COUNTS.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(picture(32, 40, 10 * label + i))
            image.save(root / name / f"{i}.jpg")
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.beton"


def xmix(capsys: Capture, *arguments: Any) -> str:
    """Runs a command that succeeds; returns what it printed."""
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed.out


def convert(capsys: Capture, *arguments: Any) -> str:
    return xmix(capsys, "convert", "--workers", 0, *arguments)


def error(capsys: Capture, *arguments: Any) -> str:
    """Runs a command that fails with one line on stderr; returns the line."""
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert printed.err.startswith("xmix: ")
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("xmix: ").rstrip("\n")


def files_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def names_of(beton: Beton) -> dict[str, int]:
    return dict(zip(beton.class_names, beton.class_counts, strict=True))


# xmix convert


def test_convert_writes_a_class_folder_and_says_what(
    capsys: Capture, folder: Path, out: Path
) -> None:
    printed = convert(capsys, folder, out)
    beton = Beton(out)
    assert names_of(beton) == COUNTS
    assert beton.labels.tolist() == [0] * 4 + [1] * 2 + [2] + [3] * 5
    assert (beton.encoding, beton.image_size) == ("jpg", 256)
    megabytes = beton.byte_length / 1e6
    assert printed == (
        f"wrote {out}: 12 images, 4 classes, jpg, shorter edge 256, {megabytes:.1f} MB\n"
    )
    assert files_in(out.parent) == ["images", "out.beton", "out.beton.json"]


def test_all_cores_write_the_bytes_of_one(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out)
    xmix(capsys, "convert", folder, out.with_name("cores.beton"))
    for suffix in ("", ".json"):
        written = [out.with_name(f"{name}.beton{suffix}").read_bytes() for name in ("out", "cores")]
        assert written[0] == written[1]


@pytest.mark.parametrize(
    ("options", "mode", "shape"),
    [
        (["--encoding", "raw", "--image-size", 16], RAW, (16, 16)),
        (["--encoding", "jpg", "--image-size", 16, "--crop", "none"], JPG, (16, 20)),
        (["--encoding", "raw", "--image-size", "none"], RAW, (32, 32)),
        (["--encoding", "raw", "--image-size", "none", "--crop", "none"], RAW, (32, 40)),
    ],
)
def test_encoding_size_and_crop_are_obeyed(
    capsys: Capture, folder: Path, out: Path, options: list[Any], mode: int, shape: tuple[int, int]
) -> None:
    convert(capsys, folder, out, *options)
    beton = Beton(out)
    assert set(beton.modes.tolist()) == {mode}
    assert set(zip(beton.heights.tolist(), beton.widths.tolist(), strict=True)) == {shape}


def test_quality_is_obeyed(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out, "--quality", 95)
    best = int(Beton(out).sizes.sum())
    convert(capsys, folder, out, "--quality", 20, "--overwrite")
    assert int(Beton(out).sizes.sum()) < best / 2


def test_keep_keeps_the_bytes_of_the_files(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out, "--encoding", "keep", "--image-size", 32, "--crop", "none")
    beton = Beton(out)
    for index, path in enumerate(sorted(folder.glob("*/*.jpg"))):
        assert beton.data(index).tobytes() == path.read_bytes()


def test_a_beton_is_converted_again(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out, "--encoding", "raw", "--image-size", 32)
    again = out.with_name("again.beton")
    convert(capsys, out, again, "--encoding", "raw", "--image-size", 32)
    assert again.read_bytes() == out.read_bytes()
    assert names_of(Beton(again)) == COUNTS


def test_a_torchvision_dataset_is_converted(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, "torchvision:ImageFolder", out, "--root", folder, "--encoding", "raw")
    assert names_of(Beton(out)) == COUNTS
    convert(capsys, folder, out.with_name("folder.beton"), "--encoding", "raw")
    assert out.read_bytes() == out.with_name("folder.beton").read_bytes()


def test_classes_keeps_the_classes_of_a_file(
    capsys: Capture, folder: Path, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("dog\n\n  bee \n", encoding="utf-8-sig")
    convert(capsys, folder, out, "--classes", tmp_path / "classes.txt")
    assert names_of(Beton(out)) == {"bee": 2, "dog": 5}


def test_per_class_keeps_that_many_images_of_each_class(
    capsys: Capture, folder: Path, out: Path
) -> None:
    options = ["--encoding", "keep", "--image-size", "none", "--crop", "none"]
    convert(capsys, folder, out, "--per-class", 2, *options)
    beton = Beton(out)
    assert names_of(beton) == {"ant": 2, "bee": 2, "cat": 1, "dog": 2}
    files = [path.read_bytes() for path in sorted(folder.glob("*/*.jpg"))]
    places = [files.index(beton.data(index).tobytes()) for index in range(len(beton))]
    assert places == sorted(set(places))  # each once, in the order of the source
    convert(capsys, folder, out.with_name("again.beton"), "--per-class", 2, *options)
    assert out.read_bytes() == out.with_name("again.beton").read_bytes()


@pytest.fixture
def pairing(tmp_path: Path) -> Path:
    """Two target classes, which use the classes dog, bee and cat of the source."""
    pairs = {
        "target1": [PairedClass("dog", 0.9, 5), PairedClass("bee", 0.5, 2)],
        "target2": [PairedClass("cat", 0.8, 1)],
    }
    Pairing(pairs).save(tmp_path / "pairing.json")
    return tmp_path / "pairing.json"


def test_pairing_keeps_the_source_classes_that_are_used(
    capsys: Capture, folder: Path, out: Path, pairing: Path
) -> None:
    convert(capsys, folder, out, "--pairing", pairing)
    assert names_of(Beton(out)) == {"bee": 2, "cat": 1, "dog": 5}


def test_pairing_classes_and_per_class_make_a_subset_in_one_command(
    capsys: Capture, folder: Path, out: Path, pairing: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("ant\nbee\ndog\n")
    convert(
        capsys,
        folder,
        out,
        "--pairing",
        pairing,
        "--per-class",
        3,
        "--classes",
        tmp_path / "classes.txt",
    )
    assert names_of(Beton(out)) == {"bee": 2, "dog": 3}


def test_a_beton_of_the_whole_is_a_source_of_subsets(
    capsys: Capture, folder: Path, out: Path, pairing: Path
) -> None:
    options = ["--encoding", "raw", "--image-size", 32]
    convert(capsys, folder, out, *options)
    parts = [out.with_name(f"{i}.beton") for i in range(2)]
    for source, part in zip((folder, out), parts, strict=True):
        convert(capsys, source, part, "--pairing", pairing, "--per-class", 2, *options)
    assert parts[0].read_bytes() == parts[1].read_bytes()


def test_shards_are_written_under_names_of_their_own(
    capsys: Capture, folder: Path, out: Path
) -> None:
    convert(capsys, folder, out)
    for index in range(3):
        convert(capsys, folder, out, "--shard", f"{index}/3")
    shards = [out.with_name(f"out-0000{index}-of-00003.beton") for index in range(3)]
    domain = open_domain(shards)
    assert [len(beton) for beton in domain.betons] == [4, 4, 4]
    assert domain.labels.tolist() == Beton(out).labels.tolist()
    assert domain.class_names == list(COUNTS)


def test_unreadable_images_are_skipped_counted_and_listed_when_asked(
    capsys: Capture, folder: Path, out: Path
) -> None:
    bad = folder / "dog" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    assert main(["convert", str(folder), str(out), "--on-error", "skip", "--workers", "0"]) == 0
    printed = capsys.readouterr()
    phrase = "skipped 1 unreadable images (1 unreadable or truncated image)"
    assert f"xmix: {out}: {phrase}, see out.beton.json\n" in printed.err
    assert printed.out.endswith(f" MB; {phrase}\n")
    assert names_of(Beton(out)) == {**COUNTS, "dog": 4}
    inspected = xmix(capsys, "inspect", out)
    assert f"skipped at conversion: {bad}: " in inspected
    facts = json.loads(xmix(capsys, "inspect", out, "--json"))
    assert [(entry["index"], entry["path"]) for entry in facts["skipped"]] == [(8, str(bad))]


def test_files_that_are_no_images_are_counted(capsys: Capture, folder: Path, out: Path) -> None:
    for name in ("dog/1.heic", "dog/2.HEIC", "cat/notes.txt", "cat/._1.jpg", "README", "3.jpg"):
        (folder / name).write_bytes(b"")
    assert main(["convert", str(folder), str(out), "--workers", "0"]) == 0
    printed = capsys.readouterr()
    phrase = "left out 6 files (2 .heic, 1 no suffix, 1 .jpg, 1 .txt, 1 hidden)"
    assert f"xmix: {out}: {phrase}, see out.beton.json\n" in printed.err
    assert printed.out.endswith(f" MB; {phrase}\n")
    facts = json.loads(xmix(capsys, "inspect", out, "--json"))
    assert facts["left_out"] == {"": 1, ".heic": 2, ".jpg": 1, ".txt": 1, "hidden": 1}


def test_keep_says_how_many_kept_their_bytes(capsys: Capture, folder: Path, out: Path) -> None:
    file = folder / "dog" / "1.jpg"
    junk = file.read_bytes().replace(b"\xff\xdb", b"junk\xff\xdb", 1)
    file.write_bytes(junk)  # in the header: it is encoded anew, and no error
    whole = ("--encoding", "keep", "--image-size", "none", "--crop", "none")
    printed = convert(capsys, folder, out, *whole)
    beton = Beton(out)
    sources = {path.read_bytes() for path in folder.rglob("*.jpg")}
    kept = sum(beton.data(i).tobytes() in sources for i in range(len(beton)))
    assert 0 < kept < len(beton)
    assert junk not in {beton.data(i).tobytes() for i in range(len(beton))}
    anew = len(beton) - kept
    assert f"; {kept} images kept their bytes, {anew} were encoded anew\n" in printed
    assert json.loads(xmix(capsys, "inspect", out, "--json"))["kept"] == kept
    again = out.with_name("again.beton")
    convert(capsys, out, again, *whole)
    assert json.loads(xmix(capsys, "inspect", again, "--json"))["kept"] == len(beton)


def test_overwrite_replaces(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out)
    convert(capsys, folder, out, "--overwrite", "--per-class", 1)
    assert names_of(Beton(out)) == dict.fromkeys(COUNTS, 1)


@pytest.mark.parametrize("part", [[], ["--per-class", 1], ["--classes", "classes.txt"]])
def test_a_source_is_not_overwritten_by_a_part_of_it(
    capsys: Capture, folder: Path, out: Path, part: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(capsys, folder, out)
    monkeypatch.chdir(out.parent)
    Path("classes.txt").write_text("bee\n")
    before = out.read_bytes()
    said = error(capsys, "convert", out, out, "--overwrite", *part)
    assert said == f"{out}: is the source itself; choose another name"
    assert out.read_bytes() == before


def test_progress_is_plain_lines_where_there_is_no_terminal(
    capsys: Capture, folder: Path, out: Path
) -> None:
    assert main(["convert", str(folder), str(out), "--workers", "0"]) == 0
    assert capsys.readouterr().err.startswith("convert out.beton: 12/12 (100 %), ")


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "xmix_data", *map(str, arguments)]


def test_progress_is_a_bar_on_a_terminal(folder: Path, out: Path) -> None:
    terminal, other_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    running = subprocess.Popen(
        command("convert", folder, out, "--workers", 0), stderr=other_end, stdout=subprocess.DEVNULL
    )
    os.close(other_end)
    shown = b""
    try:
        while part := os.read(terminal, 1000):
            shown += part
    except OSError:  # the terminal's other end is closed
        pass
    os.close(terminal)
    assert running.wait(TIMEOUT_S) == 0
    assert b"convert out.beton: 100%|" in shown
    assert b"12/12" in shown


# Errors


def test_a_missing_source_is_one_line(capsys: Capture, tmp_path: Path, out: Path) -> None:
    assert error(capsys, "convert", tmp_path / "nowhere", out) == (
        f"{tmp_path}/nowhere: no such folder; give a folder of class folders"
    )
    assert error(capsys, "convert", tmp_path / "nowhere.beton", out) == (
        f"{tmp_path}/nowhere.beton: no such beton; write one with `xmix convert`"
    )


def test_an_empty_folder_is_one_line(capsys: Capture, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert error(capsys, "convert", tmp_path / "empty", out) == (
        f"{tmp_path}/empty: no class folders in it; put the images of each class into a folder of "
        "its own"
    )


def test_a_folder_of_no_images_is_one_line(capsys: Capture, folder: Path, out: Path) -> None:
    (folder / "void").mkdir()
    (folder / "void" / "notes.txt").write_text("no image")
    line = error(capsys, "convert", folder, out)
    assert line.startswith(f"{folder}/void: no images in this class folder (looked for .jpg, ")
    assert line.endswith("; add images or remove the folder")


def test_two_folders_of_one_class_are_one_line(capsys: Capture, folder: Path, out: Path) -> None:
    (folder / "hound").symlink_to("dog")
    assert error(capsys, "convert", folder, out) == (
        f"{folder}/dog and {folder}/hound are two folders of the same class; "
        "merge them or rename one"
    )


@pytest.mark.parametrize("workers", [[], ["--workers", 0]])
def test_an_unreadable_image_is_one_line_and_leaves_nothing(
    capsys: Capture, folder: Path, out: Path, workers: list[Any]
) -> None:
    bad = folder / "dog" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:-100])
    line = error(capsys, "convert", folder, out, *workers)
    assert line.startswith(f"{bad}: unreadable or truncated image (")
    assert line.endswith("; mend or remove it, or skip such images (on_error='skip')")
    assert files_in(out.parent) == ["images"]


def test_an_existing_output_is_one_line_before_the_source_is_looked_at(
    capsys: Capture, tmp_path: Path, out: Path
) -> None:
    out.write_text("precious")
    assert error(capsys, "convert", tmp_path / "nowhere", out) == (
        f"{out}: exists; choose another name or add --overwrite"
    )
    assert out.read_text() == "precious"


def test_an_existing_shard_is_one_line(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out, "--shard", "0/2")
    line = error(capsys, "convert", folder, out, "--shard", "0/2")
    assert line.startswith(f"{out.parent}/out-00000-of-00002.beton: exists; ")


def test_a_missing_output_folder_is_one_line(capsys: Capture, folder: Path, out: Path) -> None:
    assert error(capsys, "convert", folder, out.parent / "nowhere" / "x.beton") == (
        f"{out.parent}/nowhere: no such folder; create it first"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quality", 0], "quality is 0; it must lie in 1 .. 100"),
        (["--image-size", 0], "image_size is 0; it must lie in 1 .. 65500 or be None"),
        (["--per-class", 0], "per_class is 0; it must be at least 1"),
        (["--shard", "2/2"], "shard 2 of 2 does not exist; counting starts at 0"),
        (["--workers", -1], "num_workers is -1; it must be at least 0"),
    ],
)
def test_an_impossible_option_is_one_line(
    capsys: Capture, folder: Path, out: Path, options: list[Any], message: str
) -> None:
    assert error(capsys, "convert", folder, out, *options) == message
    assert files_in(out.parent) == ["images"]


@pytest.mark.parametrize(
    "options",
    [
        ["--encoding", "png"],
        ["--crop", "round"],
        ["--on-error", "ignore"],
        ["--shard", "1"],
        ["--image-size", "big"],
        ["--quality", "high"],
        ["--unknown"],
    ],
)
def test_an_option_that_cannot_be_parsed_is_a_usage_error(
    capsys: Capture, folder: Path, out: Path, options: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(folder), str(out), *options])
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err
    assert files_in(out.parent) == ["images"]


def test_a_class_that_the_source_lacks_is_one_line(
    capsys: Capture, folder: Path, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncow\n")
    assert error(capsys, "convert", folder, out, "--classes", tmp_path / "classes.txt") == (
        "class 'cow' is not in the source, which has 4 classes (ant, bee, cat, dog); "
        "correct the list of classes"
    )


def test_a_pairing_for_another_source_is_one_line(
    capsys: Capture, folder: Path, out: Path, tmp_path: Path
) -> None:
    Pairing({"t": [PairedClass("eel", 0.9, 5)]}).save(tmp_path / "pairing.json")
    line = error(capsys, "convert", folder, out, "--pairing", tmp_path / "pairing.json")
    assert line.startswith("class 'eel' is not in the source, which has 4 classes (ant, bee, ")


def test_a_broken_pairing_is_one_line_that_names_it(
    capsys: Capture, folder: Path, out: Path, pairing: Path
) -> None:
    pairing.write_text(pairing.read_text()[:100])
    assert str(pairing) in error(capsys, "convert", folder, out, "--pairing", pairing)


@pytest.mark.parametrize("option", ["--classes", "--pairing"])
def test_a_missing_list_of_classes_is_one_line_that_names_it(
    capsys: Capture, folder: Path, out: Path, option: str
) -> None:
    missing = out.parent / "missing.file"
    assert str(missing) in error(capsys, "convert", folder, out, option, missing)


def test_no_class_left_is_one_line(
    capsys: Capture, folder: Path, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("\n")
    line = error(capsys, "convert", folder, out, "--classes", tmp_path / "classes.txt")
    assert line == f"{tmp_path}/classes.txt: names no class; write one a line"


def test_an_unknown_torchvision_dataset_is_one_line(capsys: Capture, out: Path) -> None:
    line = error(capsys, "convert", "torchvision:Flowers", out)
    assert line.startswith("torchvision has no dataset 'Flowers'; it has ")


@pytest.mark.parametrize("content", [b"", bytes(5000), b"\x89PNG\r\n\x1a\n" * 100])
def test_a_file_that_is_no_beton_is_one_line(
    capsys: Capture, tmp_path: Path, out: Path, content: bytes
) -> None:
    (tmp_path / "file.beton").write_bytes(content)
    for arguments in (
        ("convert", tmp_path / "file.beton", out),
        ("inspect", tmp_path / "file.beton"),
    ):
        line = error(capsys, *arguments)
        assert line.startswith(f"{tmp_path}/file.beton: no beton: ")
        assert line.endswith("; convert it again")


def test_debug_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "x.beton"), "--debug"])


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, **options
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_one_line_and_leaves_nothing(folder: Path, out: Path, workers: int) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((8 << 20) + 100_000,) * 2)

    done = run(
        "convert", folder, out, "--encoding", "raw", "--workers", workers, preexec_fn=limit_files
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"xmix: {out}: cannot be written (File too large); free space or write elsewhere\n"
    )
    assert files_in(out.parent) == ["images"]


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_conversion_is_one_line_and_leaves_nothing(
    tmp_path: Path, out: Path, workers: int
) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.fromarray(picture(2000, 2000, 0)).save(tmp_path / "images" / "a" / "0.jpg")
    for i in range(1, 3000):
        (tmp_path / "images" / "a" / f"{i}.jpg").symlink_to("0.jpg")
    running = subprocess.Popen(
        command("convert", tmp_path / "images", out, "--workers", workers),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    partial = out.with_name("out.beton.partial")
    deadline = time.monotonic() + TIMEOUT_S
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C does: to all processes of the terminal
    _, printed = running.communicate(timeout=TIMEOUT_S)
    # Where the machine is busy and the first image took ten seconds, progress comes first.
    said = [line for line in printed.splitlines() if not line.startswith("convert out.beton: ")]
    assert said == ["xmix: interrupted; nothing was left half-written"]
    assert running.returncode == 130 and files_in(tmp_path) == ["images"]


# xmix inspect


def test_inspect_says_what_a_beton_holds(capsys: Capture, folder: Path, out: Path) -> None:
    described = convert(capsys, folder, out)
    printed = xmix(capsys, "inspect", out).splitlines()
    assert printed == [
        described.removeprefix("wrote ").rstrip("\n"),
        "images a class: 1 to 5",
        f"fingerprint: {Beton(out).fingerprint}",
    ]


def test_inspect_prints_json(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out, "--encoding", "raw", "--image-size", 16)
    beton = Beton(out)
    assert json.loads(xmix(capsys, "inspect", out, "--json")) == {
        "path": str(out),
        "num_samples": 12,
        "class_names": list(COUNTS),
        "class_counts": list(COUNTS.values()),
        "encoding": "raw",
        "image_size": 16,
        "byte_length": out.stat().st_size,
        "page_size": 8 << 20,
        "fingerprint": beton.fingerprint,
        "shard": None,
        "manifest": True,
        "skipped": [],
        "left_out": {},
        "kept": None,
        "verified": False,
    }
    assert json.loads(xmix(capsys, "inspect", out, "--json", "--verify"))["verified"] is True


def test_inspect_says_that_a_manifest_is_missing(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out)
    out.with_name("out.beton.json").unlink()
    printed = xmix(capsys, "inspect", out)
    assert "no manifest: written elsewhere, or its .json was left behind" in printed
    facts = json.loads(xmix(capsys, "inspect", out, "--json"))
    assert (facts["manifest"], facts["class_names"]) == (False, ["0", "1", "2", "3"])


def test_inspect_verifies(capsys: Capture, folder: Path, out: Path) -> None:
    convert(capsys, folder, out)
    assert xmix(capsys, "inspect", out, "--verify").endswith(
        "verified: every image decodes, and the content is what was written\n"
    )
    with open(out, "r+b") as stream:
        stream.seek(int(Beton(out).pointers[7]))
        stream.write(bytes(4))
    assert error(capsys, "inspect", out, "--verify") == (
        f"{out}: damaged: its content is not what its manifest's hash says; convert it again"
    )
    out.with_name("out.beton.json").unlink()
    line = error(capsys, "inspect", out, "--verify")
    assert line.startswith(f"{out}: image 7 (class '3'): Not a JPEG file")
    assert "damaged" not in xmix(capsys, "inspect", out)  # without --verify nothing is decoded


def test_inspect_names_a_missing_or_damaged_beton_in_one_line(
    capsys: Capture, folder: Path, out: Path
) -> None:
    assert error(capsys, "inspect", out) == (f"{out}: no such beton; write one with `xmix convert`")
    convert(capsys, folder, out)
    os.truncate(out, out.stat().st_size - 1)
    with pytest.raises(BetonError) as caught:
        Beton(out)
    assert error(capsys, "inspect", out) == str(caught.value)


def test_a_folder_has_no_splits(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "train").mkdir()
    said = error(capsys, "convert", tmp_path / "train", tmp_path / "o.beton", "--split", "test")
    assert "--split test" in said and "has no splits" in said
