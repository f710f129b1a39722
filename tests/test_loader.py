"""Lifetimes of a loader: early ends, errors, threads, processes, interpreter exit."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons, NumberedBetons
from PIL import Image

from xmix_data import ImageLoader, RandomCrop, XMixLoader, beton


def make(numbered: NumberedBetons, **options: Any) -> XMixLoader:
    settings = {"batch_size": 2, "crop": RandomCrop(8), "num_workers": 3, **options}
    return XMixLoader(numbered.target, numbered.source, numbered.pairing, **settings)


def decoding_threads() -> int:
    return sum(t.name.startswith("xmix-decode") for t in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    assert decoding_threads() == 0
    yield
    gc.collect()
    assert decoding_threads() == 0


def test_a_break_ends_the_threads(numbered: NumberedBetons) -> None:
    loader = make(numbered)
    for _ in loader:
        assert decoding_threads() == 3
        break
    gc.collect()
    assert decoding_threads() == 0
    assert len(list(loader)) == 18


def test_an_exception_in_the_loop_ends_the_threads(numbered: NumberedBetons) -> None:
    loader = make(numbered)
    with pytest.raises(KeyError):
        for _ in loader:
            raise KeyError
    loader.close()
    assert decoding_threads() == 0


def test_a_closed_loader_says_so(numbered: NumberedBetons, backend: str) -> None:
    with make(numbered, backend=backend) as loader:
        iterator = iter(loader)
        next(iterator)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    with pytest.raises(RuntimeError, match="closed"):
        iter(loader)


def test_garbage_ends_the_threads(numbered: NumberedBetons) -> None:
    loader = make(numbered)
    iterator = iter(loader)
    next(iterator)
    del loader, iterator
    gc.collect()
    assert decoding_threads() == 0


def test_loaders_run_side_by_side(numbered: NumberedBetons) -> None:
    alone = [batch.images for batch in make(numbered)]
    loaders = make(numbered), make(numbered)
    for expected, one, other in zip(alone, *loaders, strict=True):
        assert torch.equal(one.images, expected)
        assert torch.equal(other.images, expected)


def test_an_exhausted_iterator_stays_exhausted(numbered: NumberedBetons, backend: str) -> None:
    loader = make(numbered, backend=backend)
    iterator = iter(loader)
    assert len(list(iterator)) == 18
    assert list(iterator) == []
    assert loader.epoch == 1


def test_many_passes_leave_nothing_behind(numbered: NumberedBetons) -> None:
    loader = make(numbered)
    for _ in range(200):
        next(iter(loader))
    assert loader.epoch == 199


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "raise KeyboardInterrupt", "del loader"])
def test_the_interpreter_ends_with_a_pass_open(numbered: NumberedBetons, ending: str) -> None:
    code = (
        "import sys\n"
        "from xmix_data import ImageLoader, CenterCrop\n"
        f"loader = ImageLoader({str(numbered.target.path)!r}, batch_size=2, crop=CenterCrop(8))\n"
        "iterator = iter(loader)\n"
        "next(iterator)\n" + ending
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    expected = {"sys.exit(3)": 3, "raise KeyboardInterrupt": -2}.get(ending, 0)
    assert done.returncode == expected, done.stderr
    assert "Exception ignored" not in done.stderr


def test_fork_in_the_middle_of_a_pass(numbered: NumberedBetons) -> None:
    code = (
        "import os, sys\n"
        "from xmix_data import ImageLoader, CenterCrop\n"
        f"loader = ImageLoader({str(numbered.target.path)!r}, batch_size=2, crop=CenterCrop(8))\n"
        "iterator = iter(loader)\n"
        "next(iterator)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    del iterator\n"
        "    assert len(list(loader)) == len(loader)\n"
        "    sys.exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert len(list(iterator)) == len(loader) - 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_stats_count_what_was_received(numbered: NumberedBetons, backend: str) -> None:
    loader = make(numbered, backend=backend)
    for count, _ in enumerate(loader, start=1):
        assert loader.stats()["batches"] == count
    stats = loader.stats()
    assert (stats["batches"], stats["samples"]) == (18, 36)
    assert stats["consumer_waited_s"] > 0


def test_global_thread_settings_are_left_alone(betons: Betons) -> None:
    import numba

    before = torch.get_num_threads(), numba.get_num_threads()
    list(ImageLoader(betons.target_jpg, batch_size=4, crop=RandomCrop(32), num_workers=2))
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


def test_preview_is_a_picture_and_moves_nothing(betons: Betons) -> None:
    loader = XMixLoader(
        betons.target_jpg, betons.source_jpg, betons.pairing, batch_size=4, crop=RandomCrop(32)
    )
    state = loader.state_dict()
    sheet = loader.preview(5)
    assert isinstance(sheet, Image.Image)
    wider, alone = loader.preview(6), ImageLoader(
        betons.target_jpg, batch_size=4, crop=RandomCrop(32)
    ).preview(5)  # fmt: skip
    assert wider.width > sheet.width and alone.height < sheet.height
    assert loader.state_dict() == state


def test_repr_says_what_it_loads(numbered: NumberedBetons) -> None:
    assert repr(make(numbered)).startswith(
        "XMixLoader(18 batches of 2, epoch 0, 3 target classes, 4 source classes"
    )


def test_memory_is_reused_only_when_nobody_holds_the_batch(betons: Betons) -> None:
    def addresses(hold: bool) -> tuple[set[int], int]:
        loader = ImageLoader(
            betons.target_raw, batch_size=3, crop=RandomCrop(32), num_workers=2, prefetch=2
        )
        held, seen = [], set()
        for _ in range(5):
            for images, _ in loader:
                seen.add(images.untyped_storage().data_ptr())
                if hold:
                    held.append(images[0, 0, 0])  # a small view keeps all of its batch
        return seen, 5 * len(loader)

    reused, batches = addresses(hold=False)
    assert len(reused) < batches / 2
    kept, batches = addresses(hold=True)
    assert len(kept) == batches


def test_a_pass_in_a_reference_cycle_ends_wherever_the_garbage_collector_runs(
    betons: Betons,
) -> None:
    """Also in one of the pass's own threads, which cannot wait for itself."""
    code = (
        "import gc, sys, threading, time\n"
        "from xmix_data import ImageLoader, CenterCrop\n"
        "loader = ImageLoader(sys.argv[1], batch_size=2, crop=CenterCrop(32), num_workers=3)\n"
        "list(loader); gc.collect(); gc.freeze()\n"
        "def drop():\n"
        "    cycle = {'pass': iter(loader)}; cycle['self'] = cycle\n"
        "for _ in range(60):\n"
        "    gc.disable(); drop(); gc.set_threshold(5); gc.enable(); time.sleep(0.01)\n"
        "gc.collect()\n"
        "for _ in range(200):\n"
        "    left = [t.name for t in threading.enumerate() if t.name.startswith('xmix')]\n"
        "    if not left: break\n"
        "    time.sleep(0.02); gc.collect()\n"
        "print(left, len(list(loader)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(betons.target_jpg.path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] 14\n" and "Exception ignored" not in done.stderr


def test_a_thread_without_memory_is_heard_of(betons: Betons, tmp_path: Path) -> None:
    """The index says 65,535 x 65,535 pixels, and the process may not have so much memory."""
    path = tmp_path / "huge.beton"
    path.write_bytes(betons.target_jpg.path.read_bytes())
    start = beton._HEADER.itemsize + 2 * beton._FIELD.itemsize
    samples = np.memmap(path, beton._SAMPLE, "r+", offset=start, shape=(1,))
    samples["f0"]["width"] = samples["f0"]["height"] = 65_535
    samples.flush()
    code = (
        "import resource, sys\n"
        "from xmix_data import ImageLoader, RandomResizedCrop\n"
        "loader = ImageLoader(sys.argv[1], batch_size=4, crop=RandomResizedCrop(16))\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30),) * 2)\n"
        "try:\n"
        "    next(iter(loader))\n"
        "except MemoryError as error:\n"
        "    print('heard')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "heard\n", done.stderr
