"""Lifetimes of a loader: early ends, errors, threads, processes, interpreter exit."""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import lifetimes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import Betons, NumberedBetons
from pictures import Numbered, written
from PIL import Image
from processes import Server
from torch.utils.data import DataLoader, Dataset

from xmix_data import CenterCrop, ImageLoader, RandomCrop, XMixLoader
from xmix_data.backends.memory import MemoryPool
from xmix_data.beton import layout
from xmix_data.loader.preview import contact_sheet


def make(numbered: NumberedBetons, **options: Any) -> XMixLoader:
    settings = {"batch_size": 2, "crop": RandomCrop(8), "num_workers": 3, **options}
    return XMixLoader(numbered.target, numbered.source, numbered.pairing, **settings)


def decoding_threads() -> int:
    return sum(t.name.startswith("xmix-decode") for t in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    gc.collect()  # other tests leave their passes to it
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
    for ask in (
        lambda: iter(loader),
        loader.peek,
        loader.preview,
        lambda: loader.set_crop(RandomCrop(6)),
        lambda: loader.set_crop(loader.crop),
        lambda: loader.set_mix(alpha=2),
    ):
        with pytest.raises(RuntimeError, match="this loader is closed; make a new one"):
            ask()
    assert loader.crop == RandomCrop(8) and loader.alpha == 1
    assert not hasattr(loader, "_backend")  # with its buffers, and DALI's threads


def test_of_a_closed_loader_all_but_batches_is_there(numbered: NumberedBetons) -> None:
    loader, open_one = make(numbered), make(numbered)
    next(iter(loader))
    next(iter(open_one))
    loader.close()
    assert loader.state_dict() == open_one.state_dict()
    assert (len(loader), loader.crop, loader.epoch) == (18, RandomCrop(8), 0)
    assert repr(loader) == repr(open_one) and loader.dataset.targets == open_one.dataset.targets
    rows = loader.last_rows
    assert rows is not None and loader.describe(rows) and loader.stats()["batches"] == 1
    loader.load_state_dict(loader.state_dict())
    loader.skip(3)
    loader.sampler.set_epoch(4)  # as frameworks do with every loader that they hold
    assert loader.state_dict()["epoch"] == 4


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


def test_nested_loops_over_two_loaders(numbered: NumberedBetons) -> None:
    def images(loader: XMixLoader) -> list[torch.Tensor]:
        return [batch.images for batch in loader]

    outer, inner, inner_alone = (make(numbered, batch_size=size) for size in (9, 6, 6))
    received = []
    for batch in outer:
        received.append(batch.images)
        assert all(map(torch.equal, images(inner), images(inner_alone)))
    assert all(map(torch.equal, received, images(make(numbered, batch_size=9))))
    assert (len(received), outer.epoch, inner.epoch) == (4, 1, 4)


def test_nested_loops_over_one_loader_close_the_outer(
    numbered: NumberedBetons, backend: str
) -> None:
    loader = make(numbered, backend=backend)
    with pytest.raises(RuntimeError, match="its loader was iterated anew"):
        for _ in loader:
            assert len(list(loader)) == 18
    assert loader.state_dict()["epoch"] == 2
    assert len(list(loader)) == 18


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


def test_many_lives_leave_nothing_behind(tmp_path: Path) -> None:
    """Those of `lifetimes.py`, 100 of each kind: no thread, no file, no mapping stays."""
    result = tmp_path / "lifetimes.json"
    command = [sys.executable, lifetimes.__file__, "--cycles", "100", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ways = json.loads(result.read_text())["ways"]
    assert len(ways) == 5
    for name, way in ways.items():
        before, after = way["readings"][0], way["readings"][-1]
        assert len(way["readings"]) == 11
        for what in ("threads", "python_threads", "files"):
            assert after[what] == before[what], (name, what)
        # A beton that stayed would be two mappings more each time; an allocator keeps a few.
        assert after["mappings"] - before["mappings"] < 50, name
        assert after["memory_mb"] - before["memory_mb"] < 20, name


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "raise KeyboardInterrupt", "del loader"])
def test_the_interpreter_ends_with_a_pass_open(
    numbered: NumberedBetons, forked: Server, ending: str
) -> None:
    code = (
        "import sys\n"
        "from xmix_data import ImageLoader, CenterCrop\n"
        f"loader = ImageLoader({str(numbered.target.path)!r}, batch_size=2, crop=CenterCrop(8))\n"
        "iterator = iter(loader)\n"
        "next(iterator)\n" + ending
    )
    done = forked.run("-c", code, timeout=60)
    expected = {"sys.exit(3)": 3, "raise KeyboardInterrupt": -2}.get(ending, 0)
    assert done.returncode == expected, done.stderr
    assert "Exception ignored" not in done.stderr


def test_threads_end_before_finalizers_are_called(numbered: NumberedBetons, forked: Server) -> None:
    """weakref goes over its register at exit, and a planner that still runs would add to it."""
    code = (
        "import threading, weakref\n"
        "from xmix_data import ImageLoader, CenterCrop\n"
        "class Last: pass\n"
        "def seen():\n"
        "    print([t.name for t in threading.enumerate() if t.name.startswith('xmix')])\n"
        f"loader = ImageLoader({str(numbered.target.path)!r}, batch_size=2, crop=CenterCrop(8))\n"
        "iterator = iter(loader)\n"
        "next(iterator)\n"
        "last = Last()\n"
        "weakref.finalize(last, seen)\n"  # the newest is called first
        "seen()\n"
    )
    done = forked.run("-c", code, timeout=60)
    before, at_exit = done.stdout.splitlines()
    assert "xmix-plan" in before and at_exit == "[]", done.stderr


def test_fork_in_the_middle_of_a_pass(numbered: NumberedBetons, forked: Server) -> None:
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
    done = forked.run("-c", code, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("daemon", [True, False])
def test_the_interpreter_ends_with_a_pass_open_in_a_thread(
    numbered: NumberedBetons, forked: Server, daemon: bool
) -> None:
    """A daemon's endless loop is left behind; a thread that is none comes to its end first."""
    code = (
        "import sys, threading\n"
        "from xmix_data import ImageLoader, CenterCrop\n"
        "def passes():\n"
        "    while True:\n"
        "        for count, _ in enumerate(loader, start=1):\n"
        "            begun.set()\n"
        "        if not daemon: break\n"
        "    print(count)\n"
        "daemon, begun = sys.argv[2] == 'True', threading.Event()\n"
        "loader = ImageLoader(sys.argv[1], batch_size=2, crop=CenterCrop(8))\n"
        "threading.Thread(target=passes, daemon=daemon).start()\n"
        "begun.wait()\n"
    )
    done = forked.run("-c", code, str(numbered.target.path), str(daemon), timeout=60)
    assert (done.returncode, done.stdout) == (0, "" if daemon else "19\n"), done.stderr
    assert "Fatal" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("place", ["pass", "time.sleep(60)"], ids=["waiting", "working"])
def test_ctrl_c_ends_the_process(betons: Betons, forked: Server, place: str) -> None:
    """Once while it waits for batches that take long, once while the user's code is busy."""
    code = (
        "import sys, time\n"
        "import torch\n"
        "from xmix_data import ImageLoader, RandomResizedCrop\n"
        "loader = ImageLoader([sys.argv[1]] * 40, batch_size=30, crop=RandomResizedCrop(600),\n"
        "                     num_workers=1, prefetch=1, dtype=torch.uint8)\n"
        "while True:\n"
        "    for _ in loader:\n"
        f"        print('a batch', flush=True); {place}\n"
    )
    child = forked.start("-c", code, str(betons.target_jpg.path))
    try:
        deadline = time.monotonic() + 60
        while "a batch\n" not in child.stdout and time.monotonic() < deadline:
            time.sleep(0.01)
        assert child.stdout.startswith("a batch\n"), child.stderr
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        child.wait(60)
    finally:
        child.kill()
    err = child.stderr
    assert child.returncode == -signal.SIGINT, err
    assert err.count("Traceback") == err.count("KeyboardInterrupt") == 1, err
    assert "xmix-" not in err and "Exception ignored" not in err, err


@pytest.mark.usefixtures("heeds_interrupts")
def test_after_ctrl_c_the_epoch_goes_on(numbered: NumberedBetons) -> None:
    loader, expected = make(numbered), [batch.images for batch in make(numbered)]
    received = []
    with pytest.raises(KeyboardInterrupt):
        for batch in loader:
            received.append(batch.images)
            if len(received) == 5:
                signal.raise_signal(signal.SIGINT)
    loader.load_state_dict(loader.state_dict())
    assert decoding_threads() == 0
    received += [batch.images for batch in loader]
    assert all(map(torch.equal, received, expected)) and len(received) == 18


class Orders(Dataset[list[int]]):
    """Item i: the images of epoch i, by the loader that is given or by the worker's own."""

    def __init__(self, path: Path, loader: ImageLoader | None = None) -> None:
        self._path, self._loader = path, loader

    def __len__(self) -> int:
        return 3

    def __getitem__(self, epoch: int) -> list[int]:
        loader = self._loader or order_loader(self._path)
        loader.set_epoch(epoch)
        return order_of(loader)


def order_loader(path: Path) -> ImageLoader:
    return ImageLoader(
        path, batch_size=2, crop=CenterCrop(8), shuffle=True, dtype=torch.uint8, num_workers=3
    )


def order_of(batches: Iterable[Any]) -> list[int]:
    return [index for images, _ in batches for index in Numbered.indices(images)]


def order_in_another_process(path: Path) -> list[int]:
    return order_of(order_loader(path))


def test_other_processes_start_in_the_middle_of_a_pass(numbered: NumberedBetons) -> None:
    """Forked workers of DataLoaders that were made before and after, a command, a spawned one."""
    path = numbered.target.path
    loader, used = order_loader(path), order_loader(path)
    epochs = [order_of(loader) for _ in range(3)]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1 and epochs[0] != epochs[1]
    options: dict[str, Any] = {"batch_size": None, "timeout": 60, "multiprocessing_context": "fork"}
    before = [DataLoader(Orders(path, used), num_workers=2, **options)]
    loader.set_epoch(0)
    open_pass, other = iter(loader), iter(used)
    next(other)
    received = []
    after = [
        DataLoader(Orders(path, used), num_workers=2, **options),
        DataLoader(Orders(path), num_workers=1, **options),
    ]
    for forked in before + after:
        assert list(forked) == epochs
        received += order_of([next(open_pass)])
    assert subprocess.run([sys.executable, "-S", "-c", "print(1)"], timeout=60).returncode == 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        assert pool.submit(order_in_another_process, path).result(timeout=60) == epochs[0]
    assert received + order_of(open_pass) == epochs[0]
    assert len(list(other)) == len(used) - 1


def test_a_child_closes_what_its_parent_was_busy_with(numbered: NumberedBetons) -> None:
    """A thread that the child lacks may hold a lock at the fork, and does so often here."""
    loader = make(numbered, batch_size=1, num_workers=8, prefetch=8)
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        for _ in range(15):
            open_pass = iter(loader)
            next(open_pass)
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                loader.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, "the child hung and was killed"
    finally:
        sys.setswitchinterval(interval)


class Refusing(RandomCrop):
    """A crop that has no box for some of the uniform numbers."""

    def boxes(
        self, heights: npt.NDArray[Any], widths: npt.NDArray[Any], uniforms: npt.NDArray[Any]
    ) -> npt.NDArray[np.int32]:
        if (uniforms[:, 0] > 0.97).any():
            raise ArithmeticError(f"no box in {threading.current_thread().name}")
        return super().boxes(heights, widths, uniforms)


def test_an_error_in_a_loader_thread_reaches_the_consumer(numbered: NumberedBetons) -> None:
    """With the frames where it arose; what was received before it counts, and no more."""
    loader = make(numbered, crop=Refusing(8), rank=1, world_size=2, seed=1)
    received = 0
    with pytest.raises(ArithmeticError, match="no box in xmix-plan") as raised:
        for _ in loader:
            received += 1
    assert "boxes" in [frame.name for frame in traceback.extract_tb(raised.tb)]
    assert 0 < received < len(loader)
    assert loader.state_dict()["position"] == 4 * received
    del raised
    assert decoding_threads() == 0


def test_stats_count_what_was_received(numbered: NumberedBetons, backend: str) -> None:
    loader = make(numbered, backend=backend)
    for count, _ in enumerate(loader, start=1):
        assert loader.stats()["batches"] == count
    stats = loader.stats()
    assert (stats["batches"], stats["samples"]) == (18, 36)
    assert stats["consumer_waited_s"] > 0


@pytest.mark.usefixtures("several_threads")
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
    wider, alone = (
        loader.preview(6),
        ImageLoader(betons.target_jpg, batch_size=4, crop=RandomCrop(32)).preview(5),
    )
    assert wider.width > sheet.width and alone.height < sheet.height
    assert loader.state_dict() == state
    for count in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"n is {count}; it must be a whole number of at lea"):
            loader.preview(count)  # type: ignore[arg-type]


def test_a_preview_tells_any_two_names_apart() -> None:
    """A font shows each character that it lacks as the same box."""

    def drawn(name: str) -> bytes:
        return contact_sheet([np.zeros((1, 90, 200, 3), np.uint8)], [[name]], np.ones(1)).tobytes()

    names = [
        "Straße",
        "Strañe",
        "猫",
        "犬",
        "собака",
        "قطة",
        "🐶",
        "a\nb",
        "ab",
        "a\x1bb",
        "a b",
        "\udc80",
    ]
    assert len({drawn(name) for name in names}) == len(names)
    for name, shown in (("a\nb", r"a\nb"), ("猫", r"\u732b"), ("🐶", r"\U0001f436")):
        assert drawn(name) == drawn(shown)  # a line of its own would lie under the next picture


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


def test_memory_comes_back_with_what_was_in_it() -> None:
    """The system gives so much memory from fresh pages, which are zero."""
    pool, shape = MemoryPool(1), (64 << 20,)
    pool.array(shape, np.uint8)[::4096] = 7
    assert (pool.array(shape, np.uint8)[::4096] == 7).all()


def test_a_pass_in_a_reference_cycle_ends_wherever_the_garbage_collector_runs(
    betons: Betons, forked: Server
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
    done = forked.run("-c", code, str(betons.target_jpg.path), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] 14\n" and "Exception ignored" not in done.stderr


def test_a_thread_without_memory_is_heard_of(tmp_path: Path, forked: Server) -> None:
    """The index says 65,535 x 65,535 pixels, and the process may not have so much memory."""
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "JPEG")
    # So many pixels need so many bytes to be believed.
    pictures = [(stream.getvalue() + bytes(5 << 20), 0)] * 4
    path = tmp_path / "huge.beton"
    written(pictures, path, encoding="keep", image_size=None, crop="none")
    (tmp_path / "huge.beton.json").unlink()
    start = layout.HEADER.itemsize + 2 * layout.FIELD.itemsize
    samples = np.memmap(path, layout.SAMPLE, "r+", offset=start, shape=(1,))
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
    done = forked.run("-c", code, str(path), timeout=120)
    assert done.stdout == "heard\n", done.stderr
