"""Stock FFCV reads our betons, and we read what stock FFCV writes.

FFCV runs in processes of its own: importing it takes seconds and changes torch's threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pictures import encoded, picture, pixels_of
from processes import Server

from xmix_data import Beton, BetonError, CenterCrop, ImageLoader, write_beton
from xmix_data.beton.layout import JPG, RAW

Pixels = npt.NDArray[np.uint8]

TIMEOUT_S = 180
SIZE, COUNT = 32, 23
LARGE = 1700
"""Side of a raw image that fills more than FFCV's usual page of 8 MiB."""
FAST_DCT = 10
"""Grey levels by which FFCV's fast DCT may differ from the accurate one."""
JPEG_LOSS = 24
"""Grey levels that OpenCV's JPEG of quality 95 may cost a smooth picture."""


MODERATE = (64, 192)
"""Shades that JPEG costs little."""
PICTURES = np.stack([picture(SIZE, SIZE, seed, shades=MODERATE) for seed in range(COUNT)])
LABELS = np.array([(7 * i + 2) % 5 for i in range(COUNT)])


def assert_close(one: Pixels, other: Pixels, tolerance: int) -> None:
    assert one.shape == other.shape
    difference = np.abs(one.astype(int) - other)
    assert difference.max() <= tolerance
    assert difference.mean() <= tolerance / 5


# Ours, read by stock FFCV

KEPT = (
    lambda pixels: encoded(pixels, "JPEG"),
    lambda pixels: encoded(pixels, "JPEG", quality=95, subsampling=0),
    lambda pixels: encoded(pixels, "JPEG", optimize=True, comment=b"comment"),
    lambda pixels: encoded(pixels[..., 0], "JPEG"),
    lambda pixels: encoded(pixels, "JPEG", progressive=True),
    lambda pixels: encoded(pixels, "PNG"),
)
"""JPEGs whose bytes `keep` keeps, and, from the fifth on, images that it encodes."""

READER = """
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption

for name in ("jpg", "raw", "keep", "large"):
    for os_cache in (True, False):
        loader = Loader(
            f"{ours}/{name}.beton", batch_size=5, num_workers=1, os_cache=os_cache,
            order=OrderOption.SEQUENTIAL, drop_last=False,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
        )
        batches = [(image.copy(), label.copy()) for image, label in loader]
        images, labels = (np.concatenate(parts) for parts in zip(*batches))
        np.savez(f"{ours}/{name}-{os_cache}.npz", images=images, labels=labels[:, 0])
"""


def write_ours(folder: Path) -> None:
    plain = list(zip(PICTURES, LABELS.tolist(), strict=True))
    kept = [(KEPT[i % len(KEPT)](image), label) for i, (image, label) in enumerate(plain)]
    large = [
        (image, label)
        for label, image in enumerate(
            [picture(LARGE, LARGE, seed, shades=MODERATE) for seed in (1, 2)]
        )
    ]
    for name, dataset, encoding in (
        ("jpg", plain, "jpg"),
        ("raw", plain, "raw"),
        ("keep", kept, "keep"),
        ("large", large, "raw"),
    ):
        write_beton(
            dataset,
            folder / f"{name}.beton",
            image_size=None,
            encoding=encoding,
            num_workers=2,
            progress=False,
        )


@pytest.fixture(scope="module")
def ours(folders: tuple[Path, Path]) -> Path:
    """A folder of our betons with what stock FFCV's Loader made of each."""
    return folders[0]


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize(
    ("name", "tolerance"), [("jpg", FAST_DCT), ("raw", 0), ("keep", FAST_DCT), ("large", 0)]
)
def test_stock_ffcv_reads_our_pixels_and_labels_in_order(
    ours: Path, name: str, tolerance: int, os_cache: bool
) -> None:
    beton, read = Beton(ours / f"{name}.beton"), np.load(ours / f"{name}-{os_cache}.npz")
    assert read["labels"].tolist() == beton.labels.tolist()
    assert len(read["images"]) == len(beton)
    for index, image in enumerate(read["images"]):
        assert_close(image, pixels_of(beton, index), tolerance)


def test_the_betons_that_stock_ffcv_read_are_what_their_names_say(ours: Path) -> None:
    for name in ("jpg", "raw"):
        beton = Beton(ours / f"{name}.beton")
        assert beton.labels.tolist() == LABELS.tolist()
        for index, image in enumerate(PICTURES):
            assert_close(pixels_of(beton, index), image, 0 if name == "raw" else JPEG_LOSS)
    keep = Beton(ours / "keep.beton")
    kept = [keep.data(i).tobytes() == KEPT[i % 6](PICTURES[i]) for i in range(COUNT)]
    assert kept == [i % 6 < 4 for i in range(COUNT)]
    assert Beton(ours / "large.beton").page_size == 16 << 20


# Stock FFCV's, read by us

WRITER = """
from ffcv.fields import BytesField, FloatField, IntField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter

data = np.load(f"{theirs}/data.npz")
images, labels = data["images"], data["labels"]  # read here: workers would share one file offset

class Rows:
    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(labels)

    def __getitem__(self, index):
        image = images[index]
        values = {
            "image": image,
            "label": int(labels[index]),
            "weight": index / 2,
            "cut": np.ascontiguousarray(image[: 20 + index % 3, : 10 + index % 4]),
            "other": 100 + index,
            "target": int(labels[index]),
            "text": np.frombuffer(b"text" * (index + 1), np.uint8),
            "array": np.full(3, index, np.float32),
        }
        return tuple(values[name] for name in self.columns)

def write(name, **fields):
    writer = DatasetWriter(f"{theirs}/{name}.beton", fields, page_size=1 << 21, num_workers=2)
    writer.from_indexed_dataset(Rows(*fields), chunksize=3)

def image(mode):
    return RGBImageField(write_mode=mode, jpeg_quality=95)

write("plain", image=image("jpg"), label=IntField())
for mode in ("jpg", "raw", "proportion"):
    write(mode, label=IntField(), weight=FloatField(), image=image(mode))
write("many", text=BytesField(), cut=image("proportion"), weight=FloatField(), label=IntField(),
      array=NDArrayField(np.dtype("float32"), (3,)), image=image("raw"), other=IntField())
write("late", other=IntField(), image=image("raw"), label=IntField())
write("target", image=image("raw"), weight=FloatField(), target=IntField())
write("ambiguous", target=IntField(), image=image("raw"), other=IntField())
write("soft", image=image("raw"), label=FloatField(), other=IntField())
write("unlabelled", image=image("raw"), weight=FloatField())
"""


class Foreign(NamedTuple):
    """What stock FFCV was given for one beton."""

    name: str
    modes: set[int]
    image: Callable[[int], Pixels]


def whole(index: int) -> Pixels:
    return PICTURES[index]


def cut(index: int) -> Pixels:
    return PICTURES[index][: 20 + index % 3, : 10 + index % 4]


FOREIGN = [
    Foreign("plain", {JPG}, whole),
    Foreign("jpg", {JPG}, whole),
    Foreign("raw", {RAW}, whole),
    Foreign("proportion", {JPG, RAW}, whole),
    Foreign("many", {JPG, RAW}, cut),
    Foreign("late", {RAW}, whole),
    Foreign("target", {RAW}, whole),
]
foreign_betons = pytest.mark.parametrize("foreign", FOREIGN, ids=lambda foreign: foreign.name)


@pytest.fixture(scope="module")
def theirs(folders: tuple[Path, Path]) -> Path:
    """A folder of betons that stock FFCV's DatasetWriter wrote."""
    return folders[1]


BOTH = f"""
import os, sys
import numpy as np

os.setsid()  # what it leaves running ends with it
ours, theirs = sys.argv[1:]
{WRITER}
{READER}
"""
"""In one process: importing FFCV takes as long as either."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, forked: Server) -> tuple[Path, Path]:
    """Ours and theirs."""
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("ours", "theirs"))
    write_ours(ours)
    np.savez(theirs / "data.npz", images=PICTURES, labels=LABELS)
    running = forked.start("-c", BOTH, str(ours), str(theirs))
    try:
        running.wait(TIMEOUT_S)
    finally:  # FFCV's writer waits for ever where one of its workers fails
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, running.stderr
    return ours, theirs


@foreign_betons
def test_we_read_stock_ffcv_s_pixels_and_labels_in_order(theirs: Path, foreign: Foreign) -> None:
    beton = Beton(theirs / f"{foreign.name}.beton")
    assert len(beton) == COUNT
    assert beton.labels.tolist() == LABELS.tolist()
    assert set(beton.modes.tolist()) == foreign.modes
    for index in range(COUNT):
        lossless = beton.modes[index] == RAW
        tolerance = 0 if lossless else JPEG_LOSS
        assert_close(pixels_of(beton, index), foreign.image(index), tolerance)


@foreign_betons
def test_a_stock_beton_has_numbered_classes_and_no_manifest(theirs: Path, foreign: Foreign) -> None:
    beton = Beton(theirs / f"{foreign.name}.beton")
    assert beton.manifest is None
    assert beton.class_names == ["0", "1", "2", "3", "4"]
    assert beton.class_counts == np.bincount(LABELS).tolist()
    kinds = {frozenset({JPG}): "jpg", frozenset({RAW}): "raw", frozenset({JPG, RAW}): "mixed"}
    assert beton.encoding == kinds[frozenset(foreign.modes)]
    assert beton.image_size == (None if foreign.name == "many" else SIZE)
    beton.verify()


@foreign_betons
def test_a_stock_beton_can_be_converted(theirs: Path, foreign: Foreign, tmp_path: Path) -> None:
    stock = Beton(theirs / f"{foreign.name}.beton")
    made = write_beton(
        stock,
        tmp_path / "made.beton",
        image_size=None,
        crop="none",
        encoding="raw",
        num_workers=0,
        progress=False,
    )
    assert made.labels.tolist() == stock.labels.tolist()
    for index in range(COUNT):
        assert np.array_equal(pixels_of(made, index), pixels_of(stock, index))


@foreign_betons
def test_a_stock_beton_can_be_loaded(theirs: Path, foreign: Foreign) -> None:
    stock = Beton(theirs / f"{foreign.name}.beton")
    with ImageLoader(stock, batch_size=6, crop=CenterCrop(8), dtype=torch.uint8) as loader:
        batches = list(loader)
    assert torch.cat([labels for _, labels in batches]).tolist() == LABELS.tolist()
    images = torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1).numpy()
    for index in range(COUNT):
        pixels = pixels_of(stock, index)
        top, left = (round((side - 8) / 2) for side in pixels.shape[:2])
        assert np.array_equal(images[index], pixels[top : top + 8, left : left + 8])


def test_a_stock_beton_of_several_int_fields_is_not_guessed(theirs: Path) -> None:
    with pytest.raises(
        BetonError,
        match=r"ambiguous\.beton: it has 2 int fields \('target', 'other'\), and not one of them "
        r"is the label; write it again with the class ids in an int field named 'label'",
    ):
        Beton(theirs / "ambiguous.beton")
    with pytest.raises(
        BetonError,
        match=r"soft\.beton: it has 1 int field \('other'\), and its field 'label' is no",
    ):
        Beton(theirs / "soft.beton")


def test_a_stock_beton_without_labels_is_refused(theirs: Path) -> None:
    with pytest.raises(
        ValueError, match=r"unlabelled\.beton: it has no RGB image field and int fi"
    ):
        Beton(theirs / "unlabelled.beton")
