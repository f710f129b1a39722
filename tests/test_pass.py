"""A pass and what lasts beyond it: epochs, positions, copies, ranks, options that change."""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons, Numbered, NumberedBetons
from PIL import Image

from xmix_data import (
    Beton,
    BetonError,
    CenterCrop,
    ImageLoader,
    MixedBatch,
    RandomCrop,
    XMixLoader,
    write_beton,
)
from xmix_data.backends.queue import BatchQueue
from xmix_data.backends.work import Job
from xmix_data.beton import open_domain
from xmix_data.loader.position import Position
from xmix_data.loader.spans import Share
from xmix_data.plan import PlanRows

SMALL: dict[str, Any] = {"crop": CenterCrop(8)}


def crops(numbered: NumberedBetons, **options: Any) -> XMixLoader:
    settings = {"batch_size": 4, "crop": RandomCrop(8), "mix": False, "dtype": torch.uint8}
    return XMixLoader(
        numbered.target, numbered.source, numbered.pairing, seed=5, **{**settings, **options}
    )


def shown(batches: Any) -> list[list[int]]:
    """Which target images batches show."""
    return [Numbered.indices(batch.target_images) for batch in batches]


def epoch_of(numbered: NumberedBetons, epoch: int, **options: Any) -> list[list[int]]:
    """What a new loader gives in an epoch."""
    with crops(numbered, **options) as loader:
        loader.set_epoch(epoch)
        return shown(loader)


def threads() -> list[int]:
    return sorted(
        t.ident or 0
        for t in threading.enumerate()
        if t.name.startswith(("xmix-decode", "xmix-plan"))
    )


# The state machine


def test_positions_in_every_order() -> None:
    """All sequences of four events, against the contract's sentences."""
    share = Share(samples=37, batch_size=4, rank=0, world_size=1, drop_last=True)

    def after(*events: Callable[[Position], None]) -> tuple[int, int]:
        position = Position()
        for event in events:
            event(position)
        return position.next(share)

    def load(epoch: int, at: int) -> Callable[[Position], None]:
        return lambda p: p.load(epoch, at)

    def name(epoch: int) -> Callable[[Position], None]:
        return lambda p: p.set_epoch(epoch)

    begin: Callable[[Position], None] = Position.begin
    end: Callable[[Position], None] = Position.end

    def take(at: int) -> Callable[[Position], None]:
        def received(position: Position) -> None:
            position.enter(share)
            position.receive(at)

        return received

    assert after() == (0, 0)
    assert after(begin) == (0, 0) == after(begin, begin)
    assert after(begin, take(4)) == (1, 0) == after(begin, take(4), begin)
    assert after(begin, take(36), end) == (1, 0)
    assert after(name(7)) == (7, 0) == after(begin, name(7))
    assert after(load(3, 8)) == (3, 8) == after(load(3, 8), begin)
    assert after(load(3, 8), name(3)) == (3, 8) == after(load(3, 8), begin, name(3), name(3))
    assert after(load(3, 8), name(4)) == (4, 0) == after(load(3, 8), name(3), name(4))
    assert after(load(3, 8), name(4), name(3)) == (3, 0)
    assert after(load(3, 8), begin, take(12), name(3)) == (3, 0)
    assert after(load(3, 36)) == (4, 0) == after(load(3, 36), begin)
    assert after(load(3, 36), name(3)) == (3, 36) == after(load(3, 36), begin, name(3))
    assert after(load(3, 36), name(3), end) == (4, 0)
    assert after(load(3, 36), name(4)) == (4, 0)
    assert after(load(3, 36), begin, take(4)) == (5, 0)


@pytest.mark.parametrize("drop_last", [True, False])
def test_naming_the_loaded_epoch_keeps_its_position(
    numbered: NumberedBetons, backend: str, drop_last: bool
) -> None:
    options: dict[str, Any] = {"backend": backend, "drop_last": drop_last}
    whole = epoch_of(numbered, 2, **options)
    first = crops(numbered, **options)
    first.set_epoch(2)
    iterator = iter(first)
    assert shown([next(iterator), next(iterator)]) == whole[:2]
    state = first.state_dict()
    for namings in (0, 1, 3):
        resumed = crops(numbered, **options)
        resumed.load_state_dict(state)
        for _ in range(namings):
            resumed.set_epoch(2)
        assert shown(resumed) == whole[2:] and resumed.epoch == 3
    resumed.load_state_dict(state)
    resumed.set_epoch(5)
    assert shown(resumed) == epoch_of(numbered, 5, **options)


def test_naming_a_loaded_epoch_that_is_over_is_an_empty_pass(
    numbered: NumberedBetons, backend: str
) -> None:
    first = crops(numbered, backend=backend)
    iterator = iter(first)
    for _ in range(len(first)):
        next(iterator)
    resumed = crops(numbered, backend=backend)
    resumed.load_state_dict(first.state_dict())
    resumed.set_epoch(0)
    assert list(resumed) == [] and resumed.epoch == 1
    assert shown(resumed) == epoch_of(numbered, 1)


def test_an_iterator_without_a_batch_follows_the_epoch(
    numbered: NumberedBetons, backend: str
) -> None:
    """Lightning calls iter, set_epoch, next."""
    loader = crops(numbered, backend=backend)
    iterator = iter(loader)
    loader.set_epoch(3)
    loader.sampler.set_epoch(4)
    assert shown(iterator) == epoch_of(numbered, 4) and loader.epoch == 5
    iterator = iter(loader)
    next(iterator)
    loader.set_epoch(9)
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    assert shown(loader) == epoch_of(numbered, 9)


# An epoch's end


def test_threads_and_prefetch_go_on_into_the_next_epoch(numbered: NumberedBetons) -> None:
    loader = crops(numbered, num_workers=2, prefetch=3)
    expected = [epoch_of(numbered, epoch) for epoch in range(5)]
    assert shown(loader) == expected[0]
    running, feed = threads(), loader._feed
    assert len(running) == 3 and feed is not None
    assert shown(loader) == expected[1]
    loader.set_epoch(2)  # the one that comes anyway
    assert shown(loader) == expected[2]
    iterator = iter(loader)  # a consumer that stops after len() batches
    assert shown(next(iterator) for _ in range(len(loader))) == expected[3]
    assert shown(loader) == expected[4]
    assert threads() == running and loader._feed is feed
    loader.close()
    assert threads() == []


def test_a_schedule_that_sets_what_is_set_throws_nothing_away(betons: Betons) -> None:
    options: dict[str, Any] = {"batch_size": 8, "crop": RandomCrop(32), "alpha": 2.0}
    with XMixLoader(betons.target_raw, betons.source_raw, betons.pairing, **options) as loader:
        list(loader)
        feed = loader._feed
        assert feed is not None
        for epoch in (1, 2):
            loader.set_epoch(epoch)
            loader.set_crop(RandomCrop(32))
            loader.set_mix(alpha=2.0, beta=1.0, enabled=True)
            list(loader)
        assert loader._feed is feed
        loader.set_mix(enabled=False)
        assert all((batch.lam == 1).all() for batch in loader) and loader._feed is not feed


@pytest.mark.parametrize("how", ["set_epoch", "load_state_dict", "peek", "break", "set_crop"])
def test_what_was_prefetched_is_thrown_away_elsewhere(
    numbered: NumberedBetons, backend: str, how: str
) -> None:
    loader = crops(numbered, backend=backend, prefetch=5)
    shown(loader)
    epoch, position, options = 1, 0, dict[str, Any]()
    if how == "set_epoch":
        loader.set_epoch(epoch := 7)
    elif how == "load_state_dict":
        loader.load_state_dict({**loader.state_dict(), "epoch": (epoch := 4), "position": 0})
    elif how == "peek":  # the first batch of the epoch in whose middle it goes on
        loader.peek()
        loader.load_state_dict({**loader.state_dict(), "position": (position := 8)})
    elif how == "break":
        next(iter(loader))
        epoch = 2
    else:
        loader.set_crop(RandomCrop(12))
        options = {"crop": RandomCrop(12)}
    with crops(numbered, **options) as new:
        new.load_state_dict({**new.state_dict(), "epoch": epoch, "position": position})
        for ours, expected in zip(loader, new, strict=True):
            for one, other in zip(ours, expected, strict=True):
                assert torch.equal(one, other)


def test_who_is_in_no_hurry_gets_batches_of_one_thread_each(numbered: NumberedBetons) -> None:
    """To wake several threads for a batch costs a training that does not wait for it; and once one
    thread was too slow, all work again."""
    loader = crops(numbered, num_workers=4)
    backend, rows = loader._backend, loader._plan.epoch(0).rows(0, 8)
    opened, whole, ready = SimpleQueue[Job](), list[bool](), True

    def open_job(rows: PlanRows, by_one: bool) -> Job:
        job = backend.open(rows, by_one)
        whole.append(by_one)
        assert job.stripes_left == (1 if by_one else -(-8 // job.stripe)) and job.stripe <= 8
        if ready:
            job.made.set()
        opened.put(job)
        return job

    queue = BatchQueue(itertools.repeat(rows), open_job, lambda rows: None, 1, workers=0)
    planner = threading.Thread(target=queue.plan, daemon=True)
    planner.start()

    def take(count: int) -> list[bool]:
        whole.clear()
        for _ in range(count):
            job = opened.get()
            while queue._opened.empty():  # until it is there to be taken
                time.sleep(0.001)
            if not ready:
                threading.Timer(0.05, job.made.set).start()
            queue.take()
        return list(whole)

    assert not any(take(16)[:15])
    assert all(take(8)[1:])
    ready = False
    take(2)  # comes late
    ready = True
    take(2)
    assert not any(take(40)[1:])
    queue.close()
    planner.join()


def test_without_a_new_order_threads_end_with_the_pass(numbered: NumberedBetons) -> None:
    loader = ImageLoader(numbered.target, batch_size=8, crop=CenterCrop(8))
    for _ in range(2):
        list(loader)
        assert threads() == []
    with ImageLoader(numbered.target, batch_size=8, crop=CenterCrop(8), shuffle=True) as other:
        list(other)
        assert threads() != []


def test_a_fault_is_raised_when_its_batch_is_asked_for(tmp_path: Path) -> None:
    """A damaged source image that only a later epoch draws, which is prefetched already."""
    pictures = []
    for colour in range(40):
        stream = io.BytesIO()
        Image.new("RGB", (16, 16), (6 * colour, 0, 0)).save(stream, "JPEG")
        pictures.append((stream.getvalue(), 0))
    settings: dict[str, Any] = {"encoding": "keep", "image_size": None, "num_workers": 0}
    target = write_beton(pictures[:8], tmp_path / "t.beton", progress=False, **settings)
    source = write_beton(pictures, tmp_path / "s.beton", progress=False, **settings)
    pairing = {"0": [("0", 1.0, 40)]}
    from xmix_data import PairedClass, Pairing

    pairs = Pairing({t: [PairedClass(*s) for s in found] for t, found in pairing.items()})

    def loader() -> XMixLoader:
        return XMixLoader(target, source, pairs, batch_size=4, crop=CenterCrop(16), prefetch=8)

    plan = loader()._plan
    drawn = [set(plan.epoch(epoch).rows(0, 8).source.tolist()) for epoch in range(2)]
    bad = min(drawn[1] - drawn[0])
    with (tmp_path / "s.beton").open("r+b") as file:
        file.seek(int(source.pointers[bad]) + int(source.sizes[bad]) // 2)
        file.write(b"\xff\xd8" * 40)
    ours = loader()
    assert len(list(ours)) == 2
    with pytest.raises(BetonError, match=f"image {bad} "):
        list(ours)
    assert ours.epoch == 1


def test_memory_is_flat_over_many_epochs(numbered: NumberedBetons) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    loader, sizes = crops(numbered, batch_size=16, num_workers=1), []
    for epoch in range(1000):
        for _ in loader:
            pass
        if epoch in (300, 999):
            sizes.append(resident())
    assert sizes[1] - sizes[0] < 3 << 20
    assert loader.stats()["batches"] == 2000


def test_a_fork_between_epochs_is_safe(numbered: NumberedBetons, tmp_path: Path) -> None:
    numbered.pairing.save(tmp_path / "pairing.json")
    code = (
        "import os, sys\n"
        "from xmix_data import RandomCrop, XMixLoader\n"
        "loader = XMixLoader(*sys.argv[1:], batch_size=4, crop=RandomCrop(8), num_workers=2)\n"
        "def sums(): return [round(float(b.images.double().sum()), 3) for b in loader]\n"
        "sums()\n"
        "child = os.fork()\n"
        "made = sums(), sums()\n"
        "if child == 0:\n"
        "    print('child', made); sys.stdout.flush(); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print('parent', made)\n"
    )
    paths = [str(b.absolute_path) for b in (numbered.target, numbered.source)]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths, str(tmp_path / "pairing.json")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    child, parent = done.stdout.splitlines()
    assert child.removeprefix("child") == parent.removeprefix("parent") != "([], [])"


# What frameworks and users ask


def test_peek_is_the_next_batch_and_changes_nothing(numbered: NumberedBetons, backend: str) -> None:
    loader, expected = crops(numbered, backend=backend), epoch_of(numbered, 0)

    def peeked() -> list[int]:
        before = loader.state_dict(), loader.epoch, loader.last_rows
        stats = {k: v for k, v in loader.stats().items() if k in ("batches", "samples", "replaced")}
        batch = loader.peek()
        found = Numbered.indices(batch.target_images)
        batch.target_images.zero_()  # it is the caller's
        assert before == (loader.state_dict(), loader.epoch, loader.last_rows)
        assert stats == {k: loader.stats()[k] for k in stats}
        return found

    assert peeked() == expected[0] == peeked()
    for number, batch in enumerate(loader):
        assert Numbered.indices(batch.target_images) == expected[number]
        after = expected[number + 1] if number + 1 < len(expected) else epoch_of(numbered, 1)[0]
        assert peeked() == after
    assert peeked() == epoch_of(numbered, 1)[0]
    loader.set_epoch(6)
    assert peeked() == epoch_of(numbered, 6)[0]


@pytest.mark.parametrize("received", [0, 1, 2])
def test_a_batch_that_peek_fails_at_stays_the_next_one(
    betons: Betons, tmp_path: Path, backend: str, received: int
) -> None:
    """Of a damaged image the error comes again; nothing behind it is given in its place."""
    data = bytearray(betons.target_jpg.path.read_bytes())
    start = int(betons.target_jpg.pointers[4 * received])
    data[start : start + 2] = b"no"
    path = tmp_path / "damaged.beton"
    path.write_bytes(data)
    loader = ImageLoader(path, batch_size=4, crop=CenterCrop(32), backend=backend)
    iterator = iter(loader)
    for _ in range(received):
        next(iterator)
    stats = loader.stats()
    for _ in range(2):
        with pytest.raises(BetonError, match=f"image {4 * received} "):
            loader.peek()
    assert loader.state_dict()["position"] == 4 * received
    assert loader.stats()["batches"] == stats["batches"]
    assert loader.stats()["bytes_read"] >= stats["bytes_read"]
    with pytest.raises(BetonError, match=f"image {4 * received} "):
        next(iterator)
    loader.set_epoch(0)
    iterator = iter(loader)  # and in a pass of its own
    for _ in range(received):
        next(iterator)
    with pytest.raises(BetonError, match=f"image {4 * received} "):
        next(iterator)


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_peek_that_is_interrupted_loses_no_batch(numbered: NumberedBetons) -> None:
    loader, expected = crops(numbered, num_workers=1, prefetch=2), epoch_of(numbered, 0)
    iterator, asked = iter(loader), threading.Event()
    work = loader._backend.work

    def slow(*arguments: Any) -> None:
        asked.wait()
        time.sleep(0.2)  # until the other thread waits for the batch
        if not interrupted:
            interrupted.append(True)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        work(*arguments)

    interrupted: list[bool] = []
    got = shown([next(iterator)])
    loader._backend.work = slow
    with pytest.raises(KeyboardInterrupt):
        while not interrupted:  # the second batch may have been made before
            asked.set()
            loader.peek()
            got += shown([next(iterator)])
    assert got + shown(iterator) == expected


def test_a_batch_that_is_lost_on_its_way_ends_the_pass(numbered: NumberedBetons) -> None:
    """Between the feed and the caller, where a GPU may have no memory: none behind it comes."""

    def fails(*arguments: Any) -> None:
        raise MemoryError

    loader = crops(numbered)
    iterator = iter(loader)
    next(iterator)
    loader._batch = fails  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        next(iterator)
    del loader._batch
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    loader.load_state_dict(loader.state_dict())
    assert shown(loader) == epoch_of(numbered, 0)[1:]


@pytest.mark.parametrize("backend", ["reference", "host"])
@pytest.mark.parametrize("how", ["crop", "mix"])
def test_peek_in_a_pass_is_of_that_pass(betons: Betons, backend: str, how: str) -> None:
    """What is set in the middle of a pass holds from the next one on, whoever peeks."""
    files = betons.target_raw, betons.source_raw, betons.pairing

    def loader() -> XMixLoader:
        return XMixLoader(*files, batch_size=9, crop=RandomCrop(32), backend=backend, seed=1)

    def change(one: XMixLoader) -> None:
        one.set_crop(RandomCrop(16)) if how == "crop" else one.set_mix(enabled=False)

    def same(one: MixedBatch, other: MixedBatch) -> bool:
        return all(map(torch.equal, one, other))

    old, new, ours = loader(), loader(), loader()
    expected = list(old)
    change(new)
    new.set_epoch(1)
    for number, batch in enumerate(ours):
        assert same(batch, expected[number])
        change(ours)
        after = [*expected, new.peek()][number + 1]
        assert same(ours.peek(), after) and same(ours.peek(), after)
    assert len(expected) == number + 1 == 3
    assert all(map(same, ours, new))


@pytest.mark.parametrize("options", [{}, {"mix": False}, {"labels": "dict"}, {"labels": "soft"}])
def test_batches_share_nothing(numbered: NumberedBetons, backend: str, options: Any) -> None:
    """Neither with what peek gives nor with what the loader keeps."""

    def loader() -> XMixLoader:
        settings = {"mix": True, "dtype": torch.float32, "backend": backend, **options}
        return crops(numbered, **settings)

    def tensors(batch: Any) -> list[torch.Tensor]:
        return list(batch.values() if isinstance(batch, dict) else batch)

    ours = loader()
    iterator = iter(ours)
    for expected in loader():
        for tensor in tensors(ours.peek()):
            tensor.fill_(77)
        batch = tensors(next(iterator))
        assert all(map(torch.equal, batch, tensors(expected)))
        rows = ours.last_rows
        assert rows is not None and rows.source is not None
        kept = [array.copy() for array in (rows.lam, rows.target, rows.source)]
        for tensor in batch:
            tensor.fill_(77)
        assert all(map(np.array_equal, kept, (rows.lam, rows.target, rows.source)))
    assert ours.dataset.targets == numbered.target.labels.tolist()


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2])
def test_skip_goes_on_behind_batches(
    numbered: NumberedBetons, world_size: int, drop_last: bool
) -> None:
    """From any place, over ends of epochs; the epoch may be named after that, as by frameworks."""
    options = {"rank": 0, "world_size": world_size, "drop_last": drop_last, "batch_size": 5}
    whole = [batch for epoch in range(5) for batch in epoch_of(numbered, epoch, **options)]
    steps = len(whole) // 5
    for start in (0, 2, steps):
        for batches in (0, 1, steps - 1, steps, steps + 1, 2 * steps):
            loader = crops(numbered, **options)
            loader.set_epoch(start // steps)
            for _ in zip(range(start % steps), loader, strict=False):
                pass
            loader.load_state_dict(loader.state_dict())
            loader.skip(batches)
            loader.set_epoch(loader.epoch)
            epoch = (start + batches) // steps
            assert loader.epoch == epoch
            assert shown(loader) == whole[start + batches : (epoch + 1) * steps]
            assert shown(loader) == whole[(epoch + 1) * steps : (epoch + 2) * steps]


def test_skip_counts_from_where_the_next_pass_would_begin(numbered: NumberedBetons) -> None:
    loader = crops(numbered)
    next(iter(loader))  # a pass that was left: the next one is the next epoch's
    loader.skip(2)
    assert shown(loader) == epoch_of(numbered, 1)[2:]
    coarse = crops(numbered, batch_size=9)
    next(iter(coarse))
    fine = crops(numbered)
    fine.load_state_dict(coarse.state_dict())  # sample 9, which is in the middle of a batch
    fine.skip(1)
    expected = [i for batch in epoch_of(numbered, 0, drop_last=False) for i in batch]
    assert [i for batch in shown(fine) for i in batch] == expected[13:]
    for wrong in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match=r"batches is .*; it must be a whole number of"):
            loader.skip(wrong)


def test_dataset_and_sampler(numbered: NumberedBetons) -> None:
    loader = crops(numbered, rank=1, world_size=2, batch_size=5, drop_last=False)
    assert len(loader.dataset) == 37 and loader.dataset.classes == ["t0", "t1", "t2"]
    assert loader.dataset.class_to_idx == {"t0": 0, "t1": 1, "t2": 2}
    assert loader.dataset.targets == numbered.target.labels.tolist()
    assert len(loader.sampler) == sum(len(batch.lam) for batch in loader) == 19
    loader.sampler.set_epoch(4)
    assert loader.epoch == 4
    with pytest.raises(AttributeError, match=r"no attribute 'batch_sampler'.*load_state_dict"):
        loader.batch_sampler  # noqa: B018, whoever finds one builds a DataLoader of it


@pytest.mark.parametrize("labels", ["pair", "soft"])
def test_mixing_can_be_switched_off(betons: Betons, backend: str, labels: str) -> None:
    settings: dict[str, Any] = {"batch_size": 8, "crop": RandomCrop(32), "seed": 3}
    loader = XMixLoader(
        betons.target_raw,
        betons.source_raw,
        betons.pairing,
        labels=labels,
        backend=backend,
        **settings,
    )
    mixed = list(loader)
    loader.set_mix(enabled=False)
    read = loader.stats()["bytes_read"]
    plain = ImageLoader(
        betons.target_raw, shuffle=True, flip=True, drop_last=True, backend=backend, **settings
    )
    plain.set_epoch(1)
    for ours, (images, targets) in zip(loader, plain, strict=True):
        assert torch.equal(ours[0], images)
        if isinstance(ours, MixedBatch):
            assert torch.equal(ours.target_labels, targets) and (ours.lam == 1).all()
            assert int(ours.source_labels.max()) < loader.num_source_classes
        else:
            assert torch.equal(ours[1].argmax(1), targets) and (ours[1].sum(1) == 1).all()
    size = int(betons.target_raw.sizes[0])
    read = loader.stats()["bytes_read"] - read
    assert read % size == 0  # the last batches of the mixed epoch's prefetch aside, whole images
    loader.set_mix(enabled=True)
    again = list(loader)
    assert len(again) == len(mixed) and not torch.equal(again[0][0], mixed[0][0])


def test_no_byte_of_a_source_is_read_where_nothing_is_mixed(betons: Betons) -> None:
    loader = XMixLoader(
        betons.target_raw, betons.source_jpg, betons.pairing, batch_size=9, crop=RandomCrop(32)
    )
    loader.set_mix(enabled=False)
    list(loader)
    loader.close()
    assert loader.stats()["decode_s"] == 0
    assert loader.stats()["bytes_read"] % int(betons.target_raw.sizes[0]) == 0


def test_alpha_changes_from_the_next_pass_on(numbered: NumberedBetons) -> None:
    loader = crops(numbered, mix=True, dtype=torch.float32, alpha=1.0)
    iterator = iter(loader)
    first = next(iterator).lam
    loader.set_mix(alpha=64.0)
    assert loader.alpha == 64.0 and loader.beta == 1.0
    rest = torch.cat([first, *(batch.lam for batch in iterator)])
    expected = torch.cat([b.lam for b in crops(numbered, mix=True, dtype=torch.float32)])
    assert torch.equal(rest, expected)
    assert torch.cat([batch.lam for batch in loader]).mean() > 0.95
    state = loader.state_dict()
    loader.load_state_dict(state)  # it is in no state
    assert loader.alpha == 64.0
    with pytest.raises(ValueError, match="alpha is 0"):
        loader.set_mix(alpha=0)
    with pytest.raises(ValueError, match=r"enabled is 0\.5; it must be True or False"):
        loader.set_mix(enabled=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mix=False"):
        crops(numbered).set_mix(alpha=2)
    with pytest.raises(ValueError, match="smaller than the crop"):
        loader.set_crop(RandomCrop(99))
    assert loader.crop == RandomCrop(8) and len(list(loader)) == 9


def test_options_are_read_only(numbered: NumberedBetons) -> None:
    loader = crops(numbered, num_workers=2, drop_last=False)
    expected = {
        "batch_size": 4,
        "crop": RandomCrop(8),
        "flip": True,
        "alpha": 1.0,
        "beta": 1.0,
        "labels": "pair",
        "mix": False,
        "device": torch.device("cpu"),
        "dtype": torch.uint8,
        "seed": 5,
        "num_workers": 2,
        "prefetch": 3,
        "drop_last": False,
        "on_error": "raise",
        "rank": 0,
        "world_size": 1,
        "backend": "host",
        "epoch": 0,
    }
    for name, value in expected.items():
        assert getattr(loader, name) == value
        with pytest.raises(AttributeError, match=f"{name} of a loader cannot be assigned"):
            setattr(loader, name, value)
    assert loader.pairing == numbered.pairing
    with pytest.raises(AttributeError, match="set_crop"):
        loader.crop = RandomCrop(9)
    with pytest.raises(AttributeError, match="cannot be assigned"):
        loader.batchsize = 3
    with pytest.raises(AttributeError, match="no attribute 'collate_fn'"):
        _ = loader.collate_fn
    loader._mark_of_a_framework = 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: crops(n).set_epoch(2**64), r"epoch is 18446744073709551616; .* 2\*\*64 - 1"),
        (lambda n: crops(n).set_epoch(-1), r"epoch is -1; it must be a whole number in 0 \.\."),
        (lambda n: crops(n).set_epoch(1.5), "epoch is 1.5; it must be a whole number"),
        (
            lambda n: ImageLoader(n.target, batch_size=4, crop=CenterCrop(8), seed=1.5),
            "seed is 1.5",
        ),
        (lambda n: ImageLoader(n.target, batch_size=4, crop=CenterCrop(8), seed=2**64), "seed is"),
        (lambda n: crops(n, rank="0", world_size=1), "rank is '0'; it must be a whole number"),
        (
            lambda n: crops(n, rank=0, world_size=1.0),
            "world_size is 1.0; it must be a whole number",
        ),
        (lambda n: crops(n, rank=-1, world_size=2), "rank is -1"),
        (lambda n: crops(n, rank=2, world_size=2), "rank 2 of 2 does not exist"),
        (lambda n: crops(n, rank=0), "belong together"),
        (lambda n: crops(n, batch_size=True), "batch_size is True"),
        (lambda n: crops(n, prefetch=0), "prefetch is 0; it must be a whole number of at least 1"),
    ],
)
def test_numbers_are_checked_in_one_place(
    numbered: NumberedBetons, call: Callable[[NumberedBetons], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(numbered)


@pytest.mark.parametrize(("key", "value"), [("epoch", 2**64), ("epoch", -1), ("position", 38)])
def test_numbers_of_a_state_are_checked(numbered: NumberedBetons, key: str, value: int) -> None:
    loader = crops(numbered)
    with pytest.raises(ValueError, match=f"the state's {key} is {value}"):
        loader.load_state_dict({**loader.state_dict(), key: value})


@pytest.mark.parametrize("state", [None, 3, [], "state", {"epoch": 1}])
def test_what_is_no_state_is_refused(numbered: NumberedBetons, state: Any) -> None:
    with pytest.raises(ValueError, match=r"this is no loader state of .*missing: version, seed"):
        crops(numbered).load_state_dict(state)


# Copies

WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "pickle as torch.save's": lambda value: pickle.loads(pickle.dumps(value, 2)),
}


def middle(loader: XMixLoader) -> Any:
    iterator = iter(loader)
    next(iterator)
    return iterator


def loaded(loader: XMixLoader) -> None:
    loader.load_state_dict({**loader.state_dict(), "epoch": 3, "position": 12})


STATES: dict[str, Callable[[XMixLoader], Any]] = {
    "new": lambda loader: None,
    "in the middle": middle,
    "at an epoch's end": list,
    "loaded": loaded,
    "other crop": lambda loader: loader.set_crop(RandomCrop(12)),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_goes_on_as_the_original_would(
    numbered: NumberedBetons, way: str, state: str
) -> None:
    original = crops(numbered)
    kept = STATES[state](original)
    other = WAYS[way](original)
    assert len(pickle.dumps(original)) < 20_000
    assert other.crop == original.crop and other.state_dict() == original.state_dict()
    del kept
    batches = list(original)
    for one, same in zip(batches, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert other.epoch == original.epoch


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_carries_how_it_mixes(betons: Betons, way: str) -> None:
    loader = XMixLoader(
        betons.target_raw, betons.source_raw, betons.pairing, batch_size=8, crop=RandomCrop(32)
    )
    loader.set_mix(alpha=3.0, enabled=False)
    other = WAYS[way](loader)
    assert other.alpha == 3.0 and all((batch.lam == 1).all() for batch in other)
    other = WAYS[way](WAYS[way](loader))  # a copy of a copy that is not open yet
    assert all((batch.lam == 1).all() for batch in other)


@pytest.mark.parametrize("way", WAYS)
def test_betons_and_domains_are_opened_anew(
    numbered: NumberedBetons, tmp_path: Path, way: str
) -> None:
    path = tmp_path / "a.beton"
    path.write_bytes(numbered.target.path.read_bytes())
    Path(f"{path}.json").write_bytes(Path(f"{numbered.target.path}.json").read_bytes())
    beton = Beton(path)
    domain = open_domain([beton, numbered.source])
    assert len(pickle.dumps(beton)) < 500
    copied, both = WAYS[way](beton), WAYS[way](domain)
    del beton, domain
    assert copied.fingerprint == numbered.target.fingerprint
    assert np.array_equal(copied.data(3), numbered.target.data(3))
    assert both.class_names == [*numbered.target.class_names, *numbered.source.class_names]
    assert int(both.addresses(np.array([0]))[0]) == both.betons[0].address + int(
        both.betons[0].pointers[0]
    )
    path.write_bytes(numbered.source.path.read_bytes())
    Path(f"{path}.json").write_bytes(Path(f"{numbered.source.path}.json").read_bytes())
    with pytest.raises(BetonError, match="was replaced by another beton"):
        WAYS[way](copied)


def test_a_copy_loads_without_its_data(numbered: NumberedBetons, tmp_path: Path) -> None:
    path = tmp_path / "gone.beton"
    path.write_bytes(numbered.target.path.read_bytes())
    Path(f"{path}.json").write_bytes(Path(f"{numbered.target.path}.json").read_bytes())
    loader = XMixLoader(path, numbered.source, numbered.pairing, batch_size=4, crop=RandomCrop(8))
    data = pickle.dumps({"hyper_parameters": {"loader": loader}})
    path.unlink()
    other = pickle.loads(data)["hyper_parameters"]["loader"]
    assert "not open yet" in repr(other) and pickle.dumps(other)
    for _ in range(2):  # it stays a copy that can be opened later
        with pytest.raises(FileNotFoundError, match=r"gone\.beton"):
            len(other)
    path.write_bytes(numbered.target.path.read_bytes())
    assert len(other) == 9


@pytest.mark.parametrize("way", WAYS)
def test_a_closed_copy_is_closed_without_its_data(
    numbered: NumberedBetons, tmp_path: Path, way: str
) -> None:
    path = tmp_path / "t.beton"
    path.write_bytes(numbered.target.path.read_bytes())
    Path(f"{path}.json").write_bytes(Path(f"{numbered.target.path}.json").read_bytes())
    loader = XMixLoader(path, numbered.source, numbered.pairing, batch_size=4, crop=RandomCrop(8))
    loader.set_mix(enabled=False)
    next(iter(loader))
    copied = WAYS[way](loader)
    path.rename(tmp_path / "gone")
    with copied:
        assert "not open yet" in repr(copied)
    closed = [copied, WAYS[way](copied)]  # and a copy of it
    for one in closed:
        for ask in (lambda: iter(one), one.peek, lambda: one.set_mix(enabled=True)):  # noqa: B023
            with pytest.raises(RuntimeError, match="this loader is closed; make a new one"):
                ask()
        assert "not open yet" in repr(one)
    (tmp_path / "gone").rename(path)
    for one in closed:  # opened to be read: no backend is kept
        assert one.state_dict() == loader.state_dict() and one.crop == loader.crop
        assert not hasattr(one, "_backend")
        with pytest.raises(RuntimeError, match="this loader is closed; make a new one"):
            iter(one)
    assert len(list(loader)) == len(loader) == 9  # the original is not


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_loader_goes_to_another_process(
    numbered: NumberedBetons, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(numbered.target.path.parent)
    loader = XMixLoader(
        numbered.target.path.name,  # a relative path
        numbered.source,
        numbered.pairing,
        batch_size=4,
        crop=RandomCrop(8),
        mix=False,
        dtype=torch.uint8,
    )
    next(iter(loader))
    (tmp_path / "loader.pickle").write_bytes(pickle.dumps(loader))
    script = tmp_path / "main.py"
    script.write_text(
        "import multiprocessing, pickle, sys\n"
        "def sums(loader): return [int(b.target_images.sum()) for b in loader]\n"
        "if __name__ == '__main__':\n"
        "    loader = pickle.load(open(sys.argv[2], 'rb'))\n"
        "    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:\n"
        "        print(pool.apply(sums, [loader]))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), method, str(tmp_path / "loader.pickle")],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([int(b.target_images.sum()) for b in loader])


# Ranks


def test_ranks_of_the_environment(
    numbered: NumberedBetons, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = crops(numbered)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it with torchrun"):
        len(loader)
    monkeypatch.setenv("RANK", "1")
    assert (loader.rank, loader.world_size, len(loader)) == (1, 2, 4)
    assert copy.copy(loader).rank == 1
    everything = crops(numbered, rank=0, world_size=1)
    assert len(everything) == 9
    monkeypatch.setenv("RANK", "0")
    assert loader.rank == 1 and copy.copy(loader).rank == 0  # found again where it arrives
    with pytest.raises(ValueError, match=r"batch_size 20 x 2 processes is larger than the 37"):
        len(crops(numbered, batch_size=20))
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="RANK '2'"):
        len(crops(numbered))


def test_a_group_that_says_otherwise_later_is_an_error(
    numbered: NumberedBetons, tmp_path: Path
) -> None:
    loader, early = crops(numbered), crops(numbered)
    assert len(early) == 9
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, init_method=f"file://{tmp_path / 'group'}"
    )
    try:
        assert len(early) == 9  # it says the same
        early._ranks._found = (0, 2)
        with pytest.raises(ValueError, match=r"says rank 0 of 1, and len\(loader\) needed"):
            next(iter(early))
        assert (loader.rank, loader.world_size) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
    assert os.environ.get("RANK") is None


def test_results_of_a_share_are_not_taken_for_the_whole(
    numbered: NumberedBetons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's environment without a process group: nothing could be summed up."""
    from xmix_data import class_centroids
    from xmix_data.training import evaluate

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    loader = ImageLoader(numbered.target, batch_size=4, **SMALL)
    with pytest.raises(ValueError, match="init_process_group first"):
        evaluate(network, loader)
    with pytest.raises(ValueError, match="init_process_group first"):
        class_centroids(numbered.target, network, **SMALL)
