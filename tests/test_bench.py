"""Measuring: rows in turn, ratios within a round, and words for what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from conftest import Betons
from pictures import Images
from PIL import Image

from xmix_data import RandomCrop, XMixLoader, bench, cli
from xmix_data.backends.read_ahead import ReadAhead, read_ahead
from xmix_data.bench import rows
from xmix_data.beton.encoding import encode_image


def test_rows_run_in_turn_and_the_first_round_is_not_counted() -> None:
    calls = []

    def row(name: str, seconds: float) -> bench.Row:
        def run() -> tuple[int, float]:
            calls.append(name)
            return 10, seconds

        return run

    rates = bench.interleave({"a": row("a", 1.0), "b": row("b", 2.0)}, 3, progress=False)
    assert calls == ["a", "b"] * 4
    assert rates == {"a": [10.0] * 3, "b": [5.0] * 3}


def test_a_ratio_is_taken_within_a_round() -> None:
    """The second round ran at half speed: medians of the rows alone would give another figure."""
    rates = {"ours": [100.0, 50.0, 90.0], "limit": [200.0, 100.0, 100.0]}
    assert bench.ratios(rates, "ours", lambda r: r["limit"]) == [0.5, 0.5, 0.9]


def test_predictions_add_up_times() -> None:
    rates = {rows.DECODE: 100.0, rows.COPY: 200.0, rows.MIX: 50.0}
    expected = {t.row: t.expected(rates) for t in bench.TARGETS}
    assert expected["jpg + jpg, uint8 pairs"] == 50
    assert expected["raw + jpg, mixed"] == pytest.approx(1 / (1 / 100 + 2 / 200 + 1 / 50))
    assert expected["raw + raw, mixed"] == pytest.approx(1 / (2 / 200 + 1 / 50))


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({"batches": 0}, "no batch"),
        ({"loader_waited_s": 9.0}, "the consumer is the bottleneck"),
        ({"consumer_waited_s": 9.0, "decode_s": 8.0}, "80% of its threads' time is JPEG decoding"),
        ({"consumer_waited_s": 9.0, "copy_s": 6.0}, "75% of its threads' time is copying"),
        ({"consumer_waited_s": 9.0, "disk_waits": 99}, "waited for the disk"),
    ],
)
def test_who_waits_is_said_in_words(stats: dict[str, float], words: str) -> None:
    usual = {
        "batches": 3,
        "samples": 24,
        "consumer_waited_s": 1.0,
        "loader_waited_s": 0.5,
        "decode_s": 2.0,
        "copy_s": 2.0,
        "bytes_read": 1e6,
        "disk_waits": 0,
    }
    assert words in bench.explain({**usual, **stats})


def test_explain_takes_what_a_loader_says(betons: Betons) -> None:
    loader = XMixLoader(
        betons.target_jpg, betons.source_jpg, betons.pairing, batch_size=9, crop=RandomCrop(32)
    )
    assert bench.explain(loader.stats()) == "no batch has been delivered yet"
    list(loader)
    assert "is the bottleneck" in bench.explain(loader.stats())


def test_made_up_pictures_are_as_hard_as_photographs() -> None:
    """Photographs of 256 pixels take about 22 KB at quality 90."""
    pictures = bench.Photographs(classes=2, per_class=4)
    assert len(pictures) == 8 and pictures.targets == [0] * 4 + [1] * 4
    sizes = [
        len(
            encode_image(pictures[i][0], encoding="jpg", image_size=None, crop="none", quality=90)[
                3
            ]
        )
        for i in range(8)
    ]
    assert 17_000 < np.mean(sizes) < 27_000
    assert np.array_equal(pictures[3][0], bench.Photographs(classes=2, per_class=4)[3][0])
    assert not np.array_equal(pictures[3][0], pictures[4][0])


def test_bench_measures_a_class_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MIN_IMAGES", 240)
    images = Images([12, 12], "c", size=(64, 64))
    for index in range(len(images)):
        pixels, label = images[index]
        folder = tmp_path / "data" / images.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    result = tmp_path / "bench.json"
    options = ["--data", str(tmp_path / "data"), "--rounds", "1", "--crop", "48"]
    options += ["--json", str(result)]
    assert cli.main(["bench", *options]) == 0
    printed = capsys.readouterr().out
    document = json.loads(result.read_text())
    assert set(document["ratios"]) == {t.row for t in bench.TARGETS}
    for row, rates in document["rates"].items():
        assert len(rates) == 1 and rates[0] > 0 and row in printed
    assert document["machine"]["versions"]["numba"] and document["configuration"]["images"] == 240
    assert "bottleneck" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--crop", "300"], "crop is 300; bench stores images with 256 pixels, give at most 256"),
        (["--crop", "0"], "crop is 0; it must be a whole number of at least 1"),
        (["--rounds", "0"], "--rounds is 0; it must be a whole number of at least 1"),
    ],
)
def test_impossible_numbers_are_an_error_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A conversion would say that there is no such folder.
    assert cli.main(["bench", "--data", str(tmp_path / "no"), *arguments]) == 2
    assert capsys.readouterr().err == f"xmix: {message}\n"


def test_impossible_numbers_are_an_error_before_torch_is_loaded() -> None:
    script = "import sys; from xmix_data.cli import main; "
    script += "main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for command in ("bench --rounds 0", "demo --seeds 0"):
        done = subprocess.run([sys.executable, "-c", script, *command.split()], timeout=60)
        assert done.returncode == 0


def resident(path: Path) -> int:
    """Pages of a file that are in memory."""
    code = (
        "import ctypes, mmap, os, sys\n"
        "f = open(sys.argv[1], 'rb'); size = os.path.getsize(sys.argv[1])\n"
        "m = mmap.mmap(f.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), pages) == 0\n"
        "print(sum(p & 1 for p in pages))\n"
    )
    return int(subprocess.check_output([sys.executable, "-c", code, str(path)]))


def test_read_ahead_brings_pages_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(os.urandom(1 << 22))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path) > 0:
        pytest.skip("this file system keeps its files in memory")
    mapped = np.memmap(path, np.uint8, "r")
    starts = np.array([1 << 20, 3 << 20], np.uint64)
    read_ahead(np.uint64(mapped.ctypes.data) + starts, np.array([300_000, 300_000], np.uint64))
    for _ in range(100):
        if resident(path) >= 2 * 300_000 // 4096:
            return
    raise AssertionError(f"only {resident(path)} pages were read")


def test_every_sample_is_asked_for_once_until_the_disk_was_waited_for(betons: Betons) -> None:
    loader = XMixLoader(
        betons.target_raw, betons.source_raw, betons.pairing, batch_size=9, crop=RandomCrop(32)
    )
    backend, plan = loader._backend, loader._plan.epoch(0)
    batches = [plan.rows(start, start + 9) for start in (0, 9, 18)]
    ahead = ReadAhead(backend.domains)
    for batch in batches:
        ahead(batch)
    target, source = ahead._asked
    assert target.all()
    assert np.flatnonzero(source).tolist() == sorted({i for b in batches for i in b.source})
    ahead.disk_was_waited_for()
    assert not target.any() and not source.any()


@pytest.mark.usefixtures("several_threads")
def test_loading_leaves_other_libraries_settings_alone(betons: Betons) -> None:
    before = torch.get_num_threads(), numba.get_num_threads(), torch.get_num_interop_threads()
    loader = XMixLoader(
        betons.target_jpg, betons.source_jpg, betons.pairing, batch_size=9, crop=RandomCrop(32)
    )
    list(loader)
    after = torch.get_num_threads(), numba.get_num_threads(), torch.get_num_interop_threads()
    assert after == before


def test_the_one_time_compilation_says_so(betons: Betons, tmp_path: Path) -> None:
    """In the first process, once for each kind of kernels; the second one finds them."""
    target, source = str(betons.target_jpg.path), str(betons.source_jpg.path)
    betons.pairing.save(pairing := tmp_path / "pairing.json")
    code = (
        "from xmix_data import ImageLoader, CenterCrop, XMixLoader\n"
        "options = dict(batch_size=4, crop=CenterCrop(8))\n"
        f"next(iter(ImageLoader({target!r}, **options)))\n"
        f"next(iter(XMixLoader({target!r}, {source!r}, {str(pairing)!r}, **options)))\n"
        "from xmix_data.decode import kernels\n"
        "stats = kernels.normalise_images.stats\n"
        "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    # The second one is as slow as a busy machine: how long it takes says nothing.
    slow = "import os, time\nfrom numba.core import caching\nload = caching.Cache.load_overload\n"
    slow += "def late(*a): time.sleep(2); return load(*a)\ncaching.Cache.load_overload = late\n"
    runs = [
        subprocess.run(
            [sys.executable, "-c", text], env=environment, capture_output=True, text=True
        )
        for text in (code, slow + code)
    ]
    assert [run.returncode for run in runs] == [0, 0], runs
    for kind in ("decoding", "mixing"):
        assert [run.stderr.count(f"compiling the {kind} kernels") for run in runs] == [1, 0]
    assert [run.stdout for run in runs] == ["0 1\n", "1 0\n"]
