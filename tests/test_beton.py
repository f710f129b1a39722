"""Betons: what is written is what is read, whole or not at all, and damage is found and named."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, picture, pixels_of, written
from PIL import Image
from torch.utils.data import get_worker_info

from xmix_data import Beton, BetonError, DatasetError, ImageError, XMixError
from xmix_data.beton import open_domain
from xmix_data.beton.encoding import encode_image
from xmix_data.beton.layout import JPG, RAW
from xmix_data.files import whole_file
from xmix_data.images import MapDataset

Pixels = npt.NDArray[np.uint8]

MiB = 1 << 20
HEADER, FIELD, ROW = 24, 1041, 24
"""Bytes of a beton's header, of a field's descriptor, and of a sample's metadata."""
TIMEOUT_S = 120


class Pairs:
    """A map-style dataset that knows which of its samples were read."""

    def __init__(self, samples: Sequence[tuple[Any, int]], classes: Any = None) -> None:
        self.samples = samples
        self.reads: list[int] = []
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads.append(index)
        return self.samples[index]


def pairs(count: int = 6, classes: Any = ("a", "b", "c"), size: int = 16) -> Pairs:
    return Pairs([(picture(size, size, i), i % 3) for i in range(count)], classes)


def write(dataset: Any, path: Path, **options: Any) -> Beton:
    return written(dataset, path, **{"image_size": None, "crop": "none", **options})


def manifest_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small beton of each encoding, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    return {
        encoding: write(pairs(), folder / f"{encoding}.beton", encoding=encoding).path
        for encoding in ("jpg", "raw")
    }


def copied(path: Path, folder: Path, *, manifest: bool) -> Path:
    shutil.copy(path, folder / "copy.beton")
    if manifest:
        shutil.copy(manifest_of(path), folder / "copy.beton.json")
    return folder / "copy.beton"


def put(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        stream.write(data)


def row(index: int) -> int:
    """Where the metadata of a sample begins: mode, width (+1), height (+3), pointer (+5), label."""
    return HEADER + 2 * FIELD + ROW * index


# What is written is what is read

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SAMPLES = st.lists(st.tuples(SHAPES, st.integers(0, 4)), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(SAMPLES, st.sampled_from(["jpg", "raw", "keep"]), st.integers(0, 1000))
def test_samples_come_back_as_they_were_written(
    samples: list[tuple[tuple[int, int], int]], encoding: str, seed: int
) -> None:
    images = [picture(*shape, seed + i) for i, (shape, _) in enumerate(samples)]
    labels = [label for _, label in samples]
    dataset = Pairs(
        [(encoded(i) if encoding == "keep" else i, y) for i, y in zip(images, labels, strict=True)]
    )
    with tempfile.TemporaryDirectory() as folder:
        beton = write(dataset, Path(folder) / "x.beton", encoding=encoding)
        assert beton.labels.tolist() == labels
        assert beton.class_counts == np.bincount(labels).tolist()
        assert list(zip(beton.heights, beton.widths, strict=True)) == [
            shape for shape, _ in samples
        ]
        assert set(beton.modes.tolist()) == {RAW if encoding == "raw" else JPG}
        for index, (image, _) in enumerate(dataset.samples):
            expected = {
                "raw": images[index].tobytes(),
                "keep": image,
                "jpg": encode_image(
                    image, encoding="jpg", image_size=None, crop="none", quality=90
                ).data,
            }[encoding]
            assert beton.data(index).tobytes() == expected
        beton.verify()


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(SHAPES, st.integers(0, 4)), min_size=1, max_size=70),
    st.sampled_from(["jpg", "raw", "keep"]),
)
def test_the_same_input_gives_the_same_bytes_whatever_the_workers(
    samples: list[tuple[tuple[int, int], int]], encoding: str
) -> None:
    dataset = Pairs([(picture(*shape, i), label) for i, (shape, label) in enumerate(samples)])
    with tempfile.TemporaryDirectory() as folder:
        written = []
        for number, workers in enumerate((0, 2, 0)):
            path = Path(folder) / f"{number}.beton"
            write(
                dataset, path, image_size=12, crop="square", encoding=encoding, num_workers=workers
            )
            written.append((path.read_bytes(), manifest_of(path).read_bytes()))
        assert written[0] == written[1] == written[2]


def test_workers_keep_the_order_of_samples_of_unequal_cost(tmp_path: Path) -> None:
    class Uneven(Pairs):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            time.sleep(0.01 if index % 16 == 0 else 0)
            return np.full((2, 2, 3), index, np.uint8), index % 3

    beton = write(Uneven([None] * 100), tmp_path / "x.beton", encoding="raw", num_workers=2)
    assert [int(beton.data(i)[0]) for i in range(100)] == list(range(100))
    assert beton.labels.tolist() == [i % 3 for i in range(100)]


def test_all_cores_are_at_work(tmp_path: Path) -> None:
    class Signed(MapDataset):
        def read(self, index: int) -> tuple[Any, int]:
            worker = get_worker_info()
            return np.full((2, 2, 3), 255 if worker is None else worker.id, np.uint8), 0

    cores = len(os.sched_getaffinity(0))
    images = Signed(Pairs([None] * (64 * cores)), parallel=True)
    beton = write(images, tmp_path / "x.beton", encoding="raw", num_workers=None)
    assert {int(beton.data(i)[0]) for i in range(len(beton))} == set(range(cores))


def test_the_manifest_says_what_the_beton_is(tmp_path: Path) -> None:
    beton = write(pairs(7), tmp_path / "x.beton", image_size=12, crop="square", quality=77)
    manifest = json.loads((tmp_path / "x.beton.json").read_text())
    assert files_in(tmp_path) == ["x.beton", "x.beton.json"]
    assert manifest == beton.manifest
    assert manifest["class_names"] == beton.class_names == ["a", "b", "c"]
    assert manifest["class_counts"] == beton.class_counts == [3, 2, 2]
    assert manifest["num_samples"] == len(beton) == 7
    assert manifest["byte_length"] == beton.byte_length == (tmp_path / "x.beton").stat().st_size
    assert manifest["content_hash"] == beton.fingerprint
    assert manifest["source_fingerprint"].startswith("dataset:")
    assert {"encoding": "jpg", "image_size": 12, "crop": "square", "quality": 77}.items() <= (
        manifest.items()
    )
    assert manifest["shard"] is None
    assert manifest["skipped"] == []
    assert {"xmix_data", "python", "numpy", "pillow"} <= set(manifest["versions"])


def test_another_content_has_another_hash(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    samples = [(picture(8, 8, i), i) for i in range(3)]
    betons = [
        write(Pairs(samples, names), tmp_path / "0.beton", encoding="raw"),
        write(Pairs(samples[::-1], names), tmp_path / "1.beton", encoding="raw"),
        write(Pairs([(i, 0) for i, _ in samples], names), tmp_path / "2.beton", encoding="raw"),
        write(Pairs(samples[:2], names), tmp_path / "3.beton", encoding="raw"),
    ]
    assert len({beton.fingerprint for beton in betons}) == 4
    for beton in betons:
        manifest_of(beton.path).unlink()
    without = [Beton(beton.path) for beton in betons]
    assert without[0].fingerprint == Beton(betons[0].path).fingerprint
    assert without[0].fingerprint != without[2].fingerprint  # the labels differ


def test_a_beton_without_its_manifest_has_numbered_classes(tmp_path: Path) -> None:
    beton = write(Pairs([(picture(4, 4), label) for label in (2, 0)], "abcd"), tmp_path / "x.beton")
    assert beton.class_counts == [1, 0, 1, 0]
    manifest_of(beton.path).unlink()
    alone = Beton(beton.path)
    assert alone.manifest is None
    assert alone.class_names == ["0", "1", "2"]
    assert alone.class_counts == [1, 0, 1]
    assert (alone.encoding, alone.image_size, alone.shard) == ("jpg", 4, None)


def test_a_link_has_the_manifest_of_the_file_that_it_leads_to(
    made: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    path = copied(made["jpg"], tmp_path / "data", manifest=True)
    (tmp_path / "hop.beton").symlink_to(path)
    (tmp_path / "link.beton").symlink_to("hop.beton")
    assert Beton(tmp_path / "link.beton").class_names == Beton(path).class_names
    renamed = json.loads(manifest_of(path).read_text())
    renamed["class_names"] = [f"my {name}" for name in renamed["class_names"]]
    manifest_of(tmp_path / "link.beton").write_text(json.dumps(renamed))  # its own comes first
    assert Beton(tmp_path / "link.beton").class_names == renamed["class_names"]


def test_a_class_with_one_image_is_written(tmp_path: Path) -> None:
    for name in ("one/1.png", "two/1.png", "two/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(8, 8)).save(tmp_path / "in" / name)
    beton = write(tmp_path / "in", tmp_path / "x.beton")
    assert (beton.class_names, beton.class_counts) == (["one", "two"], [1, 2])


def test_class_names_may_be_any_text_or_bytes(tmp_path: Path) -> None:
    names = ["\u732b", 'quote" \\ \n', os.fsdecode(b"\xff")]
    write(Pairs([(picture(4, 4), i) for i in range(3)], names), tmp_path / "x.beton")
    assert Beton(tmp_path / "x.beton").class_names == names


def test_the_image_size_is_none_where_it_varies(tmp_path: Path) -> None:
    same = write(Pairs([(picture(8, 9), 0), (picture(30, 8), 0)]), tmp_path / "same.beton")
    varied = write(Pairs([(picture(8, 9), 0), (picture(9, 9), 0)]), tmp_path / "varied.beton")
    assert (same.image_size, varied.image_size) == (8, None)


# Sources


def test_a_class_folder_is_written_in_the_order_of_its_files(tmp_path: Path) -> None:
    for number, name in enumerate(("b/2.png", "b/1.png", "a/x/9.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(8, 8, number)).save(tmp_path / "in" / name)
    beton = write(tmp_path / "in", tmp_path / "x.beton", encoding="raw")
    assert beton.labels.tolist() == [0, 1, 1]
    for index, number in enumerate((2, 1, 0)):
        assert np.array_equal(pixels_of(beton, index), picture(8, 8, number))


@pytest.mark.parametrize("encoding", ["jpg", "raw", "keep"])
def test_a_folder_of_every_kind_of_image_is_written(tmp_path: Path, encoding: str) -> None:
    root = tmp_path / "in"
    for name in ("colour", "other", "tiny"):
        (root / name).mkdir(parents=True)
    rgb = Image.fromarray(picture(40, 60))
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(root / "colour" / "baseline.jpg")
    rgb.save(root / "colour" / "progressive.jpeg", progressive=True)
    rgb.convert("CMYK").save(root / "colour" / "cmyk.JPG")
    rgb.transpose(Image.Transpose.ROTATE_90).save(root / "colour" / "turned.jpg", exif=turned)
    rgb.save(root / "colour" / "lossless.webp", lossless=True)
    rgb.save(root / "colour" / "whole.png")
    rgb.convert("RGBA").save(root / "colour" / "alpha.png")
    rgb.quantize(64).save(root / "other" / "palette.png")
    rgb.convert("L").save(root / "other" / "grey.jpg")
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(
        root / "other" / "16-bit.png"
    )
    Image.fromarray(picture(1, 1)).save(root / "tiny" / "1x1.png")
    Image.fromarray(picture(2, 3)).save(root / "tiny" / "3x2.jpg")

    options = {"image_size": 24, "crop": "square", "encoding": encoding}
    beton = write(root, tmp_path / "x.beton", **options, num_workers=2)
    beton.verify()
    assert beton.class_counts == [7, 3, 2]
    assert set(beton.heights.tolist()) == set(beton.widths.tolist()) == {24}
    expected = picture(40, 60)[:, 10:50]
    expected = np.asarray(Image.fromarray(expected).resize((24, 24), Image.Resampling.BILINEAR))
    for index in range(7):
        difference = np.abs(pixels_of(beton, index).astype(int) - expected)
        assert difference.mean() < 5, beton.describe(index)


@pytest.mark.parametrize("manifest", [True, False])
def test_a_beton_is_a_source_that_keeps_its_bytes(
    made: dict[str, Path], tmp_path: Path, manifest: bool
) -> None:
    for encoding, again in (("jpg", "keep"), ("raw", "raw")):
        (tmp_path / encoding).mkdir()
        source = Beton(copied(made[encoding], tmp_path / encoding, manifest=manifest))
        for given_source, name in ((source, "object"), (source.path, "path")):
            beton = write(given_source, tmp_path / f"{encoding}-{name}.beton", encoding=again)
            assert beton.path.read_bytes() == source.path.read_bytes()
            assert beton.class_names == source.class_names
            assert beton.manifest is not None
            assert beton.manifest["source_fingerprint"] == source.fingerprint


def test_an_older_beton_may_be_replaced_but_not_by_itself(tmp_path: Path) -> None:
    beton = write(pairs(), tmp_path / "x.beton")
    with pytest.raises(ValueError, match=r"x\.beton: is the source itself; choose another name"):
        write(beton.path, tmp_path / "x.beton", overwrite=True)
    replaced = write(pairs(4), tmp_path / "x.beton", overwrite=True)
    assert (len(replaced), len(Beton(tmp_path / "x.beton"))) == (4, 4)
    assert files_in(tmp_path) == ["x.beton", "x.beton.json"]


@pytest.mark.parametrize("classes", [("a", "b", "c"), None])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_together_are_the_whole(tmp_path: Path, classes: Any, count: int) -> None:
    dataset = pairs(8, classes)
    whole = write(dataset, tmp_path / "whole.beton", encoding="raw")
    shards = [
        write(dataset, tmp_path / f"{i}.beton", encoding="raw", shard=(i, count))
        for i in range(count)
    ]
    domain = open_domain(list(reversed(shards)))
    assert [len(shard) for shard in domain.betons] == [len(shard) for shard in shards]
    assert domain.labels.tolist() == whole.labels.tolist()
    assert domain.class_names == whole.class_names
    for index in range(len(whole)):
        beton, local = domain.locate(index)
        assert beton.data(local).tobytes() == whole.data(index).tobytes()


def test_a_set_of_shards_must_be_whole(tmp_path: Path) -> None:
    dataset = pairs(9)
    shards = [write(dataset, tmp_path / f"{i}.beton", shard=(i, 3)) for i in range(3)]
    other = write(dataset, tmp_path / "other.beton", shard=(1, 3), quality=50)
    with pytest.raises(
        ValueError, match="is one of 3 shards, and the list lacks shard 1; give all"
    ):
        open_domain([shards[0], shards[2]])
    with pytest.raises(
        ValueError, match=r"other\.beton is one of 3 shards, and the list lacks shard 0"
    ):
        open_domain([*shards, other])
    with pytest.raises(ValueError, match="names a shard twice; give all of them"):
        open_domain([*shards, shards[1].path])


def test_a_list_of_betons_is_one_domain_with_offset_classes(made: dict[str, Path]) -> None:
    domain = open_domain([made["jpg"], Beton(made["raw"])])
    assert domain.class_names == ["a", "b", "c"] * 2
    assert domain.labels.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert domain.domain_of_class(np.arange(6)).tolist() == [0, 0, 0, 1, 1, 1]
    assert domain.describe(7) == f"{made['raw']}: image 1 (class 'b')"
    assert repr(domain) == f"Domain('{made['jpg']}' and 1 more: 12 images, 6 classes)"
    assert repr(open_domain(made["raw"])) == f"Domain('{made['raw']}': 6 images, 3 classes)"
    indices = np.array([7, 0, 11])
    for index, address in zip(indices, domain.addresses(indices), strict=True):
        beton, local = domain.locate(int(index))
        data = beton.data(local)
        assert ctypes.string_at(int(address), len(data)) == data.tobytes()


def test_an_empty_list_of_betons_is_refused() -> None:
    with pytest.raises(ValueError, match="the list of betons is empty; give at least one"):
        open_domain([])


# Pages


def padded(size: int) -> bytes:
    """A sound JPEG of so many bytes."""
    data = encoded(picture(16, 16))
    return data + bytes(size - len(data))


def layout(sizes: Sequence[int]) -> tuple[int, list[int]]:
    """The page size and the pointers that the rule demands."""
    page = max(8 * MiB, 1 << (max(sizes) - 1).bit_length())
    at = -(-(HEADER + 2 * FIELD + ROW * len(sizes)) // page) * page
    pointers = []
    for size in sizes:
        if at // page != (at + size - 1) // page:
            at = -(-at // page) * page
        pointers.append(at)
        at += size
    return page, pointers


@pytest.mark.parametrize(
    "sizes",
    [
        [1000, 2000, 3000],
        [5 * MiB, 5 * MiB, 3 * MiB, 1000],
        [8 * MiB, 1000],
        [8 * MiB + 1, 1000],
        [8 * MiB, 8 * MiB],
        [8 * MiB - 1000, 1000, 1000],
        [8 * MiB - 999, 1000, 1000],
        [1000] * 20 + [9 * MiB, 1000],
        [4 * MiB, 5 * MiB, 1000, 9 * MiB, 1000, 8 * MiB, 17 * MiB],
    ],
)
def test_a_page_is_the_smallest_that_holds_the_largest_sample(
    tmp_path: Path, sizes: list[int]
) -> None:
    data = [padded(size) for size in sizes]
    beton = write(
        Pairs([(d, i % 2) for i, d in enumerate(data)]), tmp_path / "x.beton", encoding="keep"
    )
    page, pointers = layout(sizes)
    assert beton.page_size == page
    assert beton.pointers.tolist() == pointers
    assert [beton.data(i).tobytes() for i in range(len(beton))] == data
    beton.verify()
    assert files_in(tmp_path) == ["x.beton", "x.beton.json"]


def test_large_raw_images_get_larger_pages_even_late(tmp_path: Path) -> None:
    small, large = np.zeros((9, 9, 3), np.uint8), np.zeros((2000, 2000, 3), np.uint8)
    small[:], large[:] = 7, 9
    for images in ([large, small], [small, small, large]):
        beton = write(
            Pairs([(image, 0) for image in images]),
            tmp_path / "x.beton",
            encoding="raw",
            overwrite=True,
        )
        page, pointers = layout([image.nbytes for image in images])
        assert (beton.page_size, page) == (16 * MiB, 16 * MiB)
        assert beton.pointers.tolist() == pointers
        for index, image in enumerate(images):
            assert np.array_equal(pixels_of(beton, index), image)


# Bad input, before work is wasted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "circle"}, "crop is 'circle'; it must be one of square, none"),
        ({"encoding": "png"}, "encoding is 'png'; it must be one of jpg, raw, keep"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; it must be one of raise, skip"),
        ({"image_size": 0}, "image_size is 0; it must lie in 1 .. 65500 or be None"),
        ({"image_size": 70_000}, "image_size is 70000; it must lie in"),
        ({"quality": 0}, "quality is 0; it must lie in 1 .. 100"),
        ({"quality": 101}, "quality is 101; it must lie in 1 .. 100"),
        ({"num_workers": -1}, "num_workers is -1; it must be at least 0"),
        ({"shard": (3, 3)}, "shard 3 of 3 does not exist; counting starts at 0"),
        ({"shard": (-1, 3)}, "shard -1 of 3 does not exist"),
        ({"shard": (0, 0)}, "shard 0 of 0 does not exist"),
        ({"shard": (0, 7)}, "shard 0 of 7 is empty, there are only 6 samples; make fewer shards"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    dataset = pairs()
    with pytest.raises(ValueError, match=message):
        write(dataset, tmp_path / "x.beton", **options)
    assert dataset.reads == []
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("existing", ["x.beton", "x.beton.json"])
def test_an_existing_output_is_kept(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    dataset = pairs()
    with pytest.raises(FileExistsError, match=f"{existing}: exists; choose another name or overw"):
        write(dataset, tmp_path / "x.beton")
    assert dataset.reads == []
    assert (tmp_path / existing).read_text() == "precious"
    assert files_in(tmp_path) == [existing]


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.beton").mkdir()
    dataset = pairs()
    with pytest.raises(IsADirectoryError, match=r"x\.beton: is a folder; give the name of a file"):
        write(dataset, tmp_path / "x.beton", overwrite=True)
    assert dataset.reads == []
    assert files_in(tmp_path) == ["x.beton"]


def test_a_missing_folder_of_the_output_is_named(tmp_path: Path) -> None:
    dataset = pairs()
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; create it first"):
        write(dataset, tmp_path / "nowhere" / "x.beton")
    assert dataset.reads == []


@pytest.mark.parametrize("source", ["nowhere", "nowhere.beton"])
def test_a_missing_source_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{source}: no such (folder|beton); "):
        write(tmp_path / source, tmp_path / "x.beton")
    assert files_in(tmp_path) == []


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the dataset has no samples; there is nothing to convert"):
        write([], tmp_path / "x.beton")
    assert files_in(tmp_path) == []


def test_two_classes_of_one_name_are_refused_and_names_that_are_no_text(tmp_path: Path) -> None:
    dataset = pairs(classes=["cat", "dog", "cat"])
    with pytest.raises(ValueError, match=r"classes 0 and 2 are both named 'cat'; .* rename one"):
        write(dataset, tmp_path / "x.beton")
    assert dataset.reads == []
    dataset = pairs(classes=["cat", "caf\ud83d"])  # half of a surrogate pair
    with pytest.raises(ValueError, match=r"class 1 is named 'caf\\ud83d', which is no text in Uni"):
        write(dataset, tmp_path / "x.beton")
    assert dataset.reads == []


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("label", "classes", "known"),
    [(3, "abc", "the 3 classes"), (-1, "abc", "the 3 classes"), (-1, None, r"0 \.\. 1048575")]
    + [(label, None, r"0 \.\. 1048575") for label in (1 << 20, 1 << 40, 1 << 70)],
)
def test_a_label_outside_the_classes_is_named_and_never_skipped(
    tmp_path: Path, label: int, classes: Any, known: str, on_error: str
) -> None:
    dataset = Pairs([(picture(4, 4), 0), (picture(4, 4), label)], classes)
    with pytest.raises(
        ImageError, match=rf"^Pairs\[1\]: label {label} is none of {known}; correct"
    ):
        write(dataset, tmp_path / "x.beton", on_error=on_error)
    assert files_in(tmp_path) == []


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Path:
    """Five images, of which 2 is truncated, 3 empty and 4 a dangling link."""
    folder = tmp_path / "in"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in (1, 5):
        Image.fromarray(picture(20, 20, number)).save(folder / "a" / f"{number}.png")
    whole = encoded(picture(200, 200))
    (folder / "a" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "a" / "3.jpg").write_bytes(b"")
    (folder / "b" / "4.png").symlink_to("nowhere.png")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_conversion_by_name(
    damaged_folder: Path, tmp_path: Path, workers: int
) -> None:
    with pytest.raises(ImageError) as caught:
        write(damaged_folder, tmp_path / "x.beton", num_workers=workers)
    message = str(caught.value)
    assert message.startswith(f"{damaged_folder}/a/2.jpg: unreadable or truncated image (")
    assert message.endswith("; mend or remove it, or skip such images (on_error='skip')")
    assert "\n" not in message
    assert files_in(tmp_path) == ["in"]


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_unreadable_images_out_and_lists_them(
    damaged_folder: Path,
    tmp_path: Path,
    workers: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "xmix_data")
    beton = write(
        damaged_folder, tmp_path / "x.beton", on_error="skip", encoding="raw", num_workers=workers
    )
    assert beton.class_names == ["a", "b"]
    assert beton.class_counts == [2, 0]
    for index, number in enumerate((1, 5)):
        assert np.array_equal(pixels_of(beton, index), picture(20, 20, number))
    assert beton.manifest is not None
    skipped = beton.manifest["skipped"]
    names = ["a/2.jpg", "a/3.jpg", "b/4.png"]
    assert [entry["path"] for entry in skipped] == [str(damaged_folder / name) for name in names]
    assert [entry["index"] for entry in skipped] == [1, 2, 4]
    assert "truncated" in skipped[0]["reason"]
    assert "not an image" in skipped[1]["reason"]
    assert "No such file" in skipped[2]["reason"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/x.beton: skipped 3 unreadable images (1 unreadable or truncated image, 1 not "
        "an image in a format that Pillow reads, 1 No such file or directory), see x.beton.json",
        f"{tmp_path}/x.beton: 1 of 2 classes have no images: b",
    ]
    assert beton.manifest["classes_without_images"] == ["b"]


@pytest.mark.parametrize("workers", [0, 2])
def test_decoders_print_nothing_that_names_no_file(tmp_path: Path, workers: int) -> None:
    """What Pillow warns of, what it logs, and what libtiff prints."""
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    tiff = encoded(picture(20, 20, 0), "TIFF", compression="tiff_adobe_deflate")
    broken = bytearray(tiff)
    broken[tiff.index(b"\x78") : tiff.index(b"\x78") + 20] = bytes(20)
    samples = bytearray(tiff)
    place = tiff.index(struct.pack("<HHI", 0x0115, 3, 1))  # SamplesPerPixel
    samples[place + 8 : place + 10] = struct.pack("<H", 2048)
    odd = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 3, 0x10F, 2, 900, 9999)
    (folder / "1.jpg").write_bytes(encoded(picture(20, 20, 1), exif=odd))
    for name, data in (("2.tif", broken), ("3.tif", samples), ("4.tif", tiff[:-20])):
        (folder / name).write_bytes(data)
    out = tmp_path / "x.beton"
    command = [sys.executable, "-m", "xmix_data", "convert", str(folder.parent), str(out)]
    options = ["--on-error", "skip", "--image-size", "none", "--workers", str(workers)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("convert x.beton")]
    assert len(said) == 1 and said[0].startswith(f"xmix: {out}: skipped 3 unreadable images (")
    skipped = Beton(out).manifest["skipped"]  # type: ignore[index]
    assert "ZIPDecode" in skipped[0]["reason"]


def test_nothing_readable_is_an_error_even_where_images_may_be_skipped(tmp_path: Path) -> None:
    dataset = Pairs([(b"no image", 0), (b"", 0)])
    with pytest.raises(
        ImageError, match=r"not one of 2 images could be read; .*Pairs\[0\]: not an"
    ):
        write(dataset, tmp_path / "x.beton", on_error="skip")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_a_dataset_raises_is_named_with_its_sample(tmp_path: Path, workers: int) -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            if index == 40:
                raise KeyError("row 40")
            return picture(4, 4), 0

    message = r"^Broken\[40\]: the dataset raised KeyError: 'row 40'; correct the dataset$"
    with pytest.raises(DatasetError, match=message) as caught:
        write(Broken([None] * 50), tmp_path / "x.beton", num_workers=workers)
    assert isinstance(caught.value.__cause__, KeyError)
    assert files_in(tmp_path) == []


# Whole or not at all


def test_a_file_appears_when_whole(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as stream:
        stream.write(b"whole")
        stream.flush()
        assert files_in(tmp_path) == ["file.partial"]
    assert files_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"earlier")
    with pytest.raises(KeyError), whole_file(tmp_path / "file") as stream:
        stream.write(b"half")
        raise KeyError("stopped")
    assert files_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"earlier"


def test_what_a_killed_writer_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(b"left over, and longer than what follows")
    with whole_file(tmp_path / "file") as stream:
        stream.write(b"whole")
    assert files_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as stream:
        stream.write(b"first")
        with (
            pytest.raises(
                FileExistsError, match="file: another process is writing it; wait for it"
            ),
            whole_file(tmp_path / "file"),
        ):
            pytest.fail("two writers at once")
    assert (tmp_path / "file").read_bytes() == b"first"


def test_a_writer_never_touches_what_another_has_just_finished(tmp_path: Path) -> None:
    path, wrong = tmp_path / "file", list[Any]()

    def write_again_and_again() -> None:
        for _ in range(4000):  # most are refused: another one writes
            try:
                with whole_file(path) as stream:
                    stream.write(b"whole")
            except FileExistsError:
                pass
            except Exception as error:
                wrong.append(error)

    writers = [threading.Thread(target=write_again_and_again) for _ in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        with contextlib.suppress(FileNotFoundError):
            found = path.read_bytes()
            if found != b"whole":
                wrong.append(found)
    for writer in writers:
        writer.join()
    assert wrong == []
    assert files_in(tmp_path) == ["file"]


def test_a_second_conversion_to_the_same_file_is_refused(tmp_path: Path) -> None:
    class Nested(Pairs):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            if index == 1:
                with pytest.raises(FileExistsError, match="another process is writing it; wait"):
                    write(pairs(), tmp_path / "x.beton")
                self.reads.append(index)
            return picture(4, 4), 0

    dataset = Nested([None] * 3)
    beton = write(dataset, tmp_path / "x.beton")
    assert dataset.reads == [1]
    assert len(beton) == 3


def run_python(script: str, *arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        **options,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("may not mount a file system of its own")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(small_disk: Path, workers: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(Pairs([(noise, 0)] * 60), small_disk / "x.beton", encoding="raw", num_workers=workers)
    assert caught.value.strerror == (
        f"{small_disk}/x.beton: cannot be written (No space left on device); "
        "free space or write elsewhere"
    )
    assert files_in(small_disk) == []


def test_a_disk_that_fills_while_pages_are_laid_out_anew_leaves_nothing(small_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    samples = [(noise, 0)] * 20 + [(padded(9 * MiB), 0)]  # 0.6 MB twice do not fit, nor 9 MB once
    with pytest.raises(OSError, match=r"x\.beton: cannot be written \(No space left on device\); "):
        write(Pairs(samples), small_disk / "x.beton", encoding="keep", image_size=None)
    assert files_in(small_disk) == []


FULL_SHARED_MEMORY = """
mount -t tmpfs -o size=16k tmpfs /dev/shm || exit 77
head -c 65536 /dev/zero > /dev/shm/full 2> /dev/null
"$@"
"""


def test_a_full_shared_memory_is_named(tmp_path: Path) -> None:
    """In a mount namespace of its own, as containers often have it: with hardly any space."""
    source, out = tmp_path / "source.beton", tmp_path / "out.beton"
    write(pairs(), source)
    before = files_in(tmp_path)
    shell = ["unshare", "--mount", "sh", "-c", FULL_SHARED_MEMORY, "sh"]
    command = [sys.executable, "-m", "xmix_data", "convert", str(source), str(out), "--workers"]
    try:
        done = subprocess.run([*shell, *command, "2"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("has no unshare")
    if done.returncode in (1, 77):
        pytest.skip("may not mount a file system of its own")
    assert done.returncode == 2
    assert done.stderr.startswith("xmix: worker processes cannot be started, as /dev/shm refuses")
    assert len(done.stderr.splitlines()) == 1 and files_in(tmp_path) == before
    done = subprocess.run([*shell, *command, "0"], capture_output=True, text=True)
    assert done.returncode == 0 and out.exists()


@pytest.mark.parametrize(("size", "fits"), [("64m", True), ("1m", True), ("40k", False)])
def test_what_workers_need_of_shared_memory(tmp_path: Path, size: str, fits: bool) -> None:
    """Containers have 64 MB; it is said beforehand where even the workers' locks do not fit."""
    source, out = tmp_path / "source.beton", tmp_path / "out.beton"
    write(pairs(40), source)
    mounted = f'mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 77; "$@"'
    command = [sys.executable, "-m", "xmix_data", "convert", str(source), str(out), "--workers"]
    shell = ["unshare", "--mount", "sh", "-c", mounted, "sh"]
    try:
        done = subprocess.run([*shell, *command, "2"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("has no unshare")
    if done.returncode in (1, 77):
        pytest.skip("may not mount a file system of its own")
    assert (done.returncode == 0) == out.exists() == fits, done.stderr
    if not fits:
        assert "2 of them need 96 KiB of /dev/shm, where 40 KiB are free; free space" in done.stderr
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


LIMITED = """
import sys
from xmix_data import write_beton
try:
    write_beton(sys.argv[1], sys.argv[2], encoding="raw", image_size=None, crop="none",
                num_workers=0, progress=False, overwrite=True)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("missing", [1, 4000, 200_000])
def test_a_file_that_may_grow_no_further_costs_nothing_that_was_there(
    tmp_path: Path, missing: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    new = write(Pairs([(noise, 0)] * 2), tmp_path / "new.beton", encoding="raw")
    old = write(pairs(), tmp_path / "old.beton", encoding="raw")
    before = old.path.read_bytes(), manifest_of(old.path).read_bytes()
    limit = new.byte_length - missing

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run_python(LIMITED, new.path, old.path, preexec_fn=limit_files)
    assert done.stdout == (
        f"{old.path}: cannot be written (File too large); free space or write elsewhere\n"
    )
    assert (old.path.read_bytes(), manifest_of(old.path).read_bytes()) == before
    assert files_in(tmp_path) == ["new.beton", "new.beton.json", "old.beton", "old.beton.json"]


SUICIDAL = """
import os, signal, sys
import numpy as np
from xmix_data import XMixError, write_beton

class Images:
    def __len__(self):
        return 400

    def __getitem__(self, index):
        if index == 350:
            if sys.argv[2] == "worker":
                from torch.utils.data import get_worker_info
                assert get_worker_info() is not None
                os.kill(os.getpid(), signal.SIGKILL)
            if sys.argv[2] == "main":
                os.kill(os.getppid() if sys.argv[3] != "0" else os.getpid(), signal.SIGKILL)
        return np.full((64, 64, 3), index % 251, np.uint8), index % 2

try:
    write_beton(Images(), sys.argv[1], encoding="raw", image_size=64, num_workers=int(sys.argv[3]),
                progress=False)
except XMixError as error:
    print(error)
"""


def test_a_killed_worker_ends_the_conversion_with_a_clear_error(tmp_path: Path) -> None:
    done = run_python(SUICIDAL, tmp_path / "x.beton", "worker", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "a conversion worker died (SIGKILL): the system ends processes so when memory runs out; "
        "free memory or use fewer workers (num_workers)\n"
    )
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_conversion_leaves_nothing_under_the_name_and_can_be_run_again(
    tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "x.beton"
    killed = subprocess.Popen(
        [sys.executable, "-c", SUICIDAL, path, "main", str(workers)], start_new_session=True
    )
    try:
        assert killed.wait(TIMEOUT_S) == -signal.SIGKILL
        assert files_in(tmp_path) == ["x.beton.json.partial", "x.beton.partial"]
        images = Pairs([(np.full((64, 64, 3), i % 251, np.uint8), i % 2) for i in range(400)])
        deadline = time.monotonic() + 20
        while True:
            try:
                beton = write(images, path, encoding="raw", image_size=64)
                break
            except FileExistsError:  # the orphaned workers hold the lock until they have ended
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
    assert files_in(tmp_path) == ["x.beton", "x.beton.json"]
    fresh = write(images, tmp_path / "fresh.beton", encoding="raw", image_size=64)
    assert beton.path.read_bytes() == fresh.path.read_bytes()


# Damage


def test_a_missing_beton_is_named(tmp_path: Path) -> None:
    for name in ("nowhere.beton", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=f"{name}: no such beton; write one with `xmix"):
            Beton(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no beton: only 0 bytes long"),
        (b"short", "no beton: only 5 bytes long"),
        (bytes(10_000), "no beton: it does not begin with the header of FFCV's version 2"),
        (b"PK\x03\x04" * 1000, "no beton: it does not begin with the header"),
        (encoded(picture(100, 100)), "no beton: it does not begin with the header"),
    ],
    ids=["empty", "short", "zeros", "zip", "jpeg"],
)
def test_a_file_that_is_no_beton_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(content)
    with pytest.raises(BetonError, match=rf"x\.beton: {problem}.*; convert it again"):
        Beton(path)
    with pytest.raises(BetonError, match=problem):
        write(path, tmp_path / "y.beton")


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(
    "keep",
    [
        lambda size: 10,
        lambda size: HEADER,
        lambda size: HEADER + FIELD,
        lambda size: row(0),
        lambda size: row(3) + 5,
        lambda size: row(6),
        lambda size: 8 * MiB,
        lambda size: 8 * MiB + 1000,
        lambda size: size - 6 * 24 - 1,
        lambda size: size - 6 * 24,
        lambda size: size - 24,
        lambda size: size - 1,
    ],
    ids=[
        "header",
        "fields",
        "field",
        "metadata",
        "row",
        "padding",
        "data",
        "image",
        "table-1",
        "table",
        "entry",
        "byte",
    ],
)
def test_a_truncated_beton_is_found_wherever_it_ends(
    made: dict[str, Path], tmp_path: Path, keep: Callable[[int], int], manifest: bool
) -> None:
    path = copied(made["raw"], tmp_path, manifest=manifest)
    os.truncate(path, keep(path.stat().st_size))
    with pytest.raises(BetonError, match=r"copy\.beton: .*(cut short|no beton|is missing from)"):
        Beton(path)


def u2(value: int) -> bytes:
    return value.to_bytes(2, "little")


def u8(value: int) -> bytes:
    return (value % (1 << 64)).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("offset", "data", "problem"),
    [
        (0, bytes(HEADER), "no beton: it does not begin with the header"),
        (0, u2(1), "no beton: it does not begin with the header"),
        (2, u2(0), "no beton: it does not begin with the header"),
        (2, u2(1), "it has no RGB image field and int field"),
        (2, u2(3), "damaged: image 0 is missing from the allocation table"),
        (2, u2(60_000), "no beton: it does not begin with the header"),
        (8, u8(0), "it holds no samples"),
        (8, u8(5), "damaged: its allocation table knows more samples than its header"),
        (8, u8(1 << 40), "cut short or damaged: its sample metadata reaches beyond the end"),
        (8, u8(-1), "cut short or damaged: its sample metadata reaches beyond the end"),
        (16, u8(0), "unfinished: its writer was stopped before the end"),
        (16, u8(1 << 40), "cut short or damaged: its allocation table does not end with it"),
        (16, u8(-1), "cut short or damaged: its allocation table does not end with it"),
        (16, u8(1), "its allocation table does not end with it|missing from the allocation table"),
        (HEADER, b"\xff", "field 0 has type 255, which stock FFCV does not know; write it with"),
        (HEADER, b"\x01", "it has no RGB image field and int field side by side; write it with"),
        (HEADER + FIELD, b"\x00", "it has no RGB image field and int field"),
        (row(2), b"\x07", "damaged: image 2 has an unknown mode"),
        (row(3) + 1, u2(0), "damaged: image 3 has no pixels"),
        (row(3) + 3, u2(17), r"damaged: image 3 is raw but not H\*W\*3 bytes long"),
        (row(4) + 5, u8(0), "damaged: image 4 is missing from the allocation table"),
        (row(4) + 5, u8(1 << 63), "damaged: image 4 is missing from the allocation table"),
        (row(5) + 16, u8(-1), "sample 5 has the label -1"),
        (row(5) + 16, u8(1 << 50), "sample 5 has the label 1125899906842624"),
        (-16, u8(1 << 60), "damaged: image 5 is missing from the allocation table"),
        (-8, u8(0), "damaged: image 5 lies outside the file's data"),
        (-8, u8(-1), "damaged: image 5 lies outside the file's data"),
        (-8, u8(16 * 16 * 3 - 1), r"damaged: image 5 is raw but not H\*W\*3 bytes long"),
    ],
)
@pytest.mark.parametrize("manifest", [True, False])
def test_a_damaged_index_is_found_and_named(
    made: dict[str, Path], tmp_path: Path, offset: int, data: bytes, problem: str, manifest: bool
) -> None:
    path = copied(made["raw"], tmp_path, manifest=manifest)
    put(path, offset, data)
    with pytest.raises(BetonError, match=rf"copy\.beton(\.json)?: .*({problem}|describes a beton)"):
        Beton(path)


@pytest.mark.parametrize("pointer", [0, 100, 1 << 40, (1 << 64) - 10])
def test_a_pointer_out_of_bounds_is_found_even_where_the_table_agrees(
    made: dict[str, Path], tmp_path: Path, pointer: int
) -> None:
    path = copied(made["jpg"], tmp_path, manifest=False)
    put(path, row(5) + 5, u8(pointer))
    put(path, -16, u8(pointer))
    with pytest.raises(BetonError, match="damaged: image 5 lies outside the file's data; convert"):
        Beton(path)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.integers(0, HEADER - 1),
                st.sampled_from([HEADER, HEADER + FIELD]),
                st.integers(row(0), row(6) - 1),
                st.integers(-6 * 24, -1),
            ),
            st.integers(0, 255),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_damaged_index_never_leads_out_of_the_file(
    made: dict[str, Path], changes: list[tuple[int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = copied(made["jpg"], Path(folder), manifest=False)
        for offset, value in changes:
            put(path, offset, bytes([value]))
        try:
            beton = Beton(path)
        except BetonError as error:
            assert str(error).startswith(str(path))
            return
        for index in range(len(beton)):
            assert 0 < int(beton.sizes[index]) == len(beton.data(index))
            assert beton.describe(index).startswith(str(path))
        with contextlib.suppress(BetonError):
            beton.verify()


def test_the_allocation_table_may_be_in_any_order(made: dict[str, Path], tmp_path: Path) -> None:
    path = copied(made["jpg"], tmp_path, manifest=False)
    table = np.frombuffer(path.read_bytes()[-6 * 24 :], np.uint8).reshape(6, 24)
    put(path, -6 * 24, np.random.default_rng(0).permutation(table).tobytes())
    shuffled, whole = Beton(path), Beton(made["jpg"])
    assert shuffled.sizes.tolist() == whole.sizes.tolist()
    shuffled.verify()


def test_a_label_that_the_manifest_does_not_count_is_found(
    made: dict[str, Path], tmp_path: Path
) -> None:
    path = copied(made["jpg"], tmp_path, manifest=True)
    put(path, row(0) + 16, u8(1))
    with pytest.raises(
        BetonError, match=r"its labels are not those that copy\.beton\.json counts;"
    ):
        Beton(path)
    put(path, row(0) + 16, u8(3))
    with pytest.raises(
        BetonError, match="sample 0 has the label 3, outside the 3 classes of its ma"
    ):
        Beton(path)


def test_swapped_labels_are_found_by_verify(made: dict[str, Path], tmp_path: Path) -> None:
    path = copied(made["jpg"], tmp_path, manifest=True)
    put(path, row(0) + 16, u8(1))
    put(path, row(1) + 16, u8(0))
    beton = Beton(path)
    with pytest.raises(BetonError, match="its content is not what its manifest's hash says; conv"):
        beton.verify()


def test_the_manifest_of_another_beton_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    path = copied(made["jpg"], tmp_path, manifest=False)
    other = write(pairs(4), tmp_path / "other.beton")
    shutil.copy(manifest_of(other.path), manifest_of(path))
    with pytest.raises(
        BetonError, match=r"describes a beton of 4 samples and \d+ bytes, but copy\."
    ):
        Beton(path)


def test_the_manifest_of_a_beton_of_the_same_size_is_found_by_verify(
    made: dict[str, Path], tmp_path: Path
) -> None:
    path = copied(made["raw"], tmp_path, manifest=False)
    other = Pairs([(picture(16, 16, 100 + i), i % 3) for i in range(6)], "abc")
    manifest = manifest_of(write(other, tmp_path / "other.beton", encoding="raw").path)
    shutil.copy(manifest, manifest_of(path))
    beton = Beton(path)
    with pytest.raises(BetonError, match="its content is not what its manifest's hash says"):
        beton.verify()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_cut_manifest_is_refused(made: dict[str, Path], tmp_path: Path, share: float) -> None:
    path = copied(made["jpg"], tmp_path, manifest=True)
    manifest = manifest_of(path)
    os.truncate(manifest, int(manifest.stat().st_size * share))
    with pytest.raises(
        BetonError, match=r"beton\.json: damaged manifest .*or remove the manifest to"
    ):
        Beton(path)
    manifest.unlink()
    assert Beton(path).class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "something else"},
        {"version": 2},
        {"class_names": ["a", "b"]},
        {"class_names": ["a", "b", "b"]},
        {"class_names": ["a", "b", 3]},
        {"class_names": None},
        {"class_counts": 3},
        {"content_hash": None},
        {"encoding": 7},
        {"byte_length": None},
        {"num_samples": "six"},
    ],
    ids=str,
)
def test_a_manifest_of_another_kind_is_refused(
    made: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    path = copied(made["jpg"], tmp_path, manifest=True)
    manifest = json.loads(manifest_of(path).read_text())
    manifest_of(path).write_text(json.dumps(manifest | change))
    with pytest.raises(
        BetonError, match=r"copy\.beton\.json: (damaged manifest|describes a beton)"
    ):
        Beton(path)


@pytest.mark.parametrize(
    "key",
    [
        "format",
        "version",
        "class_names",
        "class_counts",
        "num_samples",
        "byte_length",
        "content_hash",
        "encoding",
    ],
)
def test_a_manifest_that_lacks_an_entry_is_refused(
    made: dict[str, Path], tmp_path: Path, key: str
) -> None:
    path = copied(made["jpg"], tmp_path, manifest=True)
    manifest = json.loads(manifest_of(path).read_text())
    del manifest[key]
    manifest_of(path).write_text(json.dumps(manifest))
    with pytest.raises(BetonError, match=f"damaged manifest \\(no '{key}'\\)"):
        Beton(path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "{}"])
def test_json_that_is_no_manifest_is_refused(
    made: dict[str, Path], tmp_path: Path, text: str
) -> None:
    path = copied(made["jpg"], tmp_path, manifest=True)
    manifest_of(path).write_text(text)
    with pytest.raises(BetonError, match=r"copy\.beton\.json: damaged manifest"):
        Beton(path)


@pytest.mark.parametrize("encoding", ["jpg", "raw"])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_sound_beton_verifies(
    made: dict[str, Path], tmp_path: Path, encoding: str, manifest: bool
) -> None:
    Beton(copied(made[encoding], tmp_path, manifest=manifest)).verify()


@pytest.mark.parametrize("encoding", ["jpg", "raw"])
@pytest.mark.parametrize("place", [0, 1, 300, -1])
def test_verify_finds_any_flipped_byte_by_the_hash(
    made: dict[str, Path], tmp_path: Path, encoding: str, place: int
) -> None:
    path = copied(made[encoding], tmp_path, manifest=True)
    data = Beton(path).data(3)
    offset = int(Beton(path).pointers[3]) + place % len(data)
    put(path, offset, bytes([data[place] ^ 0x10]))
    with pytest.raises(BetonError, match=r"copy\.beton: damaged: its content is not what its man"):
        Beton(path).verify()


@pytest.mark.parametrize("marker", [b"\xff\xd8", b"\xff\xdb", b"\xff\xc0", b"\xff\xda"])
def test_verify_finds_a_flipped_byte_of_a_jpeg_without_a_manifest(
    made: dict[str, Path], tmp_path: Path, marker: bytes
) -> None:
    path = copied(made["jpg"], tmp_path, manifest=False)
    place = Beton(path).data(3).tobytes().index(marker)
    put(path, int(Beton(path).pointers[3]) + place + 1, bytes([marker[1] ^ 0x04]))
    with pytest.raises(
        BetonError, match=r"copy\.beton: image 3 \(class '0'\): .*; convert it again"
    ):
        Beton(path).verify()


def test_verify_finds_a_jpeg_of_another_size(made: dict[str, Path], tmp_path: Path) -> None:
    path = copied(made["jpg"], tmp_path, manifest=False)
    put(path, row(2) + 1, u2(8))
    with pytest.raises(
        BetonError, match=r"image 2 \(class '2'\): the JPEG is 16x16, the index says "
    ):
        Beton(path).verify()


def test_a_damaged_image_stops_the_conversion_of_a_beton_by_index_and_class(
    made: dict[str, Path], tmp_path: Path
) -> None:
    path = copied(made["jpg"], tmp_path, manifest=True)
    put(path, int(Beton(path).pointers[4]), bytes(20))
    with pytest.raises(
        ImageError, match=r"copy\.beton: image 4 \(class 'b'\): not an image.*; mend"
    ):
        write(path, tmp_path / "again.beton")
    again = write(path, tmp_path / "again.beton", on_error="skip")
    assert (len(again), again.class_counts) == (5, [2, 1, 2])


def test_errors_of_betons_and_images_are_one_family() -> None:
    assert issubclass(BetonError, XMixError)
    assert issubclass(ImageError, XMixError)
    assert issubclass(BetonError, ValueError)


@pytest.mark.parametrize("encoding", ["jpg", "raw", "keep"])
def test_enlarging_is_said_once(
    tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    sides = [(20, 40), (64, 40), (32, 90), (31, 31)]
    images = Pairs([(encoded(picture(*side)), 0) for side in sides])
    written(images, tmp_path / "x.beton", image_size=32, encoding=encoding)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/x.beton: 2 of 4 images were smaller than 32 pixels, and were enlarged; a "
        "smaller image_size (--image-size) stores as much in fewer bytes"
    ]
    caplog.clear()
    written(images, tmp_path / "y.beton", image_size=None, encoding=encoding)
    assert not caplog.records
