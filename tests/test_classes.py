"""Class ids are those of the data set that is named, whatever a beton's own numbers are."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons, reversed_pairing
from pictures import Images, encoded, picture, written
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder

from xmix_data import (
    Beton,
    BetonError,
    CenterCrop,
    Centroids,
    ImageError,
    ImageLoader,
    PairedClass,
    Pairing,
    RandomCrop,
    XMixLoader,
)
from xmix_data.beton import manifest_path, open_domain, open_images
from xmix_data.cli import main
from xmix_data.images import ClassFolder, MapDataset, select

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
OPTIONS: dict[str, Any] = {"batch_size": 5, "crop": CenterCrop(16)}


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's log handler belongs to the stderr of one test."""
    monkeypatch.setattr(logging.getLogger("xmix_data"), "handlers", [])


def small(path: Path, classes: Any, labels: list[int], **options: Any) -> Beton:
    """A beton of small pictures; the red of each is 10 times its label."""
    data = Shaded(labels)
    if classes is not None:
        data.classes = classes
    return written(data, path, image_size=16, encoding="raw", **options)


class Shaded:
    """A map-style dataset: the red of an image is 10 times its label."""

    classes: Any

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[..., 0] = 10 * self.labels[index] % 256
        return pixels, self.labels[index]


def delivered(loader: ImageLoader) -> list[tuple[int, int]]:
    """Own label, by the colour, and delivered label of each image."""
    pairs = []
    for images, labels in loader:
        pairs += [
            (int(image[0, 0, 0]) // 10, int(label))
            for image, label in zip(images, labels, strict=True)
        ]
    return pairs


def loaded(beton: Any, **options: Any) -> ImageLoader:
    return ImageLoader(beton, dtype=torch.uint8, **{**OPTIONS, **options})


@pytest.fixture
def train(tmp_path: Path) -> Beton:
    return small(tmp_path / "train.beton", ["ant", "bee", "cat", "dog"], [0, 1, 2, 3])


@pytest.fixture
def test(tmp_path: Path) -> Beton:
    """A test set that lacks a class of the training set, and has an empty one that it lacks."""
    return small(tmp_path / "test.beton", ["ant", "cow", "cat", "dog"], [0, 2, 3, 3, 2, 0])


# ImageLoader(classes_from=)


@pytest.mark.parametrize("kind", ["beton", "path", "text", "domain", "list", "tuple", "loaders"])
def test_labels_are_counted_as_another_data_set_counts_them(
    kind: str, train: Beton, tmp_path: Path, backend: str
) -> None:
    few = small(tmp_path / "few.beton", ["bee", "dog"], [0, 1, 1])
    names = ["ant", "bee", "cat", "dog"]
    for given in {
        "beton": [train],
        "path": [train.path],
        "text": [str(train.path)],
        "domain": [open_domain(train), [train]],
        "list": [names],
        "tuple": [tuple(names), np.array(names)],
        "loaders": [
            loaded(train),
            XMixLoader(train, train, reversed_pairing(train, train), **OPTIONS | {"batch_size": 2}),
            loaded(few, classes_from=train),
        ],
    }[kind]:
        with loaded(few, classes_from=given, backend=backend) as loader:
            assert delivered(loader) == [(0, 1), (1, 3), (1, 3)]
            assert loader.num_target_classes == 4
            assert loader.classes_from == loader.dataset.classes == names
            assert loader.dataset.class_to_idx == {n: i for i, n in enumerate(names)}
            assert loader.dataset.targets == [1, 3, 3]
            assert "4 target classes" in repr(loader)


def test_without_it_labels_are_the_beton_s_own(test: Beton) -> None:
    with loaded(test) as loader:
        assert loader.classes_from is None
        assert [label for _, label in delivered(loader)] == [0, 2, 3, 3, 2, 0]


def test_a_class_without_images_may_be_missing(test: Beton, train: Beton) -> None:
    with loaded(test, classes_from=train) as loader:
        assert delivered(loader) == [(0, 0), (2, 2), (3, 3), (3, 3), (2, 2), (0, 0)]


def test_a_class_with_images_to_load_that_is_missing_is_named(test: Beton) -> None:
    names = ["dog", "ant"]
    with pytest.raises(
        ValueError, match=r"class 'cat' of .*test\.beton is none of the 2 classes of the list of na"
    ):
        loaded(test, classes_from=names)
    with loaded(test, classes_from=names, classes=["dog", "ant"]) as loader:  # no cat to load
        assert delivered(loader) == [(0, 1), (3, 0), (3, 0), (0, 1)]
        assert loader.dataset.targets == [1, 0, 0, 1]


def test_names_that_stand_twice_are_refused(test: Beton, train: Beton) -> None:
    with pytest.raises(ValueError, match="classes 0 and 2 of the list of names are both named 'an"):
        loaded(test, classes_from=["ant", "bee", "ant"])
    with pytest.raises(ValueError, match=r"train\.beton, .*train\.beton are both named 'ant'"):
        loaded(test, classes_from=[train, train])


@pytest.mark.parametrize("given", [5, {"ant": 0}, object(), {"ant"}])
def test_what_names_no_classes_is_refused(given: Any, test: Beton) -> None:
    with pytest.raises(ValueError, match=r"classes_from is .*; give a beton, its path, a Domain"):
        loaded(test, classes_from=given)


def test_a_list_of_betons_is_counted_part_by_part(
    test: Beton, train: Beton, tmp_path: Path
) -> None:
    more = small(tmp_path / "more.beton", ["dog", "bee"], [0, 1])
    with loaded([test, more], classes_from=[train]) as loader:
        assert [label for _, label in delivered(loader)] == [0, 2, 3, 3, 2, 0, 3, 1]
    bees = small(tmp_path / "bees.beton", ["bee"], [0])
    with loaded(more, classes_from=[test.path, bees]) as loader:
        assert loader.num_target_classes == 5
        assert delivered(loader) == [(0, 3), (1, 4)]


def test_it_goes_with_a_pairing_shuffling_and_ranks(betons: Betons) -> None:
    source = betons.source_raw
    names = [*reversed(source.class_names), "more"]
    options: dict[str, Any] = {"pairing": betons.pairing, "crop": CenterCrop(16), "batch_size": 3}
    with (
        ImageLoader(source, shuffle=True, **options) as own,
        ImageLoader(source, shuffle=True, classes_from=names, **options) as mapped,
        ImageLoader(source, shuffle=True, classes_from=names, rank=1, world_size=2, **options) as r,
    ):
        for (images, labels), (same, numbers) in zip(own, mapped, strict=True):
            assert torch.equal(images, same)
            assert [source.class_names[i] for i in labels] == [names[i] for i in numbers]
        assert own.state_dict()["samples"] == mapped.state_dict()["samples"]
        assert next(iter(r))[1].dtype == torch.int64


def test_a_state_stays_that_of_the_beton(test: Beton, train: Beton) -> None:
    with loaded(test) as own, loaded(test, classes_from=train) as mapped:
        batches = iter(own)
        next(batches)
        mapped.load_state_dict(own.state_dict())
        assert delivered(mapped) == [(0, 0)]
        assert own.state_dict()["samples"] == mapped.state_dict()["samples"]


def test_copies_count_alike(test: Beton, train: Beton) -> None:
    with loaded(test, classes_from=loaded(train)) as loader:
        expected = delivered(loader)
        for twin in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
            assert twin.classes_from == loader.classes_from
            with twin:
                assert delivered(twin) == expected
    unread = pickle.loads(pickle.dumps(loaded(train)))  # opened where it is asked for its classes
    with loaded(test, classes_from=unread) as loader:
        assert delivered(loader) == expected


# Betons without names


def without_manifest(beton: Beton, path: Path) -> Beton:
    shutil.copy(beton.path, path)
    return Beton(path)


def test_a_list_names_the_ids_of_a_beton_without_names(train: Beton, tmp_path: Path) -> None:
    numbers = small(tmp_path / "numbers.beton", None, [2, 0, 1])
    for beton in (numbers, without_manifest(train, tmp_path / "alone.beton")):
        names = ["x", "y", "z", "0"] if beton is not numbers else ["x", "y", "z"]
        with loaded(beton, classes_from=names) as loader:
            assert all(own == label for own, label in delivered(loader))
            assert loader.dataset.classes == names
        twin = pickle.loads(pickle.dumps(loader))
        assert twin.dataset.classes == names
    with pytest.raises(ValueError, match=r"class '2' of .*numbers\.beton is none of the 2 classes"):
        loaded(numbers, classes_from=["x", "y"])


def test_names_that_are_numbers_are_names_where_the_list_has_them(tmp_path: Path) -> None:
    digits = small(tmp_path / "digits.beton", ["0", "1", "2"], [0, 1, 2])
    with loaded(digits, classes_from=["2", "0", "1"]) as loader:
        assert delivered(loader) == [(0, 1), (1, 2), (2, 0)]
    with pytest.raises(ValueError, match=r"class '2' of .*digits\.beton is none of the 2 classes"):
        loaded(digits, classes_from=["0", "1"])


def test_a_missing_manifest_is_named_wherever_a_class_is_not_found(
    train: Beton, test: Beton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = without_manifest(train, tmp_path / "alone.beton")
    said = r"alone\.beton has no manifest, so that its classes are numbers: put alone\.beton\.json "
    pairing = reversed_pairing(train, train)
    with pytest.raises(ValueError, match=said):
        XMixLoader(alone, train, pairing, **OPTIONS)
    with pytest.raises(ValueError, match=said):
        XMixLoader(train, alone, pairing, **OPTIONS)
    with pytest.raises(ValueError, match=said):
        XMixLoader(train, [test, alone], pairing, **OPTIONS)
    with pytest.raises(ValueError, match=said):
        loaded(alone, pairing=pairing)
    with pytest.raises(ValueError, match=said):
        loaded(alone, classes=["ant"])
    with pytest.raises(ValueError, match=said):
        loaded(alone, classes_from=train)
    with pytest.raises(ValueError, match=said):
        loaded(test, classes_from=alone)
    with pytest.raises(ValueError, match=said):
        written(alone, tmp_path / "o.beton", classes_from=train)
    with pytest.raises(ValueError, match=said):
        some = select(open_images(alone), per_class=1)
        written(some, tmp_path / "o.beton", classes_from=train)
    with pytest.raises(ValueError, match=said):
        written(test, tmp_path / "o.beton", classes_from=alone)
    pairing.save(tmp_path / "pairing.json")
    (tmp_path / "classes").write_text("ant\n")
    for option, file in (("--pairing", "pairing.json"), ("--classes", "classes")):
        arguments = ["convert", alone.path, tmp_path / "o.beton", option, tmp_path / file]
        assert main([str(a) for a in arguments]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.glob("o.beton*"))
    with loaded(alone, classes_from=alone) as loader:  # numbers are numbers
        assert [label for _, label in delivered(loader)] == [0, 1, 2, 3]


# write_beton(classes_from=), xmix convert --classes-from


def test_a_conversion_takes_names_and_ids(train: Beton, tmp_path: Path) -> None:
    for number, given in enumerate(
        (train, train.path, ["ant", "bee", "cat", "dog"], loaded(train))
    ):
        part = small(
            tmp_path / f"{number}.beton", ["dog", "ant", "cow"], [1, 0, 0], classes_from=given
        )
        assert part.class_names == ["ant", "bee", "cat", "dog"]
        assert part.labels.tolist() == [0, 3, 3]
        assert part.class_counts == [1, 0, 0, 2]
    folder = tmp_path / "images"
    for name in ("dog", "bee"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").write_bytes(encoded(picture(16, 16)))
    made = written(folder, tmp_path / "folder.beton", image_size=16, classes_from=train)
    assert made.labels.tolist() == [1, 3]


def test_a_conversion_refuses_a_class_with_images_that_is_missing(
    train: Beton, tmp_path: Path
) -> None:
    out = tmp_path / "o.beton"
    with pytest.raises(
        ValueError, match=r"classes 'cow', 'emu' of the data set for .*o\.beton are non"
    ):
        small(out, ["cow", "ant", "emu"], [1, 0, 2], classes_from=train)
    with pytest.raises(ValueError, match="classes 0 and 1 of the list of names are both named 'a'"):
        small(out, ["a"], [0], classes_from=["a", "a"])
    with pytest.raises(
        ValueError, match=r"classes '0', '1' of .* of .*train\.beton; it has no class names: gi"
    ):
        small(out, None, [0, 1], classes_from=train)
    with pytest.raises(
        ImageError, match=r"Shaded\[2\]: label 2 is none of the classes of classes_f"
    ):
        small(out, None, [0, 1, 2], classes_from=["a", "b"])
    for options in ({"classes_from": ["0"]}, {"classes_from": train}, {"shard": (1, 2)}):
        with pytest.raises(ValueError, match=r"class(es)? '0'|label 1099511627776 is none of"):
            small(out, None, [0, 1 << 40], **options)
    with pytest.raises(ImageError, match=r"Shaded\[1\]: label 3 is none of the 2 classes; correct"):
        small(out, ["ant", "bee"], [0, 3], classes_from=train)
    assert not list(tmp_path.glob("o.beton*"))


def test_a_list_names_the_ids_of_a_dataset_without_names(train: Beton, tmp_path: Path) -> None:
    for number, given in enumerate((None, train)):
        source = (
            Shaded([2, 0, 1]) if given is None else without_manifest(train, tmp_path / "a.beton")
        )
        names = ["x", "y", "z", "0"]
        made = written(
            source, tmp_path / f"{number}.beton", image_size=16, encoding="raw", classes_from=names
        )
        assert made.class_names == names
        assert made.labels.tolist() == ([2, 0, 1] if given is None else [0, 1, 2, 3])


def test_shards_may_take_names_and_ids(train: Beton, tmp_path: Path) -> None:
    parts = [
        small(
            tmp_path / f"{i}.beton", ["dog", "ant"], [0, 1, 1, 0], shard=(i, 2), classes_from=train
        )
        for i in range(2)
    ]
    assert open_domain(parts).labels.tolist() == [3, 0, 0, 3]


def test_the_command_takes_names_and_ids(
    train: Beton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "images", tmp_path / "o.beton"
    for name in ("ant", "dog", "emu"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").write_bytes(encoded(picture(16, 16)))
    arguments = ["convert", folder, out, "--workers", 0, "--classes-from", train.path]
    assert main([str(a) for a in arguments]) == 2
    assert "class 'emu'" in capsys.readouterr().err
    assert not list(tmp_path.glob("o.beton*"))
    (tmp_path / "classes").write_text("dog\nant\n")
    assert main([str(a) for a in [*arguments, "--classes", tmp_path / "classes"]]) == 0
    assert Beton(out).class_names == train.class_names
    assert Beton(out).labels.tolist() == [0, 3]
    assert "2 of 4 classes have no images: bee, cat" in capsys.readouterr().err


# Names of datasets


def test_names_come_through_subsets_of_subsets() -> None:
    images = Images([3, 2], "c")
    part = Subset(Subset(images, [4, 0, 1]), [0, 2])
    source = MapDataset(part)
    assert source.class_names == ["c0", "c1"]
    assert source.labels().tolist() == [1, 0]
    assert MapDataset(Subset(Shaded([0]), [0])).class_names is None
    part.classes = ["own", "names"]  # type: ignore[attr-defined]
    assert MapDataset(part).class_names == ["own", "names"]


def test_a_split_of_a_folder_keeps_its_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "images" / name / f"{i}.png").write_bytes(encoded(picture(16, 16), "PNG"))
    whole = ImageFolder(str(tmp_path / "images"))
    parts = torch.utils.data.random_split(whole, [6, 2], torch.Generator().manual_seed(0))
    made = [
        written(part, tmp_path / f"{i}.beton", image_size=16, num_workers=i)
        for i, part in enumerate(parts)
    ]
    for part, beton in zip(parts, made, strict=True):
        assert beton.class_names == ["a", "b"]
        assert beton.labels.tolist() == [whole.targets[i] for i in part.indices]


def test_joined_datasets_have_the_names_that_all_have() -> None:
    same = ConcatDataset([Images([1, 1], "c"), Subset(Images([2, 2], "c"), [3])])
    assert MapDataset(same).class_names == ["c0", "c1"]
    assert MapDataset(ConcatDataset([Shaded([0]), Shaded([1])])).class_names is None
    for other in (Images([1, 1], "d"), Shaded([0])):
        with pytest.raises(
            ValueError, match=r"parts 0 and 1 of the ConcatDataset have different c"
        ):
            MapDataset(ConcatDataset([Images([1, 1], "c"), other]))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("a", "b"), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        ([("tench", "Tinca tinca"), ("goldfish",)], ["tench, Tinca tinca", "goldfish"]),
        ([3, 4], ["3", "4"]),
    ],
)
def test_names_may_be_any_list(classes: Any, expected: list[str]) -> None:
    data = Shaded([0])
    data.classes = classes
    assert MapDataset(data).class_names == expected


@pytest.mark.parametrize("classes", [10, {"cat": 0}, {"cat", "dog"}])
def test_what_is_no_list_of_names_is_shown(classes: Any, tmp_path: Path) -> None:
    data = Shaded([0])
    data.classes = classes
    with pytest.raises(ValueError, match=r"Shaded\.classes is .*; make it a list with the name of"):
        written(data, tmp_path / "o.beton")


def test_wordnet_ids_are_the_names_where_there_are_some() -> None:
    data = Shaded([0])
    data.classes = [("crane",), ("crane",)]
    data.wnids = ["n02012849", "n03126707"]  # type: ignore[attr-defined]
    assert MapDataset(Subset(data, [0])).class_names == ["n02012849", "n03126707"]


# One Unicode form


def test_names_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    composed = small(tmp_path / "c.beton", ["bar", COMPOSED], [0, 1])
    decomposed = small(tmp_path / "d.beton", [DECOMPOSED, "bar"], [0, 1])
    assert decomposed.class_names == [COMPOSED, "bar"]
    for given in (composed, ["bar", DECOMPOSED], ["bar", COMPOSED]):
        with loaded(decomposed, classes_from=given) as loader:
            assert delivered(loader) == [(0, 1), (1, 0)]
            assert loader.dataset.classes == ["bar", COMPOSED]
    for name in (COMPOSED, DECOMPOSED):
        with loaded(decomposed, classes=[name]) as loader:
            assert delivered(loader) == [(0, 0)]
        pairing = Pairing({name: [PairedClass("bar", 0.5, 1)], "bar": [PairedClass(name, 0.5, 1)]})
        pairing.save(tmp_path / "p.json")
        for given in (pairing, tmp_path / "p.json"):
            with XMixLoader(
                decomposed, composed, given, batch_size=2, crop=RandomCrop(16)
            ) as loader:
                batch = next(iter(loader))
                assert batch.source_labels.tolist() == batch.target_labels.tolist()
        assert pairing.classes_in([DECOMPOSED, "bar"], "any") == ["bar", COMPOSED]
    assert Centroids(np.eye(1), np.ones(1), [DECOMPOSED]).class_names == [COMPOSED]


def test_names_that_look_the_same_are_not_two(tmp_path: Path) -> None:
    both = [COMPOSED, DECOMPOSED]
    with pytest.raises(ValueError, match="classes 0 and 1 are both named"):
        small(tmp_path / "o.beton", both, [0, 1])
    with pytest.raises(ValueError, match="are both named"):
        small(tmp_path / "o.beton", ["a"], [0], classes_from=both)
    with pytest.raises(ValueError, match="two target classes are named"):
        Pairing({name: [PairedClass("s", 0.5, 1)] for name in both})
    with pytest.raises(ValueError, match="two classes are named"):
        Centroids(np.eye(2), np.ones(2), both)
    beton = small(tmp_path / "o.beton", ["x", "y"], [0, 1])
    manifest = json.loads(manifest_path(beton.path).read_text())
    manifest_path(beton.path).write_text(json.dumps({**manifest, "class_names": both}))
    with pytest.raises(BetonError, match="two classes have the same name"):
        Beton(beton.path)


def test_a_folder_of_a_mac_has_the_names_of_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (DECOMPOSED, "bar"):
        (tmp_path / "mac" / name).mkdir(parents=True)
        (tmp_path / "mac" / name / "1.png").write_bytes(encoded(picture(16, 16), "PNG"))
    source = ClassFolder(tmp_path / "mac")
    assert source.class_names == ["bar", COMPOSED]
    assert len(source.read(1)[0]) > 0
    for number, name in enumerate((COMPOSED, DECOMPOSED)):
        assert len(select(source, classes=[name])) == 1
        (tmp_path / "classes").write_text(f"{name}\n", encoding="utf-8")
        out = tmp_path / f"{number}.beton"
        arguments = ["convert", tmp_path / "mac", out, "--classes", tmp_path / "classes"]
        assert main([*map(str, arguments), "--workers", "0"]) == 0
        assert Beton(out).class_names == [COMPOSED]
        assert unicodedata.is_normalized("NFC", manifest_path(out).read_text(encoding="utf-8"))
    capsys.readouterr()


def test_an_earlier_manifest_may_have_another_form(tmp_path: Path) -> None:
    beton = small(tmp_path / "o.beton", [COMPOSED], [0])
    text = manifest_path(beton.path).read_text(encoding="utf-8")
    manifest_path(beton.path).write_text(text.replace(COMPOSED, DECOMPOSED), encoding="utf-8")
    assert Beton(beton.path).class_names == [COMPOSED]


# Classes that are left without images


def test_a_class_without_images_is_said_and_in_the_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xmix_data")
    for name in ("ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(encoded(picture(16, 16), "PNG"))
    (tmp_path / "images" / "bee" / "1.png").write_bytes(b"broken")
    out = tmp_path / "o.beton"
    made = written(tmp_path / "images", out, on_error="skip", image_size=16)
    assert made.class_names == ["ant", "bee"]
    assert f"{out}: 1 of 2 classes have no images: bee" in caplog.messages
    assert made.manifest is not None
    assert made.manifest["classes_without_images"] == ["bee"]
    caplog.clear()
    whole = small(tmp_path / "whole.beton", ["a", "b"], [0, 1])
    assert whole.manifest is not None
    assert whole.manifest["classes_without_images"] == []
    part = small(tmp_path / "part.beton", ["a", "b"], [0, 1], shard=(0, 2))
    assert part.manifest is not None
    assert part.manifest["classes_without_images"] == ["b"]
    assert caplog.messages == []
    many = small(tmp_path / "many.beton", [f"c{i}" for i in range(20)], [0])
    assert caplog.messages[0].endswith(
        "19 of 20 classes have no images: c1, c2, c3, c4, c5, c6, c7, c8, ..."
    )
    assert many.class_counts == [1] + [0] * 19
