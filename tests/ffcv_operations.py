"""Trials of `xmix_data.ffcv` in stock FFCV Loaders.

    python ffcv_operations.py FOLDER [NAME ...]

In a process of its own, because to import FFCV takes seconds and changes torch's threads, and each
Loader compiles for seconds more. Prints ``ok NAME``, or the traceback of what failed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor

from xmix_data import (
    Beton,
    BetonError,
    CenterCrop,
    ImageLoader,
    PairedClass,
    Pairing,
    XMixLoader,
    write_beton,
)
from xmix_data.ffcv import ImageXMixup, LabelXMixup, XMixupToOneHot

SIDE, TARGETS, SOURCES, PER_CLASS = 32, 4, 6, 8
SEED = 3

TRIALS: dict[str, Callable[[], None]] = {}
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


def trial(function: Callable[[], None]) -> Callable[[], None]:
    TRIALS[function.__name__] = function
    return function


class Colours:
    """Images of one colour each: red says the class of a target, green that of a source."""

    def __init__(self, classes: int, channel: int) -> None:
        self.classes = [f"{'tsb'[channel]}{c}" for c in range(classes)]
        self.channel = channel

    def __len__(self) -> int:
        return len(self.classes) * PER_CLASS

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        label = index % len(self.classes)
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[..., self.channel] = 30 + 35 * label
        image[..., 2] = 40 * self.channel + 4 * (index // len(self.classes))
        return image, label


def betons() -> tuple[Path, Path, Pairing]:
    target, source = folder / "t.beton", folder / "s.beton"
    if not source.exists():
        for path, classes, channel in ((target, TARGETS, 0), (source, SOURCES, 1)):
            write_beton(
                Colours(classes, channel),
                path,
                image_size=None,
                encoding="raw",
                num_workers=0,
                progress=False,
            )
    pairs = {f"t{t}": [PairedClass(f"s{SOURCES - 1 - t}", 0.5, PER_CLASS)] for t in range(TARGETS)}
    return target, source, Pairing(pairs)


def loader(
    image: Any = None, label: Any = None, source: Path | None = None, **options: Any
) -> Loader:
    """A Loader whose operations are followed by a compiled one, as in FFCV's own examples."""
    target, usual, pairing = betons()
    arguments = target, source or usual, pairing
    image = image or ImageXMixup(*arguments, seed=SEED)
    label = label or LabelXMixup(*arguments, seed=SEED)
    settings = {
        "batch_size": 6,
        "num_workers": 2,
        "order": OrderOption.RANDOM,
        "seed": 1,
        "drop_last": False,
        **options,
    }
    pipelines = {
        "image": [SimpleRGBImageDecoder(), image, RandomHorizontalFlip(0.0), ToTensor()],
        "label": [IntDecoder(), label, ToTensor()],
    }
    return Loader(str(target), pipelines={**pipelines, **settings.pop("pipelines", {})}, **settings)


def batches(one: Loader) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    return [(images.numpy().copy(), labels.numpy().copy()) for images, labels in one]


def check(image: npt.NDArray[Any], target: float, source: float, lam: float) -> None:
    """An image is the mix of the colours of both its labels, by its λ, rounded."""
    assert source == SOURCES - 1 - target and 0 <= lam <= 1
    red, green = lam * (30 + 35 * target), (1 - lam) * (30 + 35 * source)
    assert np.abs(image[..., 0] - red).max() <= 0.501
    assert np.abs(image[..., 1] - green).max() <= 0.501


def multiset(epoch: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> list[tuple[Any, ...]]:
    """What an epoch has, in no order: labels, λ and pixels of each image."""
    return sorted(
        (*labels.tolist(), *image[0, 0].tolist())
        for images, all_labels in epoch
        for image, labels in zip(images, all_labels, strict=True)
    )


@trial
def labels_and_images_belong_together() -> None:
    """And two epochs differ."""
    one = loader()
    epochs = [batches(one) for _ in range(2)]
    for epoch in epochs:
        assert sum(len(labels) for _, labels in epoch) == TARGETS * PER_CLASS
        for images, labels in epoch:
            assert images.dtype == np.uint8 and labels.dtype == np.float32
            for image, (target, source, lam) in zip(images, labels, strict=True):
                check(image, target, source, lam)
    assert multiset(epochs[0]) != multiset(epochs[1])
    (folder / "epochs.json").write_text(json.dumps([multiset(epoch) for epoch in epochs]))


@trial
def one_worker_and_another_order_and_batch_size_draw_the_same() -> None:
    expected = json.loads((folder / "epochs.json").read_text())
    one = loader(num_workers=1, batch_size=32, order=OrderOption.SEQUENTIAL)
    for epoch in expected:
        assert [list(row) for row in multiset(batches(one))] == epoch


@trial
def it_resumes_by_next_epoch_and_recompiles() -> None:
    expected = json.loads((folder / "epochs.json").read_text())
    one = loader(recompile=True)
    one.next_epoch = 1
    assert [list(row) for row in multiset(batches(one))] == expected[1]
    one.next_epoch = 0
    assert [list(row) for row in multiset(batches(one))] == expected[0]


@trial
def the_source_follows_progressive_resizing() -> None:
    target, source, pairing = betons()
    mixing = ImageXMixup(target, source, pairing, seed=SEED)
    decoder = RandomResizedCropRGBImageDecoder((16, 16))
    one = loader(recompile=True, pipelines={"image": [decoder, mixing, ToTensor()]})
    for side in (16, 24, 16):
        decoder.output_size = (side, side)
        for images, labels in batches(one):
            assert images.shape[1:] == (side, side, 3)
            for image, row in zip(images, labels, strict=True):
                check(image, *row)


class Noise:
    """Images in which every pixel is another one, of the classes of a source."""

    classes: Sequence[str] = [f"s{c}" for c in range(SOURCES)]

    def __len__(self) -> int:
        return SOURCES * PER_CLASS

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        return pixels, index % SOURCES


@trial
def several_sizes_at_once_are_each_as_alone() -> None:
    """Those of an iterator that was left, which goes on, and of two Loaders side by side."""
    target, _, pairing = betons()
    source = write_beton(
        Noise(),
        folder / "noise.beton",
        image_size=None,
        encoding="raw",
        num_workers=0,
        progress=False,
    )
    mixing = ImageXMixup(target, source, pairing, seed=SEED)
    decoders = [CenterCropRGBImageDecoder((side, side), 1.0) for side in (SIDE, SIDE // 2)]
    options: dict[str, Any] = {
        "batch_size": 2,
        "num_workers": 1,
        "order": OrderOption.SEQUENTIAL,
        "drop_last": False,
    }
    loaders = [
        Loader(
            str(target),
            pipelines={"image": [decoder, mixing, ToTensor()], "label": None},
            **options,
        )
        for decoder in decoders
    ]
    large, small = ([images.clone() for (images,) in one] for one in loaders)

    one, decoder = loaders[0], decoders[0]
    decoder.output_size, one.next_epoch = (SIDE // 2, SIDE // 2), 0
    for (images,) in one:
        assert torch.equal(images, small[0])
        break
    decoder.output_size, one.next_epoch = (SIDE, SIDE), 0
    for (images,), expected in zip(one, large, strict=True):
        assert torch.equal(images, expected)

    for one in loaders:
        one.next_epoch = 0
    for number, ((images,), (others,)) in enumerate(zip(*loaders, strict=True)):
        assert torch.equal(images, large[number]) and torch.equal(others, small[number])


@trial
def an_early_break_is_no_harm() -> None:
    expected = json.loads((folder / "epochs.json").read_text())
    one = loader()
    for images, labels in one:  # and the iterator goes on for a while
        check(images[0].numpy(), *labels[0].tolist())
        break
    assert [list(row) for row in multiset(batches(one))] == expected[1]


@trial
def some_indices_and_a_filter_draw_as_the_whole() -> None:
    expected = json.loads((folder / "epochs.json").read_text())[0]
    few = np.array([0, 3, 7, 12, 31])
    some = multiset(batches(loader(indices=few)))
    assert len(some) == 5 and all(list(row) in expected for row in some)
    filtered = loader().filter("label", lambda labels: labels[0] == 2)
    found = multiset(batches(filtered))
    assert len(found) == PER_CLASS and all(list(row) in expected for row in found)


@trial
def soft_labels_are_our_loaders() -> None:
    target, source, pairing = betons()
    labels = [
        IntDecoder(),
        LabelXMixup(target, source, pairing, seed=SEED),
        ToTensor(),
        XMixupToOneHot(TARGETS, SOURCES),
    ]
    for images, soft in loader(pipelines={"label": labels}):
        assert soft.shape == (len(images), TARGETS + SOURCES) and soft.dtype == torch.float32
        for image, row in zip(images.numpy(), soft, strict=True):
            t, s = int(row[:TARGETS].argmax()), int(row[TARGETS:].argmax())
            torch.testing.assert_close(row.sum(), torch.tensor(1.0))
            assert float(row[TARGETS + SOURCES - 1 - t]) in (float(row[TARGETS + s]), 0.0)
            lam = float(row[t])
            assert np.abs(image[..., 0] - lam * (30 + 35 * t)).max() <= 0.501 or lam == 0
    ours = XMixLoader(target, source, pairing, batch_size=8, crop=CenterCrop(SIDE), labels="soft")
    assert next(iter(ours))[1].shape[1] == TARGETS + SOURCES


@trial
def the_source_is_cut_as_our_loader_cuts_it() -> None:
    """With λ near 0 what comes out is the source image, of its class's images."""
    target, source, pairing = betons()
    arguments: dict[str, Any] = {"alpha": 1e-6, "beta": 1e6, "seed": SEED}
    image = ImageXMixup(target, source, pairing, crop=CenterCrop(SIDE), flip=False, **arguments)
    label = LabelXMixup(target, source, pairing, **arguments)
    whole = ImageLoader(source, batch_size=1, crop=CenterCrop(SIDE), dtype=torch.uint8)
    stored = {tuple(x[0, :, 0, 0].tolist()) for x, _ in whole}
    seen = set()
    for images, labels in loader(image, label):
        assert (labels[:, 2] == 0).all()
        seen |= {tuple(x[0, 0].tolist()) for x in images.numpy()}
    assert seen <= stored and len(seen) > TARGETS


@trial
def another_beton_is_an_error_at_construction() -> None:
    target, source, pairing = betons()
    image = [SimpleRGBImageDecoder(), ImageXMixup(target, source, pairing), ToTensor()]
    try:
        Loader(str(source), 6, num_workers=1, pipelines={"image": image, "label": None})
    except ValueError as error:
        assert str(source) in str(error) and str(target) in str(error)
    else:
        raise AssertionError("no error")


@trial
def a_wrong_place_is_an_error_at_construction() -> None:
    target, source, pairing = betons()
    arguments = target, source, pairing
    for pipelines, words in (
        (
            {"image": [SimpleRGBImageDecoder(), ToTensor(), ImageXMixup(*arguments)]},
            "right behind the image's decoder",
        ),
        ({"label": [IntDecoder(), XMixupToOneHot(4, 6), ToTensor()]}, "behind LabelXMixup"),
        (
            {"image": [SimpleRGBImageDecoder(), ImageXMixup(*arguments, crop=CenterCrop(8))]},
            "give a crop of the decoder's size",
        ),
    ):
        try:
            loader(pipelines=pipelines)
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def damaged(count: int) -> Path:
    """A source of JPEGs whose class s5 has that many images that are none."""
    path = folder / f"damaged{count}.beton"
    write_beton(
        Colours(SOURCES, 1), path, image_size=None, encoding="jpg", num_workers=0, progress=False
    )
    beton = Beton(path)
    with path.open("r+b") as stream:
        for index in np.flatnonzero(beton.labels == 5)[:count].tolist():
            stream.seek(int(beton.pointers[index]))
            stream.write(b"\0" * 64)
    return path


@trial
def a_damaged_source_image_is_replaced_by_its_class() -> None:
    lines = Lines()
    logging.getLogger("xmix_data").addHandler(lines)
    for images, labels in loader(source=damaged(PER_CLASS - 1)):
        for image, (target, source, lam) in zip(images.numpy(), labels.numpy(), strict=True):
            green = (1 - lam) * (30 + 35 * source)
            assert source == SOURCES - 1 - target and np.abs(image[..., 1] - green).max() <= 4
    said = [line for line in lines.lines if "takes its place" in line]
    assert said and all("'s5'" in line for line in said), lines.lines


def error_of(one: Loader, kind: type[Exception]) -> str:
    """What a consumer is told; it must not wait for ever."""
    caught: list[Exception] = []

    def consume() -> None:
        try:
            batches(one)
        except kind as error:
            caught.append(error)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return str(caught[0])


@trial
def a_class_without_a_sound_image_is_an_error_and_no_hang() -> None:
    assert "cannot be decoded" in error_of(loader(source=damaged(PER_CLASS)), BetonError)


@trial
def a_label_outside_its_block_is_an_error_and_no_hang() -> None:
    """Also where it would lie in the other's block."""
    target, source, pairing = betons()
    mixed = torch.tensor([[3.0, 0.0, 0.5], [0.0, 5.0, 0.25]])
    for numbers, words in (
        ((TARGETS - 1, SOURCES + 1), "target label 3 does not fit into 3 target classes"),
        ((TARGETS + 1, SOURCES - 1), "source label 5 does not fit into 5 source classes"),
    ):
        operation = XMixupToOneHot(*numbers)
        try:
            operation.generate_code()(mixed, torch.zeros(2, sum(numbers)))
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)
    # A device other than the host must not be waited for, which this one would refuse.
    out = torch.zeros(2, sum(numbers), device="meta")
    rows = operation.generate_code()(mixed.to("meta"), out)
    assert rows.device.type == "meta"
    labels = [IntDecoder(), LabelXMixup(target, source, pairing), ToTensor(), operation]
    assert words in error_of(loader(pipelines={"label": labels}), ValueError)


AS_A_RANK = "--as-a-rank"
RANKS, COUNT = 2, 31
"""The images, which two processes cannot share evenly."""


def as_a_rank() -> None:
    """What a process of two gets in three epochs, the last one after a resume; as JSON."""
    torch.distributed.init_process_group("gloo")
    told: dict[str, Any] = {}
    for order in (OrderOption.RANDOM, OrderOption.SEQUENTIAL):
        one = loader(distributed=True, order=order, indices=np.arange(COUNT), num_workers=1)
        epochs = [batches(one) for _ in range(2)]
        one.next_epoch = 1
        epochs.append(batches(one))
        told[order.name] = [multiset(epoch) for epoch in epochs]
    print(json.dumps(told))
    torch.distributed.destroy_process_group()


@trial
def two_processes_share_an_epoch_and_draw_as_one() -> None:
    alone = loader(indices=np.arange(COUNT))
    expected = [[list(row) for row in multiset(batches(alone))] for _ in range(2)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), AS_A_RANK],
            env={**os.environ, **job, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * RANKS
    ranks = [json.loads(output.splitlines()[-1]) for output in outputs]
    for order in ("RANDOM", "SEQUENTIAL"):
        for number, epoch in enumerate((0, 1, 1)):
            parts = [rank[order][number] for rank in ranks]
            assert [len(part) for part in parts] == [16, 16]  # torch pads with the first ones
            rows = sorted(parts[0] + parts[1])
            twice = [row for row, other in itertools.pairwise(rows) if row == other]
            rows.remove(twice[0])
            assert len(twice) == 1 and rows == expected[epoch]


def main() -> None:
    if sys.argv[2:] == [AS_A_RANK]:
        return as_a_rank()
    for name in sys.argv[2:] or TRIALS:
        try:
            TRIALS[name]()
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            print(f"failed {name}", flush=True)
        else:
            print(f"ok {name}", flush=True)


if __name__ == "__main__":
    main()
