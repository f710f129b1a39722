"""Some hundred mutated files of every kind; that the fuzzer can find; and what it found."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import io
import json
import os
import signal
import struct
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
import torch
from conftest import Betons
from fuzz.memory import guarded_bytes
from fuzz.sound import features, put, sound
from pictures import encoded
from PIL import Image

from xmix_data import Beton, Pairing, decode
from xmix_data.backends.host import HostBackend
from xmix_data.beton import open_domain, reader
from xmix_data.errors import BetonError
from xmix_data.jpeg import DAMAGED, Decoder, jpeg_problem, library
from xmix_data.pairing import Centroids, CentroidSum

SEED = 3


def findings(kind: str, numbers: range) -> list[str]:
    """What a process of its own finds among cases of a kind."""
    cases = [fuzzing.Case(kind, number) for number in numbers]
    verdicts = list(fuzzing.run(cases, SEED))
    assert [case for case, _ in verdicts] == cases
    return [f"{case}: {v.detail}" for case, v in verdicts if v.outcome == "finding"]


# The fuzzer


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("index", 80),
        ("data", 60),
        ("manifest", 60),
        ("pairing", 60),
        ("centroids", 60),
        ("feature cache", 40),
        ("jpeg", 100),
        ("sampling", 100),
        ("conversion", 200),
    ],
)
def test_mutated_files_are_errors_or_right(tmp_path: Path, kind: str, count: int) -> None:
    outcomes: Counter[str] = Counter()
    for number in range(1, count + 1):
        verdict = fuzzing.judge(fuzzing.Case(kind, number), SEED, tmp_path, None)
        assert verdict.outcome != "finding", (number, verdict)
        outcomes[verdict.outcome] += 1
    rare = 100 if kind == "sampling" else 20  # sampling factors that are refused
    assert min(outcomes["right"], outcomes["error"]) > count // rare, outcomes


def test_a_case_is_a_function_of_seed_kind_and_number(tmp_path: Path) -> None:
    def files(seed: int, number: int) -> dict[str, bytes]:
        fuzzing.judge(fuzzing.Case("index", number), seed, tmp_path, None)
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    first = files(0, 1)
    assert files(0, 2) != first != files(1, 1)
    assert files(0, 1) == first


def test_a_size_that_reaches_beyond_the_file_is_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    image_table = decode.image_table

    def longer(addresses: Any, sizes: Any, *rest: Any) -> Any:
        return image_table(addresses, sizes + 2, *rest)

    monkeypatch.setattr(decode, "image_table", longer)
    monkeypatch.setattr(fuzzing, "warm_up", lambda folder: None)
    found = findings("jpeg", range(0, 4))
    assert any("killed by SIGSEGV" in text and "in of_window" in text for text in found), found


def test_an_error_that_names_no_file_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Beton, "_fail", lambda self, problem, remedy="": BetonError(problem))
    verdicts = [fuzzing.judge(fuzzing.Case("index", n), SEED, tmp_path, None) for n in range(1, 30)]
    assert any("BetonError: damaged: " in v.detail for v in verdicts), verdicts


def test_a_pixel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deliver = HostBackend.deliver

    def wrong(self: HostBackend, job: Any) -> tuple[torch.Tensor, ...]:
        images = deliver(self, job)
        images[-1][-1, 0, 0, 0] += 1
        return images

    monkeypatch.setattr(HostBackend, "deliver", wrong)
    verdict = fuzzing.judge(fuzzing.Case("data", 0), SEED, tmp_path, None)
    assert verdict.detail.startswith("differs from the reference by 1"), verdict


def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "HANG_S", 2.5)
    monkeypatch.setattr(Pairing, "draws", lambda self, *_: time.sleep(60))
    monkeypatch.setattr(fuzzing, "warm_up", lambda folder: None)
    (found,) = findings("pairing", range(0, 1))
    assert "hangs for" in found and "in <lambda>" in found


@pytest.mark.parametrize("kind", ["memory", "warning", "dies"])
def test_what_goes_beyond_its_bounds_is_found(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def misbehave(self: Beton, **_: Any) -> None:
        if kind == "memory":
            np.ones(100 << 20, np.uint8)
        elif kind == "warning":
            np.float32(1e38) * np.float32(10)
        else:
            os.kill(os.getpid(), signal.SIGABRT)

    monkeypatch.setattr(Beton, "verify", misbehave)
    monkeypatch.setattr(fuzzing, "warm_up", lambda folder: None)
    told = {"memory": "took 1", "warning": "a warning: RuntimeWarning", "dies": "SIGABRT"}
    (found,) = findings("index", range(0, 1))
    assert told[kind] in found


@pytest.mark.parametrize("front", [False, True])
def test_guarded_memory_ends_where_it_says(front: bool) -> None:
    page, size = os.sysconf("SC_PAGE_SIZE"), 5000
    array = guarded_bytes(bytes(range(256)) * 20, front=front)[:size]
    process = os.fork()
    if process == 0:
        faulthandler.disable()
        beyond = array.ctypes.data + (-1 if front else 5120)
        assert (array.ctypes.data % page == 0) == front
        ctypes.string_at(beyond, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGSEGV


# What it found


def jpeg(size: tuple[int, int], **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return encoded(pixels, **options)


def without(data: bytes, marker: bytes) -> bytes:
    """A stream without its first segment of a kind."""
    at = data.index(marker)
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def test_no_table_is_taken_from_the_image_before() -> None:
    """Streams that lacked theirs were decoded with those of whatever image came before."""
    decoder, layout, functions = Decoder(), np.zeros(2, np.int64), library()

    def status(data: bytes) -> int:
        stream = np.frombuffer(data, np.uint8)
        return int(
            functions.xmix_jpeg_open(
                decoder.handle,
                stream.ctypes.data,
                stream.size,
                16,
                16,
                1,
                0,
                0,
                16,
                layout.ctypes.data,
            )
        )

    sound = jpeg((16, 16))
    for quality in (50, 90):
        assert status(jpeg((16, 16), quality=quality)) == 0
        assert status(without(sound, b"\xff\xdb")) == DAMAGED
        assert decoder.message() == "Quantization table 0x00 was not defined"
    assert jpeg_problem(sound, 16, 16) is None
    assert jpeg_problem(without(sound, b"\xff\xdb"), 16, 16) == decoder.message()


def test_a_jpeg_of_scans_without_end_is_refused() -> None:
    """Each costs a pass over the whole image, and takes a few bytes of the file."""
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16), 99, np.uint8)).save(stream, "JPEG")
    grey = stream.getvalue()
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    components = b"\3" + b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3))
    head = grey[: frame + 2] + b"\0\x11" + grey[frame + 4 : frame + 9] + components
    head += grey[frame + 13 : scan]

    def scans(count: int) -> bytes:
        """Three of different components, and the first one's again and again."""
        each = [grey[scan : scan + 5] + bytes([i]) + grey[scan + 6 : -2] for i in (2, 3, 1)]
        return head + b"".join(each[:2]) + each[2] * (count - 2) + b"\xff\xd9"

    assert [jpeg_problem(scans(n), 16, 16) for n in (3, 500)] == [None, None]
    assert jpeg_problem(scans(501), 16, 16) == "more than 500 scans"


def test_a_progressive_jpeg_without_all_its_scans_is_damaged() -> None:
    """Guesses take their place, which differ by window and by version of libjpeg."""
    data = jpeg((24, 40), progressive=True)
    last = data.rindex(b"\xff\xda")
    assert jpeg_problem(data, 24, 40) is None
    problem = jpeg_problem(data[:last] + b"\xff\xd9", 24, 40)
    assert problem == "a scan of the progressive JPEG is missing"


def sized(data: bytes, height: int, width: int) -> bytes:
    """A stream with another size in its header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_a_jpeg_that_promises_more_pixels_than_it_can_have_asks_for_no_memory(
    betons: Betons, tmp_path: Path
) -> None:
    data = sized(jpeg((16, 16)), 60_000, 60_000)
    problem = f"60000x60000 pixels do not fit into {len(data)} bytes"
    assert jpeg_problem(data, 60_000, 60_000) == problem
    uniform = Image.new("L", (2000, 1000))
    stream = io.BytesIO()
    uniform.save(stream, "JPEG", optimize=True, progressive=True)
    assert len(stream.getvalue()) * 1024 > 2_000_000  # the smallest that there is
    assert jpeg_problem(stream.getvalue(), 1000, 2000) is None

    path = tmp_path / "a.beton"
    changed = bytearray(betons.target_jpg.path.read_bytes())
    changed[betons.target_jpg._index_start + 2] = 0xFF  # the high byte of the width
    changed[betons.target_jpg._index_start + 4] = 0xFF  # and of the height
    path.write_bytes(changed)
    with pytest.raises(BetonError, match="image 0 has more pixels than a JPEG of its bytes; conv"):
        Beton(path)


def copied(made: Beton, path: Path, **changes: Any) -> Path:
    """A beton with changes in its manifest; values that are bytes stand there as they are."""
    path.write_bytes(made.path.read_bytes())
    document = json.loads(Path(f"{made.path}.json").read_text()) | {
        key: f"<{key}>" if isinstance(value, bytes) else value for key, value in changes.items()
    }
    text = json.dumps(document).encode()
    for key, value in changes.items():
        if isinstance(value, bytes):
            text = text.replace(f'"<{key}>"'.encode(), value)
    Path(f"{path}.json").write_bytes(text)
    return path


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "change",
    [
        {"skipped": DEEP},
        {"skipped": [{"path": 1, "reason": "x"}]},
        {"left_out": ["heic"]},
        {"left_out": {".heic": "4"}},
        {"kept": -1},
        {"kept": 10**9},
        {"class_names": {"t0": 0, "t1": 1, "t2": 2, "t3": 3}},
        {"class_names": "abcd"},
        {"class_names": ["t0", "t1", "t2", "\ud800"]},
        {"version": "two\nlines"},
        {"num_samples": "two\nlines"},
        {"shard": 3},
        {"shard": {}},
        {"shard": {"index": 0, "count": 1, "set": []}},
        {"shard": {"index": 1, "count": 1, "set": ""}},
        {"shard": {"index": True, "count": 2, "set": ""}},
        {"shard": {"index": "0", "count": 1, "set": ""}},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_strange_manifest_is_one_line(
    betons: Betons, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = copied(betons.target_jpg, tmp_path / "copy.beton", **change)
    with pytest.raises(BetonError, match=r"^\S+copy\.beton\.json: (damaged manifest|describ).*$"):
        Beton(path)


def test_a_set_of_a_trillion_shards_lacks_one(betons: Betons, tmp_path: Path) -> None:
    shard = {"index": 0, "count": 10**12, "set": "x"}
    path = copied(betons.target_jpg, tmp_path / "copy.beton", shard=shard)
    with pytest.raises(ValueError, match="one of 1000000000000 shards, and the list lacks shard 1"):
        open_domain(path)


def test_a_label_that_asks_for_a_million_class_names_is_damage(
    betons: Betons, tmp_path: Path
) -> None:
    path, start = tmp_path / "a.beton", betons.target_jpg._index_start
    changed = bytearray(betons.target_jpg.path.read_bytes())
    for label, problem in ((65_535, None), (65_536, "sample 0 has the label 65536; convert it")):
        changed[start + 16 : start + 24] = struct.pack("<q", label)
        path.write_bytes(changed)
        if problem is None:
            assert len(Beton(path).class_names) == 65_536
        else:
            with pytest.raises(BetonError, match=problem):
                Beton(path)


def test_as_many_classes_as_samples_need_no_names(
    betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_MAX_UNNAMED_CLASSES", 8)
    path, start = tmp_path / "a.beton", betons.target_jpg._index_start
    changed = bytearray(betons.target_jpg.path.read_bytes())
    assert len(betons.target_jpg) == 27
    for label, fits in ((26, True), (27, False)):
        changed[start + 16 : start + 24] = struct.pack("<q", label)
        path.write_bytes(changed)
        with contextlib.nullcontext() if fits else pytest.raises(BetonError, match="label 27;"):
            assert len(Beton(path).class_names) == 27


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mean": 10**400}, "int too large to convert to float"),
        ({"by_method": {"greedy": 10**400}}, "int too large to convert to float"),
    ],
)
def test_a_pairing_with_numbers_beyond_all_floats_is_damaged(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    similarity = {"mean": 0.1, "std": 0.1, "by_method": {}, "matrix": ["0.5"]} | change
    pairs = [{"target": "t", "sources": [{"name": "s", "cosine": 0.5, "images": 1}]}]
    document = {
        "format": "xmix_data.pairing",
        "version": 1,
        "options": {},
        "target": {},
        "source": {},
        "pairs": pairs,
        "similarity": similarity,
    }
    (tmp_path / "pairing.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"pairing\.json: damaged pairing \({problem}\); run"):
        Pairing.load(tmp_path / "pairing.json")


def test_a_pairing_of_a_source_without_files_is_damaged(tmp_path: Path) -> None:
    """Its table names the first."""
    pairs = [{"target": "t", "sources": [{"name": "s", "cosine": 0.5, "images": 1}]}]
    domains = [{"files": [], "fingerprints": ["x"]}]
    document = {
        "format": "xmix_data.pairing",
        "version": 1,
        "options": {},
        "target": {},
        "source": {"domains": domains},
        "pairs": pairs,
    }
    (tmp_path / "pairing.json").write_text(json.dumps(document))
    path = tmp_path / "pairing.json"
    with pytest.raises(ValueError, match="domains have no list of files"):
        Pairing.load(path)
    path.write_text(json.dumps(document | {"version": "two\nlines"}))
    with pytest.raises(
        ValueError, match=r"^\S+ damaged pairing \(its version is 'two\\nlines',.*$"
    ):
        Pairing.load(path)


def arrays_of(path: Path, **changes: Any) -> None:
    """Write saved arrays anew, with changes; ``meta`` is changed entry by entry."""
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"])) | changes.pop("meta", {})
    np.savez(path, **{**arrays, **changes, "meta": np.array(json.dumps(meta))})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"meta": {"class_names": [1, 2]}}, "the class names are no list of texts"),
        ({"meta": {"class_names": {"a": 0, "b": 1}}}, "the class names are no list of texts"),
        ({"meta": {"class_names": ["a", "\ud800"]}}, "surrogates not allowed"),
        ({"meta": {"provenance": {"x": float("nan")}}}, "not JSON compliant"),
        ({"values": np.ones((2, 3))}, "an array of float64, not float32"),
        ({"counts": np.ones(2, np.uint64)}, "an array of uint64, not int64"),
    ],
    ids=str,
)
def test_centroids_of_another_kind_are_refused(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "centroids.npz"
    Centroids(np.ones((2, 3), np.float32), np.ones(2, np.int64), ["a", "b"]).save(path)
    arrays_of(path, **change)
    with pytest.raises(ValueError, match=rf"^\S+centroids\.npz: damaged, .*{problem}.*; delete it"):
        Centroids.load(path)


def test_arrays_that_unpack_to_more_than_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "centroids.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.npy", bytes(1 << 20))
    with pytest.raises(ValueError, match=r"centroids\.npz: .*promises 1048576 bytes of arrays"):
        Centroids.load(path)


def sums(path: Path, dimensions: int = 4, position: int = 2) -> None:
    total = CentroidSum(2)
    total.add(torch.ones(2, dimensions), torch.tensor([0, 1]))
    total.save(path, position, "key")


def test_sums_of_other_features_are_not_gone_on_with(tmp_path: Path) -> None:
    path, total = tmp_path / "sums.npz", CentroidSum(2)
    sums(path)
    assert total.load(path, "key") == 2
    with pytest.raises(ValueError, match=r"sums\.npz: sums of 4 features, and these have 5; del"):
        total.add(torch.ones(1, 5), torch.tensor([0]))


def test_sums_with_counts_of_another_shape_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "sums.npz"
    sums(path)
    arrays_of(path, counts=np.ones((2, 2), np.int64))
    with pytest.raises(ValueError, match=r"sums\.npz: .*counts \(2, 2\) of 2 classes"):
        CentroidSum(2).load(path, "key")


def test_a_cache_at_a_place_that_does_not_exist_is_named(tmp_path: Path) -> None:
    name, data = sound().cached["unfinished"]
    target = put(tmp_path / "target.beton", sound().targets["raw"])
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / name
    path.write_bytes(data)
    arrays_of(path, meta={"position": 10**6})
    with pytest.raises(
        ValueError, match=rf"{name}: the state's position is 1000000; it must be a whole "
    ):
        features(target, tmp_path / "cache")


def test_finished_features_of_other_counts_are_refused(tmp_path: Path) -> None:
    name, data = sound().cached["finished"]
    target = put(tmp_path / "target.beton", sound().targets["raw"])
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / name
    path.write_bytes(data)
    arrays_of(path, counts=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=f"{name}: is of other features than its name says"):
        features(target, tmp_path / "cache")
