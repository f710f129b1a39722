"""Betons, pairings and class lists from URLs: fetched once, whole, or one clear error."""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import html
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import processes
import pytest
from conftest import Betons, reversed_pairing
from pictures import Images, encoded, picture, written
from processes import ended
from servers import Server

from xmix_data import (
    Beton,
    BetonError,
    ImageError,
    ImageLoader,
    MissingDependencyError,
    Pairing,
    RandomCrop,
    XMixError,
    XMixLoader,
    cache,
)
from xmix_data.beton import class_list, manifest_path, open_domain
from xmix_data.beton.manifest import shards_of
from xmix_data.cache import clear, entries, fetched, keep, key_of
from xmix_data.cli import main
from xmix_data.images import ClassFolder, DistantFolder
from xmix_data.remote import Megabytes, joined, name_of, path_or_url, state_of, with_name

fsspec = pytest.importorskip("fsspec")
SECONDS = 120
BLOCK = 8 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """A beton of four blocks."""
    images = Images([60, 60], "t", size=(256, 256))
    return written(images, tmp_path_factory.mktemp("large") / "large.beton", encoding="raw")


@pytest.fixture
def served(large: Beton, tmp_path: Path) -> Iterator[Server]:
    """A folder of this test's own behind HTTP, with that beton in it."""
    folder = tmp_path / "served"
    folder.mkdir()
    for path in (large.path, manifest_path(large.path)):
        shutil.copy2(path, folder)
    with Server(folder) as server:
        yield server


@pytest.fixture
def bucket() -> Iterator[Any]:
    """What this process keeps under memory://."""
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system of its own")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def put(bucket: Any, beton: Beton, name: str) -> str:
    """Copy a beton and its manifest into the memory of fsspec, past all that is tested here."""
    for path, there in ((beton.path, name), (manifest_path(beton.path), f"{name}.json")):
        bucket.put_file(str(path), f"/bucket/{there}")
    return f"memory://bucket/{name}"


def same(one: Beton, other: Beton) -> bool:
    return one.path.read_bytes() == other.path.read_bytes() and one.manifest == other.manifest


def left(cache: Path) -> list[str]:
    """What is in the cache of betons but for locks and manifests."""
    names = [path.name for path in (cache / "betons").rglob("*") if path.is_file()]
    return sorted(name for name in names if name != "lock" and not name.endswith(".json"))


# Paths and URLs


def test_what_is_a_url() -> None:
    for url in ("s3://b/k", "https://h/k", "memory://k", "zip://a.beton::s3://b/x.zip", "GS://b"):
        assert path_or_url(url) == url
    for path in ("a/b", "./s3:x", "torchvision:Flowers102", "/a:/b", "a::b"):
        assert path_or_url(path) == Path(path)
    assert path_or_url("file:///a%20b/c%25") == Path("/a b/c%")
    assert path_or_url("/a%20b") == Path("/a%20b")
    with pytest.raises(ValueError, match=r"s3:/b/k: as a Path a URL has lost a slash; give it as"):
        path_or_url(Path("s3://b/k"))
    with pytest.raises(ValueError, match="lost a slash"):
        Beton(Path("s3://b/k"))


def test_the_parts_of_a_url() -> None:
    signed = "https://h/d/x.beton?key=a/b&c=d"
    assert name_of(signed) == "x.beton" and name_of("s3://b/d/x?y.beton") == "x?y.beton"
    assert str(manifest_path(signed)) == "https://h/d/x.beton.json?key=a/b&c=d"
    inside = "zip://d/x.beton::s3://b/all.zip"
    assert with_name(inside, "y.beton") == "zip://d/y.beton::s3://b/all.zip"
    assert joined("zip://d::s3://b/all.zip", "c/1.jpg") == "zip://d/c/1.jpg::s3://b/all.zip"


def test_local_files_load_no_fsspec(betons: Betons) -> None:
    code = (
        "import sys; from xmix_data import Pairing; from xmix_data.beton import open_domain\n"
        f"open_domain({str(betons.target_jpg.path)!r})\nprint('fsspec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Betons


def test_a_pairing_is_written_to_a_url(
    bucket: Any, betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the command says how to look at it, with the page on this disk."""
    network = "Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))"
    (tmp_path / "net.py").write_text(f"from torch import nn\ndef made(): return nn.{network}\n")
    sides = ["--target", str(betons.target_raw.path), "--source", str(betons.source_raw.path)]
    model = ["--model", f"{tmp_path}/net.py:made", "--crop", "32", "--no-cache"]
    url = "memory://bucket/pairs.json"
    assert main(["pair", *sides, *model, "-o", url]) == 0
    said = capsys.readouterr().out
    assert f"xmix report {url} " in said and said.splitlines()[-1].endswith(" -o pairs.html")
    assert set(Pairing.load(url).pairs) == set(betons.target_raw.class_names)
    assert main(["pair", *sides, "--method", "random", "-o", url]) == 2
    said = "exists; choose another name or overwrite it (overwrite=True, --overwrite)"
    assert said in capsys.readouterr().err


def test_a_beton_from_memory_is_the_beton(bucket: Any, betons: Betons, own_cache: Path) -> None:
    url = put(bucket, betons.source_jpg, "s.beton")
    beton = Beton(url)
    assert same(beton, betons.source_jpg) and beton.origin == url and url in repr(beton)
    assert beton.path.parent.name == beton.fingerprint.removeprefix("sha256:")
    assert url in beton.describe(0)
    beton.verify()


def test_a_loader_from_urls(bucket: Any, betons: Betons) -> None:
    urls = [put(bucket, b, b.path.name) for b in (betons.target_raw, betons.source_jpg)]
    betons.pairing.save("memory://bucket/pairing.json")
    options: dict[str, Any] = {"batch_size": 4, "crop": RandomCrop(32)}
    with (
        XMixLoader(*urls, "memory://bucket/pairing.json", **options) as distant,
        XMixLoader(betons.target_raw, betons.source_jpg, betons.pairing, **options) as here,
    ):
        for one, other in zip(distant, here, strict=True):
            assert all((a == b).all() for a, b in zip(one, other, strict=True))
        assert distant.state_dict() == here.state_dict()


def test_copies_travel_as_url_and_fingerprint(bucket: Any, betons: Betons) -> None:
    url = put(bucket, betons.target_raw, "t.beton")
    beton = Beton(url)
    loader = ImageLoader(url, batch_size=4, crop=RandomCrop(32))
    parcels = pickle.dumps((beton, loader))
    assert url.encode() in parcels and str(beton.path).encode() not in parcels
    bucket.rm_file("/bucket/t.beton")  # the cache has it
    again, other = pickle.loads(parcels)
    assert same(again, beton) and again.origin == url
    assert (next(iter(other))[0] == next(iter(loader))[0]).all()
    shutil.rmtree(beton.path.parent)
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/t\.beton: is not there"):
        pickle.loads(pickle.dumps(beton))


def test_a_copy_is_not_of_another_beton(bucket: Any, betons: Betons) -> None:
    url = put(bucket, betons.target_raw, "t.beton")
    beton = Beton(url)
    parcel = pickle.dumps(beton)
    shutil.rmtree(beton.path.parent)
    put(bucket, betons.source_raw, "t.beton")
    with pytest.raises(BetonError, match=r"memory://bucket/t\.beton: was replaced by another"):
        pickle.loads(parcel)


def test_a_copy_has_the_class_names_of_its_own_url(bucket: Any, betons: Betons) -> None:
    """One content at two URLs has one place in the cache, and one manifest there."""
    urls = [put(bucket, betons.target_raw, f"{folder}/t.beton") for folder in ("one", "two")]
    facts = json.loads(bucket.cat_file("/bucket/two/t.beton.json"))
    facts["class_names"] = ["a", "b", "c", "d"]
    bucket.pipe_file("/bucket/two/t.beton.json", json.dumps(facts).encode())
    one, two = map(Beton, urls)
    assert one.path == two.path and one.fingerprint == two.fingerprint
    for beton, names in ((one, ["t0", "t1", "t2", "t3"]), (two, ["a", "b", "c", "d"])):
        assert pickle.loads(pickle.dumps(beton)).class_names == names == beton.class_names
        assert copy.deepcopy(open_domain(beton)).class_names == names
        loader = ImageLoader(beton, batch_size=2, crop=RandomCrop(4))
        assert copy.deepcopy(loader).dataset.classes == names
    parcel = pickle.dumps(one)
    bucket.pipe_file("/bucket/one/t.beton.json", json.dumps(facts).encode())
    with pytest.raises(
        BetonError, match=r"one/t\.beton: was replaced .* or its classes were renam"
    ):
        pickle.loads(parcel)


def test_the_same_content_is_fetched_once(bucket: Any, betons: Betons, own_cache: Path) -> None:
    """By its hash, whatever it is called; and another content under the same URL is seen."""
    one = Beton(put(bucket, betons.target_raw, "one.beton"))
    other = Beton(put(bucket, betons.target_raw, "other.beton"))
    assert one.path.samefile(other.path) and one.path.parent == other.path.parent
    assert same(Beton(put(bucket, betons.source_raw, "one.beton")), betons.source_raw)
    assert same(one, betons.target_raw)


def test_class_names_are_those_at_the_url(bucket: Any, betons: Betons) -> None:
    """Content and names are hashed apart: a new manifest over old content counts."""
    url = put(bucket, betons.target_raw, "t.beton")
    assert Beton(url).class_names == ["t0", "t1", "t2", "t3"]
    facts = json.loads(bucket.cat_file("/bucket/t.beton.json"))
    facts["class_names"] = ["a", "b", "c", "d"]
    bucket.pipe_file("/bucket/t.beton.json", json.dumps(facts).encode())
    assert Beton(url).class_names == ["a", "b", "c", "d"]


def test_a_beton_without_manifest(bucket: Any, betons: Betons) -> None:
    """As FFCV writes them."""
    url = put(bucket, betons.target_raw, "t.beton")
    bucket.rm_file("/bucket/t.beton.json")
    beton = Beton(url)
    assert beton.manifest is None and beton.class_names == ["0", "1", "2", "3"]
    assert pickle.loads(pickle.dumps(beton)).fingerprint == beton.fingerprint
    bucket.pipe_file("/bucket/t.beton", b"no beton" * 100)
    with pytest.raises(BetonError, match=r"^memory://bucket/t\.beton: no beton"):
        Beton(url)


def test_a_set_of_shards_has_one_name(
    bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Images([9, 7, 5], "t")
    whole = written(images, tmp_path / "whole.beton", image_size=24)
    for index in (0, 1, 2):
        name = f"set-0000{index}-of-00003.beton"
        written(images, f"memory://bucket/{name}", image_size=24, shard=(index, 3))
        shutil.copy(Beton(f"memory://bucket/{name}").path, tmp_path / name)
        (tmp_path / f"{name}.json").write_bytes(bucket.cat_file(f"/bucket/{name}.json"))
    for name in ("memory://bucket/set.beton", str(tmp_path / "set.beton")):
        domain = open_domain(name)
        assert (domain.labels == whole.labels).all() and len(domain.betons) == 3
        for index in range(len(whole)):
            beton, local = domain.locate(index)
            assert (beton.data(local) == whole.data(index)).all()
        assert main(["inspect", name]) == 0
        assert f"{name}: 3 of 3 shards, 21 images" in capsys.readouterr().out
    bucket.rm_file("/bucket/set-00001-of-00003.beton.json")
    (tmp_path / "set-00001-of-00003.beton").unlink()
    assert main(["inspect", "memory://bucket/set.beton", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["missing"] == [1] and "--shard 1/3" in said.err
    with pytest.raises(ValueError, match=r"is one of 3 shards, and the list lacks shard 1"):
        open_domain(str(tmp_path / "set.beton"))
    written(images, tmp_path / "set-00000-of-00002.beton", image_size=24, shard=(0, 2))
    with pytest.raises(ValueError, match="there are sets of 2 and 3 shards beside each other"):
        open_domain(str(tmp_path / "set.beton"))
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/none\.beton: is not there"):
        open_domain("memory://bucket/none.beton")


def test_class_lists_and_pairings(bucket: Any, betons: Betons, tmp_path: Path) -> None:
    url = put(bucket, betons.target_raw, "t.beton")
    assert class_list(url).names == class_list([url]).names == betons.target_raw.class_names
    bucket.pipe_file("/bucket/classes.txt", b"t1\nt3\n")
    out = tmp_path / "part.beton"
    assert main(["convert", url, str(out), "--classes", "memory://bucket/classes.txt"]) == 0
    assert Beton(out).class_names == ["t1", "t3"]
    part = ["--classes-from", url, "--overwrite", "--image-size", "24"]
    assert main(["convert", str(out), str(tmp_path / "all.beton"), *part]) == 0
    assert Beton(tmp_path / "all.beton").class_counts == [0, 7, 0, 6]
    pairing = reversed_pairing(betons.target_raw, betons.source_raw)
    pairing.save("memory://bucket/p.json")
    assert Pairing.load("memory://bucket/p.json").pairs == pairing.pairs
    kept = put(bucket, betons.source_raw, "s.beton")
    used = ["--pairing", "memory://bucket/p.json"]
    assert main(["convert", kept, "memory://bucket/used.beton", *used]) == 0
    assert Beton("memory://bucket/used.beton").class_names == ["s2", "s3", "s4", "s5"]
    with pytest.raises(FileNotFoundError, match=r"none\.json: is not there .*run|`xmix pair`"):
        Pairing.load("memory://bucket/none.json")


# Fetching


def test_it_is_fetched_in_ranges_and_once(served: Server, large: Beton, own_cache: Path) -> None:
    url, starts = f"{served.url}/large.beton", list(range(0, large.byte_length, BLOCK))
    together = threading.Barrier(len(starts))
    served.before = lambda name: together.wait(SECONDS) if served.blocks(name) else None
    assert same(Beton(url), large)
    assert served.blocks("large.beton") == starts and len(starts) == 4
    assert same(Beton(url), large) and served.blocks("large.beton") == starts
    assert left(own_cache) == ["large.beton"]


def test_the_progress_of_a_large_file(capsys: pytest.CaptureFixture[str]) -> None:
    with Megabytes("fetch x.beton", 50_000_000, done=BLOCK) as bar:
        for _ in range(4):
            bar.advance(10_402_848)
    assert "fetch x.beton: 50/50 (100 %), " in capsys.readouterr().err
    with Megabytes("fetch x.beton", 5_000_000) as bar:
        bar.advance(5_000_000)
    assert capsys.readouterr().err == ""


def test_a_server_without_ranges(served: Server, large: Beton, own_cache: Path) -> None:
    served.ranges = False
    assert same(Beton(f"{served.url}/large.beton"), large)
    assert left(own_cache) == ["large.beton"]


def test_a_cut_connection_and_the_way_on(served: Server, large: Beton, own_cache: Path) -> None:
    url = f"{served.url}/large.beton"
    served.whole = 2
    with pytest.raises(ConnectionError) as caught:
        Beton(url)
    message = str(caught.value)
    assert message.startswith(f"{url}: cannot be read to its end (") and "\n" not in message
    assert message.endswith("run it again: it goes on from where it was")
    assert left(own_cache) == ["large.beton.partial"]
    served.whole, before = float("inf"), len(served.blocks("large.beton"))
    assert same(Beton(url), large) and left(own_cache) == ["large.beton"]
    assert len(served.blocks("large.beton")) == before + 2


def test_a_break_now_and_then_is_borne(served: Server, large: Beton) -> None:
    served.whole = 1

    def mend(name: str) -> None:
        if len(served.blocks("large.beton")) > 4:
            served.whole = float("inf")

    served.before = mend
    assert same(Beton(f"{served.url}/large.beton"), large)


def test_a_killed_process_is_gone_on_with(
    served: Server, large: Beton, own_cache: Path, forked: processes.Server
) -> None:
    url, gate = f"{served.url}/large.beton", threading.Event()

    def hold(name: str) -> None:
        if name == "large.beton" and len(served.blocks(name)) > 2:
            gate.wait(SECONDS)

    served.before = hold
    process = forked.start("-c", "import sys, xmix_data; xmix_data.Beton(sys.argv[1])", url)
    folder = own_cache / "betons" / large.fingerprint.removeprefix("sha256:")
    partial = folder / "large.beton.partial"
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and _blocks_of(partial, large.byte_length) != 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(SECONDS)
    gate.set()
    served.asked.clear()
    assert same(Beton(url), large)
    assert len(served.blocks("large.beton")) == 2 and left(own_cache) == ["large.beton"]


def _blocks_of(partial: Path, size: int) -> int:
    return partial.read_bytes()[size:].count(1) if partial.exists() else 0


def test_processes_share_one_download(
    served: Server, large: Beton, own_cache: Path, forked: processes.Server
) -> None:
    url = f"{served.url}/large.beton"
    served.before = lambda name: time.sleep(0.2)
    code = "import sys, xmix_data; print(xmix_data.Beton(sys.argv[1]).fingerprint)"
    results = ended([forked.start("-c", code, url) for _ in range(3)], SECONDS)
    assert [out.strip() for _, out, _ in results] == [large.fingerprint] * 3, results
    assert served.blocks("large.beton") == list(range(0, large.byte_length, BLOCK))


def test_a_wrong_hash(served: Server, large: Beton, tmp_path: Path, own_cache: Path) -> None:
    with open(tmp_path / "served/large.beton", "r+b") as stream:
        stream.seek(int(large.pointers[7]))
        stream.write(b"other")
    url = f"{served.url}/large.beton"
    with pytest.raises(BetonError, match="what arrived is not what the hash in its manifest says"):
        Beton(url)
    assert left(own_cache) == []


def test_a_file_cut_short_at_the_store(served: Server, large: Beton, tmp_path: Path) -> None:
    os.truncate(tmp_path / "served/large.beton", 10 << 20)
    with pytest.raises(BetonError, match=r"describes a beton of \d+ bytes, but large.beton has"):
        Beton(f"{served.url}/large.beton")


@pytest.mark.parametrize("content", ["same size", "longer"])
def test_a_beton_that_changes_while_it_is_fetched(
    served: Server, tmp_path: Path, own_cache: Path, content: str
) -> None:
    path = tmp_path / "served/large.beton"

    def change(name: str) -> None:
        if len(served.blocks("large.beton")) == 2:
            with open(path, "r+b" if content == "same size" else "ab") as stream:
                stream.write(b"changed")
            os.utime(path, (0, 0))

    served.before = change
    url = f"{served.url}/large.beton"
    with pytest.raises(OSError, match="was changed while it was fetched; run it again") as caught:
        Beton(url)
    assert str(caught.value).startswith(url) and left(own_cache) == []


def test_a_disk_that_is_too_small(
    served: Server, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (disk / "other").write_bytes(bytes(20 << 20))
    monkeypatch.setenv("XMIX_CACHE", str(disk))
    monkeypatch.setenv("XMIX_CACHE_LIMIT", "1TB")
    with pytest.raises(OSError, match=r"more are needed, and .* free\); free space") as caught:
        Beton(f"{served.url}/large.beton")
    assert str(disk) in str(caught.value) and served.blocks("large.beton") == []


def test_a_disk_that_becomes_full(
    served: Server, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XMIX_CACHE", str(disk))
    monkeypatch.setenv("XMIX_CACHE_LIMIT", "1TB")
    filler = disk / "other"

    def fill(name: str) -> None:
        if served.blocks("large.beton") and not filler.exists():
            with contextlib.suppress(OSError):  # as much as there is room for
                filler.write_bytes(bytes(39 << 20))

    served.before = fill
    assert main(["inspect", f"{served.url}/large.beton"]) == 2
    *progress, line = capsys.readouterr().err.splitlines()
    assert all(text.startswith("fetch large.beton: ") for text in progress)
    assert "the cache cannot be written (No space left on device); free space" in line
    assert left(disk) == []


def test_a_disk_that_becomes_full_within_a_write(
    served: Server, large: Beton, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system then writes a part, and raises nothing; FFCV's betons have no hash to compare."""
    monkeypatch.setenv("XMIX_CACHE", str(disk))
    monkeypatch.setenv("XMIX_CACHE_LIMIT", "1TB")
    url = f"{served.url}/large.beton"
    (tmp_path / "served" / "large.beton.json").unlink()
    blocks = -(-large.byte_length // BLOCK)
    assert large.byte_length % BLOCK > 128 << 10
    together = threading.Barrier(blocks)

    def fill(name: str) -> None:
        if not served.blocks(name):
            return
        if together.wait(SECONDS) == 0:
            free = shutil.disk_usage(disk).free
            (disk / "other").write_bytes(bytes(free - large.byte_length + (64 << 10)))
            time.sleep(1)  # so that its block arrives last, and alone meets the end of the disk
        else:
            time.sleep(0.3)

    served.before = fill
    with pytest.raises(OSError, match=r"the cache cannot be written \(No space left on device\)"):
        Beton(url)
    assert left(disk) == []


def test_a_cache_that_cannot_be_written(
    bucket: Any, betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(bucket, betons.target_raw, "t.beton")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XMIX_CACHE", str(tmp_path / "file"))
    message = r"file/betons/\w+: the cache cannot be written \(Not a directory\); give another"
    with pytest.raises(OSError, match=message):
        Beton(url)
    with pytest.raises(OSError, match="uploads: the cache cannot be written"):
        written(Images([3], "t"), "memory://bucket/new.beton", image_size=24)


# The limit, and the command


@pytest.mark.parametrize("suffix", [".beton", ".ffcv", ""])
def test_the_longest_unused_makes_room(
    bucket: Any, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    urls = []
    for number in range(3):
        images = Images([40], "t", size=(64, 64), seed=number)
        beton = written(images, tmp_path / f"{number}.beton", encoding="raw", image_size=64)
        urls.append(put(bucket, beton, f"{number}{suffix}"))
    monkeypatch.setenv("XMIX_CACHE_LIMIT", "20MB")  # two of 8.9
    for number in (0, 1, 0, 2):
        Beton(urls[number])
    assert left(own_cache) == [f"0{suffix}", f"2{suffix}"]
    assert [entry.name for entry in entries()] == [f"2{suffix}", f"0{suffix}"]
    used = [Beton(urls[number]) for number in (0, 2)]
    message = r"8\.9 MB more do not fit into the cache's limit of 20\.0 MB, .*; raise XMIX_CACHE_LI"
    with pytest.raises(OSError, match=message):
        Beton(urls[1])
    del used
    Beton(urls[1])
    assert left(own_cache) == [f"1{suffix}", f"2{suffix}"]
    bucket.pipe_file("/bucket/other" + suffix, bucket.cat_file("/bucket/2" + suffix))
    bucket.pipe_file(f"/bucket/other{suffix}.json", bucket.cat_file(f"/bucket/2{suffix}.json"))
    other, two = Beton("memory://bucket/other" + suffix), Beton(urls[2])
    assert other.path.samefile(two.path)  # its second name, and not fetched
    monkeypatch.setenv("XMIX_CACHE_LIMIT", "much")
    with pytest.raises(ValueError, match=r"XMIX_CACHE_LIMIT is 'much'; give bytes, or e.g. 200GB"):
        Beton(urls[0])


def test_a_cache_is_a_folder(
    betons: Betons, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XMIX_CACHE", "s3://bucket/cache")
    target, source = betons.target_raw.path, betons.source_raw.path
    pair = f"pair --target {target} --source {source} --model resnet18 --weights none -o p.json"
    for command in ("cache", pair):
        assert main(command.split()) == 2
        assert "XMIX_CACHE is 's3://bucket/cache'; give a folder" in capsys.readouterr().err
    assert not Path("s3:").exists()


def test_what_is_cleared_is_read_on(bucket: Any, betons: Betons) -> None:
    beton = Beton(put(bucket, betons.target_raw, "t.beton"))
    assert main(["cache", "--clear", "all"]) == 0
    assert not beton.path.exists()
    beton.verify()


def test_the_command_lists_and_clears(
    bucket: Any, betons: Betons, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache"]) == 0
    assert "holds 0 betons" in capsys.readouterr().out
    betons_there = [(b, b.path.name) for b in (betons.target_raw, betons.source_raw)]
    opened = [Beton(put(bucket, beton, name)) for beton, name in betons_there]
    assert main(["cache", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [e["name"] for e in listed] == ["source-raw.beton", "target-raw.beton"]
    assert {e["content_hash"] for e in listed} == {b.path.parent.name for b in opened}
    assert main(["cache", "--clear", opened[0].path.parent.name[:10]]) == 0
    assert "target-raw.beton" in capsys.readouterr().out
    assert left(own_cache) == ["source-raw.beton"]
    assert main(["cache", "--clear", "target-raw.beton"]) == 2
    assert "nothing in" in capsys.readouterr().err
    assert main(["cache", "--clear", "source-raw.beton"]) == 0
    assert left(own_cache) == [] and list((own_cache / "betons").iterdir()) == []


def test_what_is_cleared_meanwhile_is_not_listed(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process, between one look and the next."""

    def add(name: str) -> Path:
        folder = own_cache / "betons" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.beton").write_bytes(bytes(100))
        (folder / "lock").touch()
        return folder

    folders = [add(name) for name in "abc"]
    (own_cache / "betons" / "of no use").touch()
    size_of = cache._room

    def room(path: Path, state: os.stat_result) -> int:
        for folder in folders:
            if folder != path.parent:
                shutil.rmtree(folder, ignore_errors=True)
        return size_of(path, state)

    monkeypatch.setattr(cache, "_room", room)
    (entry,) = entries()
    assert entry.name == f"{entry.folder.name}.beton"


def test_what_is_cleared_meanwhile_is_fetched_again(bucket: Any, betons: Betons) -> None:
    """As fast as it can: nobody meets a folder that is half there."""
    beton, failed, end = betons.target_raw, list[BaseException](), time.monotonic() + 1
    url, manifest = put(bucket, beton, "t.beton"), manifest_path(beton.path).read_bytes()
    key, state = key_of(url), state_of(url)

    def fetch() -> None:
        keep(beton.path, key, "t.beton")
        fetched(url, key, name="t.beton", state=state, manifest=manifest, check=lambda path: None)

    def clear_all() -> None:
        for entry in entries():
            clear(entry)

    def work(what: Callable[[], None]) -> None:
        try:
            while time.monotonic() < end and not failed:
                what()
        except BaseException as error:
            failed.append(error)

    works = (fetch, fetch, clear_all, clear_all)
    workers = [threading.Thread(target=work, args=(what,)) for what in works]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed


def test_what_is_being_fetched_is_not_cleared(
    served: Server, large: Beton, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate, done = threading.Event(), []
    served.before = lambda name: gate.wait(SECONDS) if served.blocks("large.beton") else None
    url = f"{served.url}/large.beton"
    thread = threading.Thread(target=lambda: done.append(Beton(url)))
    thread.start()
    while not served.blocks("large.beton"):
        time.sleep(0.02)
    assert main(["cache", "--clear", "all"]) == 2
    assert "1 of them are being fetched by another process" in capsys.readouterr().err
    gate.set()
    thread.join(SECONDS)
    assert same(done[0], large)


# Writing


def test_a_conversion_to_a_url_is_the_local_one(
    bucket: Any, tmp_path: Path, own_cache: Path
) -> None:
    images = Images([9, 7], "t")
    here = written(images, tmp_path / "t.beton", image_size=24)
    there = written(images, "memory://bucket/t.beton", image_size=24)
    assert same(here, there) and there.origin == "memory://bucket/t.beton"
    assert bucket.cat_file("/bucket/t.beton") == here.path.read_bytes()
    assert sorted(bucket.find("/")) == ["/bucket/t.beton", "/bucket/t.beton.json"]
    assert list((own_cache / "uploads").iterdir()) == []
    with pytest.raises(FileExistsError, match=r"memory://bucket/t\.beton: exists; choose another"):
        written(images, "memory://bucket/t.beton", image_size=24)
    other = Images([4, 3], "o")
    written(other, "memory://bucket/t.beton", image_size=24, overwrite=True)
    assert Beton("memory://bucket/t.beton").class_names == ["o0", "o1"]
    with pytest.raises(ValueError, match="is the source itself"):
        written(Beton("memory://bucket/t.beton"), "memory://bucket/t.beton", overwrite=True)


def test_a_conversion_that_fails_uploads_nothing(bucket: Any, own_cache: Path) -> None:
    images = Images([3], "t")
    images.targets[1] = 5
    with pytest.raises(ValueError, match="label 5 is none of the 1 classes"):
        written(images, "memory://bucket/t.beton", image_size=24)
    assert bucket.find("/") == [] and list((own_cache / "uploads").iterdir()) == []


@pytest.mark.parametrize("fails", ["t.beton", "t.beton.json"])
def test_an_upload_that_fails_leaves_nothing(fails: str, own_cache: Path) -> None:
    """On a server that shows a file while it is written."""
    memory = type(fsspec.filesystem("memory"))

    class Breaks(memory):  # type: ignore[misc, valid-type]
        protocol, store, pseudo_dirs = "webdav", {}, [""]  # type: ignore[var-annotated]
        cachable = False

        def put_file(self, lpath: str, rpath: str, **rest: Any) -> None:
            super().put_file(lpath, rpath, **rest)
            if fails in (rpath.rpartition("/")[2], rpath.rpartition("/")[2][: -len(".partial")]):
                self.store[self._strip_protocol(rpath)].truncate(1000)
                raise ConnectionResetError("the line broke")

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("webdav://").strip("/")

    fsspec.register_implementation("webdav", Breaks, clobber=True)
    with pytest.raises(
        ConnectionError, match=r"webdav://b/t\.beton.*: cannot be written \(Connect"
    ):
        written(Images([3], "t"), "webdav://b/t.beton", image_size=24)
    assert Breaks.store == {} and list((own_cache / "uploads").iterdir()) == []


# Bad input


def test_a_protocol_without_its_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingDependencyError, match=r"oci://b/x\.beton: .*: pip install ocifs$"):
        Beton("oci://b/x.beton")
    with pytest.raises(ValueError, match="Protocol not known: nonsense; give a URL that fsspec k"):
        Beton("nonsense://b/x.beton")
    assert main(["inspect", "oci://b/x.beton"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xmix: oci://b/x.beton: ") and line.endswith("pip install ocifs")


def test_a_server_that_does_not_answer() -> None:
    message = (
        r"^http://127\.0\.0\.1:1/x\.beton: cannot be read \(.*\); check the network and the sto"
    )
    with pytest.raises(ConnectionError, match=message):
        Beton("http://127.0.0.1:1/x.beton")


def test_a_server_that_refuses(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    served.refuses = "large"
    assert main(["inspect", f"{served.url}/large.beton"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xmix: {served.url}/large.beton: access is denied (")
    assert line.endswith("check the credentials, and what they may do")


def test_a_store_that_fails_is_no_unreadable_image(tmp_path: Path) -> None:
    """Skipping such images would leave out good ones."""
    folder = tmp_path / "images"
    for name in ("a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture(24, 24)))
    (folder / "b/3.jpg").write_bytes(b"no image")
    options = {"image_size": 24, "on_error": "skip"}
    with Server(folder) as server:
        assert len(written(server.url, tmp_path / "some.beton", **options)) == 3
        server.refuses = "a/1.jpg"
        with pytest.raises(XMixError, match=r"a/1\.jpg: access is denied") as caught:
            written(server.url, tmp_path / "none.beton", **options)
        assert not isinstance(caught.value, ImageError)
    assert not (tmp_path / "none.beton").exists()


def test_a_cache_without_locks(
    bucket: Any, betons: Betons, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on network file systems: every process fetches for itself, under a name of its own."""
    url = put(bucket, betons.target_raw, "t.beton")

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert same(Beton(url), betons.target_raw) and left(own_cache) == ["t.beton"]
    assert main(["cache", "--clear", "t.beton"]) == 0 and left(own_cache) == []


def test_what_is_no_beton(served: Server, bucket: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"/none\.beton: is not there .*check the names"):
        Beton(f"{served.url}/none.beton")
    bucket.pipe_file("/bucket/d/x", b"x")
    with pytest.raises(IsADirectoryError, match="memory://bucket/d: is a folder"):
        Beton("memory://bucket/d")
    with pytest.raises(ValueError, match="cannot be written under this protocol"):
        written(Images([3], "t"), f"{served.url}/new.beton", image_size=24)


# Folders behind URLs


def test_a_folder_behind_a_url_is_the_folder(bucket: Any, tmp_path: Path) -> None:
    from PIL import Image

    names = [
        "b/2.png",
        "b/10.png",
        "a/x/1.png",
        "a/0.png",
        "a/y/deep/1.PNG",
        "a/readme.txt",
        "top.md",
    ]
    random = np.random.default_rng(0)
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".png":
            Image.fromarray(random.integers(0, 255, (30, 40, 3), np.uint8)).save(path)
        else:
            path.write_text(name)
    bucket.put(f"{tmp_path}/images/", "/bucket/images/", recursive=True)
    here = written(tmp_path / "images", tmp_path / "here.beton", image_size=24)
    there = written("memory://bucket/images", tmp_path / "there.beton", image_size=24)
    assert same(here, there) and here.class_counts == [3, 2]
    with Server(tmp_path / "images") as server:
        over = written(server.url, tmp_path / "over.beton", image_size=24, num_workers=2)
        assert over.path.read_bytes() == here.path.read_bytes()
    bucket.pipe_file("/bucket/images/c/readme.txt", b"")
    with pytest.raises(
        ValueError, match="memory://bucket/images/c: no images in this class folder"
    ):
        written("memory://bucket/images", tmp_path / "x.beton")
    with pytest.raises(ValueError, match="memory://bucket/images/b: no class folders in it, but 2"):
        written("memory://bucket/images/b", tmp_path / "x.beton")
    with pytest.raises((FileNotFoundError, ValueError), match="memory://bucket/none: "):
        written("memory://bucket/none", tmp_path / "x.beton")


def class_folder(root: Path) -> Path:
    """Two images of each of three classes, one with a name that HTML and URLs escape."""
    for index, name in enumerate(["black & white", "rose", "tulip/field"]):
        folder = root / name
        folder.mkdir(parents=True)
        for image in range(2):
            (folder / f"{image}.jpg").write_bytes(encoded(picture(24, 24, 2 * index + image)))
    return root


@pytest.mark.parametrize("lost", ["rose", "tulip/field"])
def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, lost: str) -> None:
    """Its images, or all of its class, would be missing without a word."""
    folder, out = class_folder(tmp_path / "images"), tmp_path / "x.beton"
    with Server(folder) as server:
        server.resets = lost
        with pytest.raises(ConnectionError, match=rf"^{server.url}/{lost}: cannot be listed \("):
            written(server.url, out)
        server.resets = "\0"
        server.page = lambda names: "".join(f'<a href="{quote(n)}">.</a>' for n in (*names, "no/"))
        with pytest.raises(FileNotFoundError, match=rf"^{server.url}/(.*/)?no: is not there"):
            written(server.url, out)
        with pytest.raises(FileNotFoundError, match=rf"^{server.url}/misspelt: is not there"):
            written(f"{server.url}/misspelt", out)
    with pytest.raises(ConnectionError, match=rf"^{server.url}: cannot be listed \(.*network"):
        written(server.url, out)
    assert not out.exists()


def page_of_apache(names: list[str]) -> str:
    links = ["?C=N;O=D", "?C=M&O=A", "/", *(quote(name, safe="&/") for name in names)]
    return "".join(f'<a href="{html.escape(link)}">{link}</a>\n' for link in links)


def page_of_caddy(names: list[str]) -> str:
    links = ["../", "./", "../../", "./?sort=name&order=desc", *(f"./{quote(n)}" for n in names)]
    return "".join(f'<a href="{html.escape(link)}">{link}</a>\n' for link in links)


@pytest.mark.parametrize("page", [page_of_apache, page_of_caddy])
def test_the_pages_of_several_servers(
    tmp_path: Path, page: Callable[[list[str]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = class_folder(tmp_path / "images")
    here = written(folder, tmp_path / "here.beton", image_size=24)
    with Server(folder) as server:
        server.page = page
        there = written(server.url, tmp_path / "there.beton", image_size=24)
        shutil.copy2(here.path, folder / "a&b-00000-of-00001.beton")
        shutil.copy2(manifest_path(here.path), folder / "a&b-00000-of-00001.beton.json")
        assert list(shards_of(f"{server.url}/a&b.beton")) == [1]
    assert there.class_names == here.class_names and there.class_counts == [2, 2, 2]
    assert there.path.read_bytes() == here.path.read_bytes()
    assert there.manifest is not None and there.manifest["left_out"] == {}


def test_hidden_files_of_a_server_are_no_images(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "images")
    names = [path.name for path in sorted(folder.iterdir())]
    for name in (f"{names[0]}/._1.png", f"{names[1]}/.thumbs/1.png", ".git/config", ".1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    with Server(folder) as server:
        there = DistantFolder(server.url)
        assert there.class_names == names and there.left_out == ClassFolder(folder).left_out
        (folder / ".git" / "1.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"\.git: a hidden folder with 1 images among"):
            DistantFolder(server.url)


@pytest.mark.parametrize("names", ["{}", "./{}", "in/{}"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_a_folder(tmp_path: Path, kind: str, names: str) -> None:
    """Also its root, and with the names that `tar -c .` gives."""
    folder = class_folder(tmp_path / "images")
    here = written(folder, tmp_path / "here.beton", image_size=24)
    archive = tmp_path / f"all.{kind}"
    files = [str(path.relative_to(folder)) for path in folder.rglob("*.jpg")]
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as made:
            for file in files:
                made.write(folder / file, names.format(file))
    else:
        with tarfile.open(archive, "w") as made_tar:
            for file in files:
                made_tar.add(folder / file, names.format(file))
    inside = "in" if names == "in/{}" else ""
    there = written(f"{kind}://{inside}::{archive}", tmp_path / "there.beton", image_size=24)
    assert there.class_names == here.class_names
    assert there.path.read_bytes() == here.path.read_bytes()
