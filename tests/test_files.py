"""Files under every file system and limit: whole or not there, and what is weaker is said once."""

from __future__ import annotations

import ast
import copy
import errno
import fcntl
import os
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import Images, written
from PIL import Image

import xmix_data
from xmix_data import (
    Beton,
    BetonError,
    CenterCrop,
    Centroids,
    ImageLoader,
    PairedClass,
    Pairing,
    class_centroids,
    cli,
    pair_classes,
    write_beton,
)
from xmix_data.backbones import load_backbone
from xmix_data.beton import open_domain, shard_name
from xmix_data.files import whole_file
from xmix_data.methods import FineTune
from xmix_data.remote import cache_folder
from xmix_data.report import write_report
from xmix_data.training import Recipe, fit

TIMEOUT_S = 120
SMALL = Images([3, 2], "s", size=(24, 24))


def write(images: Any, path: Path, **options: Any) -> Beton:
    return written(images, path, **{"image_size": None, "crop": "none", **options})


def files_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def refuse(number: int) -> None:
        def flock(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return refuse


@pytest.fixture
def refuse_sync(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """Has fsync fail, of folders or of files."""
    fsync = os.fsync

    def refuse(number: int, of_folders: bool) -> None:
        def refusing(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_folders:
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", refusing)

    return refuse


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_files_are_whole_and_it_is_said_once(
    tmp_path: Path, without_locks: Any, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    without_locks(number)
    for name in ("one", "two"):
        write(SMALL, tmp_path / f"{name}.beton")
        Beton(tmp_path / f"{name}.beton").verify()
    assert files_in(tmp_path) == ["one.beton", "one.beton.json", "two.beton", "two.beton.json"]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{tmp_path}: files cannot be locked ({os.strerror(number)}); do not write one file from "
        "two processes at once: the last one's would stay"
    ]


def test_without_locks_two_writers_do_not_mix(tmp_path: Path, without_locks: Any) -> None:
    without_locks(errno.ENOSYS)
    path = tmp_path / "file"
    with whole_file(path) as first:
        first.write(b"first, and long")
        with whole_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first, and long"
    with pytest.raises(KeyError), whole_file(path) as third:
        third.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"first, and long"
    assert files_in(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES]
)
def test_a_folder_that_cannot_be_synced_is_said_once(
    tmp_path: Path, refuse_sync: Any, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_sync(number, True)
    for name in ("one", "two"):
        write(SMALL, tmp_path / f"{name}.beton")
    assert files_in(tmp_path) == ["one.beton", "one.beton.json", "two.beton", "two.beton.json"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: the folder cannot be synced ({os.strerror(number)}); a power cut may lose "
        "new names"
    ]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_files_that_cannot_be_synced_are_said_once(
    tmp_path: Path, refuse_sync: Any, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_sync(number, False)
    write(SMALL, tmp_path / "x.beton").verify()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: files cannot be synced ({os.strerror(number)}); a power cut may lose the "
        "latest"
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_data_that_did_not_reach_the_disk_are_an_error_that_leaves_nothing(
    tmp_path: Path, refuse_sync: Any, number: int
) -> None:
    refuse_sync(number, False)
    with pytest.raises(OSError) as caught:
        write(SMALL, tmp_path / "x.beton")
    assert caught.value.errno == number
    assert caught.value.strerror == (
        f"{tmp_path}/x.beton: cannot be written ({os.strerror(number)}); "
        "free space or write elsewhere"
    )
    assert files_in(tmp_path) == []


def test_a_rename_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"earlier")

    def replace(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="file: cannot be written"), whole_file(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"earlier" and files_in(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_limit_of_the_process_is_not_blamed_on_the_disk(tmp_path: Path, number: int) -> None:
    limit = OSError(number, os.strerror(number))
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "file"):
        raise limit
    assert caught.value is limit and files_in(tmp_path) == []


def test_a_beton_that_is_not_replaced_keeps_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.beton"
    before = write(SMALL, path).manifest
    replace = os.replace

    def refusing(source: Any, target: Any) -> None:
        if Path(target) == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refusing)
        with pytest.raises(OSError, match=r"x\.beton: cannot be written"):
            write(Images([2, 2], "other", size=(24, 24)), path, overwrite=True)
    assert Beton(path).manifest == before and files_in(tmp_path) == ["x.beton", "x.beton.json"]
    write(Images([2, 2], "other", size=(24, 24)), path, overwrite=True)
    assert Beton(path).class_names == ["other0", "other1"]
    assert files_in(tmp_path) == ["x.beton", "x.beton.json"]


def centroids(classes: int) -> Centroids:
    values = np.eye(6, dtype=np.float32)[:classes] + 0.1
    return Centroids(values, np.full(classes, 3), [f"c{i}" for i in range(classes)])


def network() -> Any:
    import torch

    return torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 10)
    )


def page(folder: Path) -> None:
    target = write(Images([3, 3], "t", size=(24, 24)), folder / "t.beton")
    source = write(Images([3, 3, 3], "s", size=(24, 24)), folder / "s.beton")
    made = [
        Centroids(np.eye(4)[: len(b.class_names)] + 0.1, np.array(b.class_counts), b.class_names)
        for b in (target, source)
    ]
    write_report(pair_classes(*made), target, source, folder / "r.html")


def train(folder: Path) -> None:
    beton = write(Images([3, 3], "t", size=(24, 24)), folder / "t.beton")
    recipe = Recipe(iterations=2, batch_size=2, crop=16)
    fit(FineTune(), network(), beton, recipe=recipe, output=folder / "run")


def demonstrate(output: Any) -> None:
    from xmix_data import demo

    demo.run(output, seeds=0)


URL = "s3://bucket/place"
LOCAL: dict[str, Callable[[Any], Any]] = {
    "fit": lambda place: fit(FineTune(), network(), "no.beton", output=place),
    "features": lambda place: class_centroids("no.beton", network(), cache=place),
    "centroids": lambda place: centroids(2).save(place),
    "report": lambda place: write_report(Pairing({}), "no.beton", "no.beton", place),
    "demo": demonstrate,
}
"""What is written to this machine only."""
COMMANDS = (
    "train --method finetune --target no.beton --model no.py:net --output",
    "report no.json --target no.beton --source no.beton -o",
    "pair --target no.beton --source no.beton --model no.py:net -o p.json --cache",
    "bench --json",
    "demo --seeds 0 --output",
)


@pytest.mark.parametrize("writer", LOCAL)
@pytest.mark.parametrize("make", [str, Path])
def test_a_url_is_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, make: Callable[[str], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^s3:/{1,2}bucket/place: is a URL, .* give a path"):
        LOCAL[writer](make(URL))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_writes_to_no_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:/bucket").mkdir(parents=True)  # as earlier versions made it
    assert cli.main([*command.split(), URL]) == 2
    assert f"xmix: {URL}: is a URL, and this is written to folders" in capsys.readouterr().err
    assert files_in(tmp_path) == ["s3:"] and files_in(tmp_path / "s3:/bucket") == []


@pytest.mark.parametrize("writer", ["centroids", "features"])
def test_a_file_url_is_a_path(tmp_path: Path, writer: str) -> None:
    if writer == "centroids":
        centroids(3).save(f"file://{tmp_path}/place")
    else:
        write(SMALL, tmp_path / "x.beton")
        class_centroids(tmp_path / "x.beton", network(), cache=f"file://{tmp_path}/place")
    assert (tmp_path / "place").exists()


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Betons, a set of two shards, their pairing and weights, in the current folder."""
    monkeypatch.chdir(tmp_path)
    images = {name: Images([3, 3], name, size=(24, 24)) for name in "ts"}
    for name in "ts":
        write(images[name], tmp_path / f"{name}.beton")
    for index in range(2):
        write(images["s"], tmp_path / shard_name("set.beton", index, 2), shard=(index, 2))
    Pairing({f"t{i}": [PairedClass(f"s{i}", 0.5, 3)] for i in range(2)}).save("p.json")
    for name in ("weights.pt", "run/model.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "link").symlink_to("t.beton")
    (tmp_path / "hard.json").hardlink_to("s.beton.json")
    return tmp_path


PAIR = "pair --target t.beton --source s.beton --source set.beton --model resnet18"
PAIR += " --weights weights.pt --overwrite -o"
REPORT = "report p.json --target t.beton --source set.beton --overwrite -o"


@pytest.mark.parametrize(
    ("command", "output"),
    [
        *((PAIR, name) for name in ("t.beton", "link", "./s.beton.json", "hard.json")),
        *((PAIR, name) for name in ("set.beton", "set-00001-of-00002.beton.json", "weights.pt")),
        *((REPORT, name) for name in ("p.json", "t.beton.json", "set-00000-of-00002.beton")),
        ("bench --data t.beton --json", "t.beton"),
        ("bench --data t.beton --json", "t.beton.json"),
        ("train --method finetune --target t.beton --model resnet18 --weights run/model.pt", "run"),
    ],
)
def test_no_result_replaces_what_it_is_made_of(
    inputs: Path, command: str, output: str, capsys: Any
) -> None:
    before = {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()}
    option = ["--output"] if command.startswith("train") else []
    assert cli.main([*command.split(), *option, output]) == 2
    name = {"run": "run/model.pt"}.get(output, Path(output))
    message = f"xmix: {name}: would be overwritten, and is read here; give another name\n"
    assert capsys.readouterr().err == message
    assert {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("t.beton", "t.beton.json"),
        (["s.beton", "set.beton"], "set-00001-of-00002.beton"),
        (Path("link"), "t.beton"),
    ],
)
def test_no_report_replaces_its_betons(inputs: Path, target: Any, path: str) -> None:
    before = Path(path).read_bytes()
    for given in (target, open_domain(target)):
        with pytest.raises(ValueError, match=r"would be overwritten, and is read here"):
            write_report(Pairing.load("p.json"), given, "s.beton", path, overwrite=True)
    assert Path(path).read_bytes() == before


WRITERS: dict[str, Callable[[Path], Any]] = {
    "beton": lambda folder: write(SMALL, folder / "x.beton"),
    "centroids": lambda folder: centroids(3).save(folder / "c.npz"),
    "pairing": lambda folder: pair_classes(centroids(2), centroids(3)).save(folder / "p.json"),
    "report": page,
    "training": train,
    "features": lambda folder: class_centroids(
        write(SMALL, folder / "x.beton"), network(), cache=folder / "cache"
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_bears_a_poor_file_system(
    tmp_path: Path, without_locks: Any, refuse_sync: Any, writer: str
) -> None:
    without_locks(errno.ENOSYS)
    refuse_sync(errno.EINVAL, True)
    WRITERS[writer](tmp_path)
    written = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not [name for name in written if "partial" in name]


def called(node: ast.Call) -> str:
    """What a call calls, with what stands before the dot if that is a name."""
    if isinstance(node.func, ast.Attribute):
        before = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        return f"{before}.{node.func.attr}"
    return node.func.id if isinstance(node.func, ast.Name) else ""


def test_nothing_is_written_but_by_whole_file() -> None:
    """But for the log of a training, which grows line by line, and what goes over the network.

    What is fetched goes on where it was, and what is uploaded is whole when the store says so. The
    name of a thread goes to a file of the system's.
    """
    root = Path(xmix_data.__file__).parent
    found = set()
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                modes = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
                name = called(node)
                opens = name.endswith("open") and any(re.match("[wax]|r.*[+]", m) for m in modes)
                if opens or re.search(r"write_text|write_bytes|[.]rename|os[.]replace", name):
                    found.add(path.relative_to(root).as_posix())
    assert found == {"files.py", "training/metrics.py", "cache.py", "remote.py", "threads.py"}


# Opening


def run_python(script: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        **options,
    )


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_open_beton_keeps_no_descriptor(tmp_path: Path) -> None:
    write(SMALL, tmp_path / "x.beton")
    before = open_files()
    betons = [Beton(tmp_path / "x.beton") for _ in range(20)]
    assert open_files() == before
    assert all(beton.data(0).size for beton in betons)


SHARDS = """
import sys
from pathlib import Path
import numpy as np
import xmix_data as x
from xmix_data.beton import open_domain

shards = sorted(Path(sys.argv[1]).glob("*.beton"))
domain = open_domain(shards)
domain.betons[0].verify()
with x.ImageLoader(shards, batch_size=10, crop=x.CenterCrop(16), num_workers=2) as loader:
    print(len(shards), sum(len(labels) for _, labels in loader))
x.write_beton(shards[0], Path(sys.argv[1]) / "again", num_workers=2, progress=False)
"""


def test_a_hundred_shards_need_few_descriptors(tmp_path: Path) -> None:
    images = Images([100, 100], "s", size=(24, 24))
    for i in range(100):
        write(images, tmp_path / f"{i:03}.beton", shard=(i, 100))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    done = run_python(SHARDS, tmp_path, preexec_fn=limit)
    assert done.stdout == "100 200\n", done.stderr


def test_the_array_outlives_its_beton(tmp_path: Path) -> None:
    beton = write(SMALL, tmp_path / "x.beton", encoding="raw")
    data, labels = beton.data(1), beton.labels
    expected = data.tobytes(), labels.tolist()
    del beton
    other = [write(SMALL, tmp_path / f"{i}.beton", encoding="raw") for i in range(3)]
    assert (data.tobytes(), labels.tolist()) == expected and other
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1


def test_a_beton_that_is_replaced_while_open_stays_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    beton = write(SMALL, path)
    before = [beton.data(i).tobytes() for i in range(len(beton))]
    write(Images([9, 9], "o", size=(24, 24)), path, overwrite=True)
    assert [beton.data(i).tobytes() for i in range(len(beton))] == before
    assert len(Beton(path)) == 18
    path.unlink()
    assert [beton.data(i).tobytes() for i in range(len(beton))] == before


def limited(limit: int, number: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(limit, (number, number))


OPEN = """
import os, sys
from xmix_data.beton import Beton
if sys.argv[2] == "files":
    taken = []
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
try:
    Beton(sys.argv[1])
except OSError as error:
    print(error.strerror)
"""


def test_a_limit_of_address_space_is_named(tmp_path: Path) -> None:
    path = tmp_path / "large.beton"
    path.touch()
    os.truncate(path, 1 << 40)  # a file with a hole

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    done = run_python(OPEN, path, "memory", preexec_fn=limit)
    assert done.stdout == (
        f"{path}: cannot be opened (Cannot allocate memory); its {1 << 40} bytes are mapped into "
        "memory as a whole, which a limit of address space forbids: raise it (ulimit -v)\n"
    ), done.stderr


def test_a_limit_of_open_files_is_named(tmp_path: Path) -> None:
    write(SMALL, tmp_path / "x.beton")
    done = run_python(OPEN, tmp_path / "x.beton", "files")
    assert done.stdout == (
        f"{tmp_path}/x.beton: cannot be opened (Too many open files); too many files are open in "
        "this process or system: raise the limit (ulimit -n)\n"
    ), done.stderr


def test_a_manifest_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    write(SMALL, tmp_path / "x.beton")
    manifest = tmp_path / "x.beton.json"
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(OSError, match=r"x\.beton\.json: cannot be read \(Is a directory\)"):
        Beton(tmp_path / "x.beton")


def test_a_path_of_odd_bytes(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\n odd")
    folder.mkdir()
    path = folder / os.fsdecode(b"\xfe\x1b[1m.beton")
    beton = write(SMALL, path)
    assert len(open_domain([path, beton])) == 10
    again = write_beton(path, folder / "again", num_workers=2, progress=False)
    assert again.labels.tolist() == beton.labels.tolist()
    with pytest.raises(BetonError):
        os.truncate(path, 10000)
        Beton(path)


def test_a_read_only_place_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(SMALL, tmp_path / "x.beton")
    os_open = os.open

    def read_only(path: Any, flags: int, *rest: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return os_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match=r"y\.beton(\.json)?: cannot be written \(Read-only file"):
        write(SMALL, tmp_path / "y.beton")
    Beton(tmp_path / "x.beton").verify()
    assert files_in(tmp_path) == ["x.beton", "x.beton.json"]


# The home folder


def test_a_tilde_is_the_home_folder_for_whatever_reads_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for torchvision; a shell leaves the one of ``--output=~/run`` to the program."""
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XMIX_CACHE", "~/cache")
    monkeypatch.chdir(here)
    (home / "model.py").write_text(
        "from torch import nn\n"
        "def tiny():\n"
        "    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))\n"
    )
    for label, name in enumerate(("a", "b")):
        (home / "images" / name).mkdir(parents=True)
        Image.new("RGB", (24, 24), (90 * label, 0, 9)).save(home / "images" / name / "1.png")
    source = write("~/images", Path("~/source.beton"))
    target = write("~/images", Path("~/target.beton"))
    model = load_backbone("~/model.py:tiny", "default")
    for name, beton in (("source", source), ("target", target)):
        class_centroids(beton, model, cache="~/features").save(f"~/{name}.npz")
    pairs = pair_classes(Centroids.load("~/target.npz"), Centroids.load("~/source.npz"))
    pairs.save("~/pairing.json")
    assert Pairing.load("~/pairing.json").pairs.keys() == {"a", "b"}
    with ImageLoader("~/target.beton", batch_size=2, crop=CenterCrop(24)) as loader:
        assert len(loader.target.betons[0].labels) == 2 and copy.copy(loader).peek()
    recipe = Recipe(iterations=1, batch_size=2, crop=24)
    fit(FineTune(), model, "~/target.beton", recipe=recipe, output="~/run", num_workers=1)
    torch.save(model.network.state_dict(), home / "weights.pt")
    assert load_backbone("~/model.py:tiny", "~/weights.pt").name == "model.py:tiny"
    assert cache_folder() == home / "cache"
    assert files_in(here) == []
    assert {"features", "run", "pairing.json", "source.beton.json"} <= {*files_in(home)}
