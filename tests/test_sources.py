"""Data sets as their owners hand them out: the paper's six, and those of Hugging Face."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from servers import Server
from test_convert import Capture, convert, error, fresh_log  # noqa: F401

from xmix_data import Beton, DatasetError, ImageError, write_beton
from xmix_data.images import named_source

SHADES = {"zebra": 200, "ant": 40, "bee": 120}
"""The classes of all sets here, in an order of their own, and the shade of their images."""


def jpeg(name: str, number: int) -> bytes:
    stream = io.BytesIO()
    shade = SHADES[name] + number
    Image.new("RGB", (40, 32), (shade, shade, shade)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def put(path: Path, name: str, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(name, number))


def check(out: Path, expected: list[tuple[str, int]], class_name: Callable[[str], str]) -> None:
    """The beton has these images in this order, their bytes untouched, under their names."""
    beton = Beton(out)
    found = [
        (beton.class_names[label], beton.data(index).tobytes())
        for index, label in enumerate(beton.labels)
    ]
    assert found == [(class_name(name), jpeg(name, number)) for name, number in expected]


def keep(capsys: Capture, source: str, out: Path, *more: Any) -> None:
    convert(
        capsys, source, out, "--encoding", "keep", "--image-size", "none", "--crop", "none", *more
    )


# CUB-200-2011


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    folder = tmp_path / "CUB_200_2011"
    images = [("zebra", 1, 1), ("zebra", 2, 0), ("ant", 1, 1), ("bee", 1, 1), ("bee", 2, 0)]
    ids = {name: i for i, name in enumerate(SHADES, 1)}
    lists: dict[str, list[str]] = {
        "classes": [f"{i} {i:03}.{name}" for name, i in ids.items()],
        "images": [],
        "image_class_labels": [],
        "train_test_split": [],
    }
    for image, (name, number, train) in enumerate(images, 1):
        path = f"{ids[name]:03}.{name}/{name}_{number}.jpg"
        put(folder / "images" / path, name, number)
        lists["images"].append(f"{image} {path}")
        lists["image_class_labels"].append(f"{image} {ids[name]}")
        lists["train_test_split"].append(f"{image} {train}")
    for key, lines in lists.items():
        (folder / f"{key}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_cub(capsys: Capture, cub: Path, tmp_path: Path) -> None:
    ids = {name: f"{i:03}.{name}" for i, name in enumerate(SHADES, 1)}
    keep(capsys, f"cub:{cub}", tmp_path / "train.beton")
    check(tmp_path / "train.beton", [("zebra", 1), ("ant", 1), ("bee", 1)], ids.__getitem__)
    keep(capsys, f"cub:{cub}", tmp_path / "test.beton", "--split", "test")
    check(tmp_path / "test.beton", [("zebra", 2), ("bee", 2)], ids.__getitem__)
    assert Beton(tmp_path / "test.beton").class_names == list(ids.values())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", None, r"images\.txt: not there; give the unpacked folder CUB_200_2011"),
        ("images.txt", "1 a.jpg\n1 b.jpg\n", r"images\.txt: line 2 is '1 b\.jpg', not a new id"),
        ("images.txt", "one a.jpg\n", r"images\.txt: line 1 is 'one a\.jpg'"),
        ("classes.txt", "1 a\n3 b\n", r"classes\.txt: its ids are not 1 to 2"),
        ("image_class_labels.txt", "1 9\n", r"image 1 has the class '9' and the split '1'"),
        ("train_test_split.txt", "1 1\n", r"image 2 has the class '1' and the split None"),
    ],
)
def test_cub_that_does_not_fit(
    capsys: Capture, cub: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    (cub / file).unlink()
    if content is not None:
        (cub / file).write_text(content)
    assert_error(capsys, f"cub:{cub}", tmp_path, message)


def assert_error(capsys: Capture, source: str, tmp_path: Path, message: str, *more: Any) -> None:
    said = error(capsys, "convert", source, tmp_path / "out.beton", "--workers", 0, *more)
    assert re.search(message, said), said
    assert not list(tmp_path.glob("out.beton*"))


# Stanford Dogs


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    folder = tmp_path / "dogs"
    names = sorted(SHADES)
    for split, images in (
        ("train", [("bee", 1), ("ant", 1), ("ant", 2), ("zebra", 1)]),
        ("test", [("zebra", 2)]),
    ):
        files = [f"n0-{name}/n0_{number}.jpg" for name, number in images]
        for (name, number), file in zip(images, files, strict=True):
            put(folder / "Images" / file, name, number)
        savemat(
            folder / f"{split}_list.mat",
            {
                "file_list": np.array([[file] for file in files], object),
                "labels": np.array([[names.index(name) + 1] for name, _ in images], np.uint8),
            },
        )
    return folder


def test_dogs(capsys: Capture, dogs: Path, tmp_path: Path) -> None:
    keep(capsys, f"dogs:{dogs}", tmp_path / "train.beton")
    expected = [("bee", 1), ("ant", 1), ("ant", 2), ("zebra", 1)]
    check(tmp_path / "train.beton", expected, "n0-{}".format)
    keep(capsys, f"dogs:{dogs}", tmp_path / "test.beton", "--split", "test")
    check(tmp_path / "test.beton", [("zebra", 2)], "n0-{}".format)
    assert Beton(tmp_path / "test.beton").class_names == ["n0-ant", "n0-bee", "n0-zebra"]


def test_the_split_that_is_taken_is_said(
    dogs: Path, cub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xmix_data")
    parts = {"train": made(), "test": made(IMAGES[:2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "hf")
    for source in (f"dogs:{dogs}", f"cub:{cub}", f"huggingface:{tmp_path / 'hf'}"):
        named_source(source, root=tmp_path)
        assert caplog.messages == [
            f"{source} has the splits train and test; train is taken, --split takes another"
        ]
        caplog.clear()
        named_source(source, split="test", root=tmp_path)
        with pytest.raises(ValueError, match="has the splits train and test, not 'val'; choose"):
            named_source(source, split="val", root=tmp_path)
        assert not caplog.messages


def test_dogs_that_do_not_fit(capsys: Capture, dogs: Path, tmp_path: Path) -> None:
    source = f"dogs:{dogs}"
    assert_error(capsys, source, tmp_path, "splits train and test, not 'val'", "--split", "val")
    (dogs / "Images" / "n0-ant").rename(dogs / "Images" / "n1-ant")
    assert_error(
        capsys, source, tmp_path, r"n0-bee/n0_1\.jpg has the label 2, which is n0-zebra in"
    )
    content = (dogs / "train_list.mat").read_bytes()
    (dogs / "train_list.mat").write_bytes(content[:150])
    assert_error(capsys, source, tmp_path, r"train_list\.mat: damaged .*unpack lists\.tar again")
    (dogs / "train_list.mat").unlink()
    assert_error(capsys, source, tmp_path, r"train_list\.mat: not there; unpack images\.tar and")


# torchvision


def test_food101(capsys: Capture, tmp_path: Path) -> None:
    base = tmp_path / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        listed = {name: [f"{name}/{number}" for number in numbers] for name in SHADES}
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for name in SHADES:
            for number in numbers:
                put(base / "images" / name / f"{number}.jpg", name, number)
    keep(capsys, "torchvision:Food101", tmp_path / "o.beton", "--root", tmp_path, "--per-class", 1)
    assert Beton(tmp_path / "o.beton").class_counts == [1, 1, 1]
    out = tmp_path / "test.beton"
    keep(capsys, "torchvision:Food101", out, "--root", tmp_path, "--split", "test")
    check(out, [(name, 3) for name in SHADES], str)


def test_fgvc_aircraft(capsys: Capture, tmp_path: Path) -> None:
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    images = [("bee", 1), ("zebra", 1)]
    for name, number in images:
        put(data / "images" / f"{name}{number}.jpg", name, number)
    (data / "variants.txt").write_text("\n".join(SHADES) + "\n")
    lines = [f"{name}{number} {name}" for name, number in images]
    (data / "images_variant_trainval.txt").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.beton"
    keep(capsys, "torchvision:FGVCAircraft", out, "--root", tmp_path, "--split", "trainval")
    check(out, images, str)


def test_stanford_cars(capsys: Capture, tmp_path: Path) -> None:
    """Cannot be downloaded any more; where its files are, it is read."""
    missing = r"torchvision:StanfordCars: .*; check the network, or put the data set's files below"
    more = ("--root", tmp_path)
    assert_error(capsys, "torchvision:StanfordCars", tmp_path, missing, *more)
    base, images = tmp_path / "stanford_cars", [("ant", 5), ("zebra", 6)]
    names = list(SHADES)
    for name, number in images:
        put(base / "cars_train" / f"{number}.jpg", name, number)
    (base / "devkit").mkdir()
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(names, object)})
    kind = [("fname", object), ("class", object)]
    rows = np.array([(f"{n}.jpg", names.index(name) + 1) for name, n in images], kind)
    savemat(base / "devkit" / "cars_train_annos.mat", {"annotations": rows})
    keep(capsys, "torchvision:StanfordCars", tmp_path / "out.beton", *more)
    check(tmp_path / "out.beton", images, str)


WORDNET = {"tench": "n01440764", "springer": "n02102040"}


def test_imagenet_has_wordnet_ids_for_names(capsys: Capture, tmp_path: Path) -> None:
    """Its `classes` are lists of synonyms, and two of them are cranes."""
    synonyms = {wnid: (name, "crane") for name, wnid in WORDNET.items()}
    torch.save((synonyms, ["n01440764"]), tmp_path / "meta.bin")
    for split, numbers in (("train", (1, 2)), ("val", (3,))):
        for shade, wnid in zip(SHADES, WORDNET.values(), strict=False):
            for number in numbers:
                put(tmp_path / split / wnid / f"{wnid}_{number}.JPEG", shade, number)
    out, names = tmp_path / "val.beton", dict(zip(SHADES, WORDNET.values(), strict=False))
    keep(capsys, "torchvision:ImageNet", out, "--root", tmp_path, "--split", "val")
    check(out, [("zebra", 3), ("ant", 3)], names.__getitem__)
    assert Beton(out).class_names == list(WORDNET.values())
    out = tmp_path / "train.beton"
    keep(capsys, "torchvision:ImageNet", out, "--root", tmp_path, "--per-class", 1)
    assert Beton(out).class_counts == [1, 1]
    some = tmp_path / "classes"
    some.write_text("n02102040")
    out = tmp_path / "some.beton"
    keep(capsys, "torchvision:ImageNet", out, "--root", tmp_path, "--classes", some)
    assert Beton(out).class_names == ["n02102040"]
    refused = "torchvision:ImageNet has the splits train and val, not 'test'; choose one with --spl"
    assert_error(capsys, "torchvision:ImageNet", tmp_path, refused, "--split", "test")


def test_imagenette_has_wordnet_ids_for_names(capsys: Capture, tmp_path: Path) -> None:
    for wnid in WORDNET.values():
        put(tmp_path / "imagenette2" / "val" / wnid / "1.JPEG", "ant", 1)
    out = tmp_path / "out.beton"
    keep(capsys, "torchvision:Imagenette", out, "--root", tmp_path, "--split", "val")
    assert Beton(out).class_names == list(WORDNET.values())
    shutil.copytree(tmp_path / "imagenette2" / "val", tmp_path / "imagenette2" / "train")
    parts = [
        named_source("torchvision:Imagenette", split=s, root=tmp_path) for s in ("train", "val")
    ]
    assert parts[0] and parts[1] and parts[0].fingerprint != parts[1].fingerprint
    assert len(parts[0]) == len(parts[1])  # which is all that was known of either


def test_a_data_set_without_splits_refuses_one(capsys: Capture, tmp_path: Path) -> None:
    put(tmp_path / "eurosat" / "2750" / "Forest" / "1.jpg", "ant", 1)
    root = ("--root", tmp_path)
    for split in ("train", "test"):
        refused = f"torchvision:EuroSAT has no splits, and '{split}' is wanted; leave --split out"
        assert_error(capsys, "torchvision:EuroSAT", tmp_path, refused, *root, "--split", split)
    keep(capsys, "torchvision:EuroSAT", tmp_path / "out.beton", *root)
    check(tmp_path / "out.beton", [("ant", 1)], lambda _: "Forest")


# Hugging Face


IMAGES = [("bee", 1), ("ant", 1), ("zebra", 1), ("bee", 2)]


def made(images: list[tuple[str, int]] = IMAGES, **columns: Any) -> datasets.Dataset:
    names = sorted(SHADES)
    return datasets.Dataset.from_dict(
        {
            "id": [f"{name}{number}" for name, number in images],
            "label": [names.index(name) for name, _ in images],
            "photo": [{"bytes": jpeg(*image), "path": None} for image in images],
        },
        features=datasets.Features(
            {
                "id": datasets.Value("string"),
                "label": datasets.ClassLabel(names=names),
                "photo": datasets.Image(),
                **columns,
            }
        ),
    )


def test_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    out = tmp_path / "out.beton"
    options: dict[str, Any] = {"image_size": None, "crop": "none", "progress": False}
    write_beton(made(), out, encoding="keep", num_workers=2, **options)
    check(out, IMAGES, str)
    assert Beton(out).class_names == sorted(SHADES)
    # Without names, and with pictures as they come from other pipelines.
    numbered = made(label=datasets.Value("int32"))
    write_beton(numbered, out, encoding="raw", num_workers=0, overwrite=True, **options)
    assert Beton(out).class_names == ["0", "1", "2"]
    assert Beton(out).labels.tolist() == [1, 0, 2, 1]


def test_a_data_set_of_hugging_face_from_disk(capsys: Capture, tmp_path: Path) -> None:
    parts = {"train": made(), "test": made(IMAGES[:2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    made(IMAGES[1:]).save_to_disk(tmp_path / "one")
    capsys.readouterr()
    keep(capsys, f"huggingface:{tmp_path / 'both'}", tmp_path / "a.beton", "--split", "test")
    check(tmp_path / "a.beton", IMAGES[:2], str)
    keep(capsys, f"huggingface:{tmp_path / 'one'}", tmp_path / "b.beton", "--per-class", 1)
    assert Beton(tmp_path / "b.beton").class_counts == [1, 1, 1]
    no_split = r"has the splits train and test, not 'val'"
    assert_error(capsys, f"huggingface:{tmp_path / 'both'}", tmp_path, no_split, "--split", "val")
    assert_error(capsys, f"huggingface:{tmp_path / 'none'}", tmp_path, r"none")


def test_a_data_set_of_hugging_face_without_splits_refuses_one(
    capsys: Capture, tmp_path: Path
) -> None:
    made().save_to_disk(tmp_path / "whole")
    source = f"huggingface:{tmp_path / 'whole'}"
    capsys.readouterr()
    assert_error(capsys, source, tmp_path, "has no splits, and 'test' is wanted", "--split", "test")
    part = datasets.Dataset(made().data, split=datasets.Split.TEST)
    part.save_to_disk(tmp_path / "part")
    source = f"huggingface:{tmp_path / 'part'}"
    capsys.readouterr()
    refused = "has the split test, not 'train'; choose one with --split"
    assert_error(capsys, source, tmp_path, refused, "--split", "train")
    for number, more in enumerate(([], ["--split", "test"])):
        keep(capsys, source, tmp_path / f"{number}.beton", *more)
        check(tmp_path / f"{number}.beton", IMAGES, str)
    datasets.DatasetDict({"val": made()}).save_to_disk(tmp_path / "val")
    source = f"huggingface:{tmp_path / 'val'}"
    capsys.readouterr()
    assert_error(capsys, source, tmp_path, "has the split val, not 'train'; choose one")


def test_a_data_set_of_hugging_face_without_images_or_labels(tmp_path: Path) -> None:
    out = tmp_path / "out.beton"
    with pytest.raises(ValueError, match=r"columns .*it needs one of images"):
        write_beton(made().remove_columns("photo"), out)
    with pytest.raises(ValueError, match="it needs one of images"):
        write_beton(made().remove_columns("label"), out)
    rows = made().to_dict()
    rows["photo"] = [{"bytes": jpeg("ant", 1), "path": None}] * 3 + [None]
    with pytest.raises(ImageError, match=r"data set of 4 rows, row 3: it has no image"):
        write_beton(datasets.Dataset.from_dict(rows, made().features), out, num_workers=0)
    rows["label"] = [0, 1, None, 2]
    without = datasets.Dataset.from_dict(rows, made().features)
    with pytest.raises(ImageError, match=r"row 2: it has no label"):
        write_beton(without, out, num_workers=0)
    assert not list(tmp_path.glob("out.beton*"))


def test_images_of_hugging_face_by_url(tmp_path: Path) -> None:
    """A store that fails is not skipped as an image would be; one that is not there may be."""
    out, folder = tmp_path / "out.beton", tmp_path / "in"
    for number, image in enumerate(IMAGES):
        put(folder / f"{number}.jpg", *image)
    options: dict[str, Any] = {"image_size": None, "crop": "none", "encoding": "keep"}
    options |= {"num_workers": 0, "progress": False, "overwrite": True, "on_error": "skip"}
    with Server(folder) as server:
        rows = made().to_dict()
        rows["photo"] = [{"bytes": None, "path": f"{server.url}/{i}.jpg"} for i in range(4)]
        rows["photo"][0]["path"] = f"{folder}/0.jpg"
        by_url = datasets.Dataset.from_dict(rows, made().features)
        write_beton(by_url, out, **options)
        check(out, IMAGES, str)
        (folder / "1.jpg").unlink()
        assert len(write_beton(by_url, out, **options)) == 3
        server.refuses = "2.jpg"
        with pytest.raises(DatasetError, match=r"row 2: http.*/2\.jpg: access is denied"):
            write_beton(by_url, out, **options)


def test_columns_of_hugging_face_are_not_guessed(tmp_path: Path) -> None:
    """Which of several is the image, or the label; and no number is one because it is the only."""
    out = tmp_path / "out.beton"

    def write(data: datasets.Dataset) -> list[int]:
        options: dict[str, Any] = {"image_size": None, "crop": "none", "encoding": "keep"}
        options |= {"num_workers": 0, "progress": False, "overwrite": True}
        return list(write_beton(data, out, **options).labels)

    whole = made()
    labels, swapped = whole["label"][:], made(IMAGES[::-1])
    texts = whole.add_column("image_id", [5, 6, 7, 8]).cast_column(
        "label", datasets.Value("string")
    )
    with pytest.raises(ValueError, match=r"label: string.*; it needs .*class_encode_column"):
        write(texts)
    assert write(texts.class_encode_column("label")) == labels
    coarse = whole.rename_column("label", "fine").add_column("coarse", [0, 0, 1, 0])
    assert write(coarse) == labels
    coarse = coarse.cast_column("coarse", datasets.ClassLabel(names=["insect", "other"]))
    with pytest.raises(
        ValueError, match=r"several columns that may be the label \(fine, coarse\); re"
    ):
        write(coarse)
    assert write(coarse.rename_column("coarse", "label")) == [0, 0, 1, 0]
    assert write(coarse.remove_columns("coarse")) == labels
    swapped = swapped.select_columns("photo").rename_column("photo", "mask")
    masks = datasets.concatenate_datasets([whole, swapped], axis=1)
    with pytest.raises(ValueError, match=r"may be the image \(photo, mask\); .* to 'image' \(ren"):
        write(masks)
    write(masks.rename_column("photo", "image"))
    check(out, IMAGES, str)


def test_a_folder_that_looks_like_a_name_is_a_folder(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(Path("cub:birds") / "ant" / "1.jpg", "ant", 1)
    keep(capsys, "cub:birds", tmp_path / "out.beton")
    check(tmp_path / "out.beton", [("ant", 1)], str)
    shutil.rmtree("cub:birds")


# The recipes of the docs

RECIPES = Path(__file__).parents[1] / "docs" / "examples" / "sources"


def run(recipe: str, *arguments: Path) -> str:
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(beton: Beton) -> list[tuple[str, int]]:
    """Class and brightness of each image."""
    pixels = (
        np.asarray(Image.open(io.BytesIO(beton.data(i).tobytes()))) for i in range(len(beton))
    )
    return [
        (beton.class_names[label], round(float(image.mean())))
        for label, image in zip(beton.labels, pixels, strict=True)
    ]


def test_the_recipe_for_a_table(tmp_path: Path) -> None:
    lines = ["file,label"]
    for name, number in IMAGES:
        put(tmp_path / "photos" / f"{name} {number}.jpg", name, number)
        lines.append(f'"photos/{name} {number}.jpg",{name}')
    (tmp_path / "images.csv").write_text("\n".join(lines))
    assert "4 images, 3 classes" in run("csv_table", tmp_path / "images.csv", tmp_path / "o.beton")
    expected = [(name, SHADES[name] + number) for name, number in IMAGES]
    assert shown(Beton(tmp_path / "o.beton")) == expected


def test_the_recipe_for_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    names = sorted(SHADES)
    for part in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{part}.tar")) as writer:
            for number, image in enumerate(IMAGES[2 * part :][:2]):
                writer.write(
                    {"__key__": f"{number}", "jpg": jpeg(*image), "cls": names.index(image[0])}
                )
    out = tmp_path / "o.beton"
    assert "4 images" in run("webdataset_shards", out, tmp_path / "0.tar", tmp_path / "1.tar")
    expected = [(str(names.index(name)), SHADES[name] + number) for name, number in IMAGES]
    assert shown(Beton(out)) == expected
