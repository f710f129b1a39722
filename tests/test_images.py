"""Where images come from: folders, datasets and parts of either, and what is wrong with them."""

from __future__ import annotations

import inspect
import io
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, features

from xmix_data import ImageError
from xmix_data.images import (
    MAX_CLASSES,
    ClassFolder,
    ImageFiles,
    MapDataset,
    select,
    torchvision_dataset,
)
from xmix_data.images.torchvision import TORCHVISION_SPLITS

PIXELS = np.zeros((4, 4, 3), np.uint8)


class Pairs:
    """A map-style dataset of given labels; any attribute may be added."""

    def __init__(self, labels: Any, **attributes: Any) -> None:
        self.labels = labels
        self.reads: list[int] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        self.reads.append(index)
        return PIXELS, self.labels[index]


def image_file(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = "PPM" if path.suffix.lower() in (".ppm", ".pgm") else None
    Image.new("RGB", (4, 4), (colour,) * 3).save(path, name)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes b, a, c: nested, linked, with capital suffixes and with files that are no images."""
    root = tmp_path / "images"
    for name in ("b/2.png", "b/10.JPG", "b/1.jpeg", "a/x/z/deep.webp", "a/x.bmp", "a/x/1.TIF"):
        image_file(root / name)
    (root / "a" / "notes.txt").write_text("no image")
    (root / "list.csv").write_text("no image")
    image_file(tmp_path / "elsewhere" / "sub" / "linked.png")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "0.png").symlink_to(root / "b" / "2.png")
    return root


def test_a_class_folder_is_what_image_folder_finds(folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    ours, theirs = ClassFolder(folder), ImageFolder(str(folder))
    assert ours.class_names == theirs.classes == ["a", "b", "c"]
    assert [ours.where(i) for i in range(len(ours))] == [path for path, _ in theirs.samples]
    assert ours.labels().tolist() == theirs.targets == [0, 0, 0, 1, 1, 1, 1, 2]


def test_a_class_folder_yields_the_bytes_of_its_files(folder: Path) -> None:
    source = ClassFolder(folder)
    for index in range(len(source)):
        data, label = source.read(index)
        assert data == Path(source.where(index)).read_bytes()
        assert label == source.labels()[index]


def test_a_class_folder_counts_what_is_no_image_by_suffix(folder: Path) -> None:
    for name in ("a/1.heic", "a/x/2.HEIC", "b/.hidden", "b/3.eps", "4.png"):
        (folder / name).write_bytes(b"")
    source = ClassFolder(folder)
    expected = {".heic": 2, ".txt": 1, ".csv": 1, "hidden": 1, ".eps": 1, ".png": 1}
    assert source.left_out == expected
    assert select(source, per_class=1).left_out == expected  # type: ignore[attr-defined]


HIDDEN = (
    *("a/._x.bmp", "a/x/.DS_Store", "__MACOSX/a/._x.bmp"),  # of a Mac
    *("a/.thumbs/x.bmp", "a/@eaDir/x.bmp/THUMB.jpg"),  # of network drives
    *("b/.jpg", ".notebooks/1.txt", ".4.png"),
)
"""What programs put beside images."""


def test_what_is_hidden_is_no_image(folder: Path) -> None:
    visible = ClassFolder(folder)
    for name in HIDDEN:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"no image")
    source = ClassFolder(folder)
    assert source.class_names == visible.class_names
    assert [source.where(i) for i in range(len(source))] == [
        visible.where(i) for i in range(len(visible))
    ]
    assert source.left_out == {".csv": 1, ".txt": 2, "hidden": 7}


def test_a_hidden_folder_with_images_is_no_class_in_silence(folder: Path) -> None:
    """For `ImageFolder` it is one, and all ids behind it are others."""
    image_file(folder / ".Trash-1000" / "files" / "1.png")
    with pytest.raises(ValueError, match=r"\.Trash-1000: a hidden folder with 1 images among"):
        ClassFolder(folder)


def test_a_folder_of_hidden_folders_has_no_classes(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    image_file(tmp_path / "1.png")
    with pytest.raises(ValueError, match="no class folders in it, but 1 images; put"):
        ClassFolder(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("Train", "val", "Test"),
        ("validation",),
        ("cars_train", "cars_test"),
        ("train2017", "val2017"),
        ("images",),  # TinyImageNet's val
        ("images", "annotations"),  # Oxford's pets
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Instead of the folder above the classes somebody gives the one above that."""
    for name in names:
        image_file(tmp_path / name / "cat" / "1.png")
        assert ClassFolder(tmp_path / name).class_names == ["cat"]
    with pytest.raises(ValueError, match=rf"as the parts .*; give one of them, {tmp_path}/\w+$"):
        ClassFolder(tmp_path)
    image_file(tmp_path / "bus" / "1.png")
    assert "bus" in ClassFolder(tmp_path).class_names  # vehicles, say


@pytest.mark.parametrize(
    "names", [("mask", "no mask"), ("image1", "image2"), ("blood test", "rapid test"), ("trainer",)]
)
def test_classes_may_be_called_after_parts(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        image_file(tmp_path / name / "1.png")
    assert ClassFolder(tmp_path).class_names == list(names)


@pytest.mark.parametrize(
    ("suffix", "kind", "codec"),
    [
        (".gif", "GIF", None),
        (".jfif", "JPEG", None),
        (".jpe", "JPEG", None),
        (".mpo", "MPO", None),
        (".avif", "AVIF", "avif"),
        (".jp2", "JPEG2000", "jpg_2000"),
    ],
)
def test_further_suffixes_are_images_where_pillow_reads_them(
    tmp_path: Path, suffix: str, kind: str, codec: str | None
) -> None:
    for name in (f"a/1{suffix}", f"a/2{suffix.upper()}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if codec and codec not in features.get_supported():
            pytest.skip(f"this Pillow reads no {suffix}")
        Image.new("RGB", (8, 8), "red").save(tmp_path / name, kind)
    source = ClassFolder(tmp_path)
    assert len(source) == 2
    assert Image.open(io.BytesIO(source.read(1)[0])).convert("RGB").getpixel((4, 4))[0] > 200
    assert source.left_out == {}


@pytest.mark.parametrize("suffix", [".eps", ".ps", ".pdf", ".svg", ".heic"])
def test_what_pillow_would_have_to_draw_is_never_an_image(tmp_path: Path, suffix: str) -> None:
    image_file(tmp_path / "a" / "1.png")
    (tmp_path / "a" / f"2{suffix}").write_bytes(b"%!PS")
    source = ClassFolder(tmp_path)
    assert len(source) == 1
    assert source.left_out == {suffix: 1}


def test_file_names_may_be_any_bytes(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"class\xff")
    os.mkdir(folder)
    with open(os.path.join(folder, b"\xfe.png"), "wb") as stream:
        Image.new("RGB", (2, 2)).save(stream, "PNG")
    source = ClassFolder(tmp_path)
    assert os.fsencode(source.class_names[0]) == b"class\xff"
    assert source.read(0)[0].startswith(b"\x89PNG")
    assert source.fingerprint.startswith("files:")


def test_a_class_folder_s_fingerprint_is_that_of_its_files_wherever_they_lie(
    tmp_path: Path,
) -> None:
    for copy in ("here", "there"):
        image_file(tmp_path / copy / "a" / "1.png")
    here, there = ClassFolder(tmp_path / "here"), ClassFolder(tmp_path / "there")
    assert here.fingerprint == there.fingerprint
    with open(tmp_path / "there" / "a" / "1.png", "ab") as stream:
        stream.write(b"longer")
    assert here.fingerprint != there.fingerprint
    image_file(tmp_path / "here" / "a" / "2.png")
    assert ClassFolder(tmp_path / "here").fingerprint != here.fingerprint


def test_labels_and_names_are_in_a_fingerprint(tmp_path: Path) -> None:
    """By it shards belong together: those of other class ids must not."""
    path = str(image_file(tmp_path / "1.png"))
    listed = [
        ImageFiles(tmp_path, [path], [label], names)
        for label, names in ((0, ["a", "b"]), (1, ["a", "b"]), (0, ["b", "a"]))
    ]
    known = [MapDataset(Pairs(labels, targets=labels)) for labels in ([0, 1], [1, 0], [0, 0])]
    odd: list[Any] = [["a", "b"], 5]
    odd = [MapDataset(Pairs([0, 1], targets=targets)) for targets in odd]
    parts = [MapDataset(Pairs([0, 1]), part=part) for part in ("train", "val")]
    for different in (listed, known, parts):
        assert len({source.fingerprint for source in different}) == len(different)
    assert odd[0].fingerprint.startswith("dataset:") and odd[1].labels().tolist() == [0, 1]


def test_a_dangling_link_fails_when_it_is_read_not_before(tmp_path: Path) -> None:
    image_file(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "2.png").symlink_to("nowhere.png")
    source = ClassFolder(tmp_path)
    assert len(source) == 2
    assert source.fingerprint == ClassFolder(tmp_path).fingerprint
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        source.read(1)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; give a folder of class"):
        ClassFolder(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: no class folders in it; put the images"):
        ClassFolder(tmp_path)


def test_loose_images_are_counted_where_class_folders_are_missing(tmp_path: Path) -> None:
    for name in ("1.png", "2.JPG", "3.webp"):
        image_file(tmp_path / name)
    with pytest.raises(ValueError, match="no class folders in it, but 3 images; put the images of"):
        ClassFolder(tmp_path)


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["sub/notes.txt"]])
def test_a_class_without_images_is_named(tmp_path: Path, content: list[str]) -> None:
    image_file(tmp_path / "full" / "1.png")
    (tmp_path / "void").mkdir()
    for name in content:
        (tmp_path / "void" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "void" / name).write_text("no image")
    with pytest.raises(ValueError, match=r"void: no images in this class folder .*add images or"):
        ClassFolder(tmp_path)


def test_two_folders_of_the_same_class_are_refused(tmp_path: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301"):  # the same text, composed and decomposed
        image_file(tmp_path / "unicode" / name / "1.png")
    for name in ("cat", "cat "):
        image_file(tmp_path / "space" / name / "1.png")
    image_file(tmp_path / "link" / "cat" / "1.png")
    (tmp_path / "link" / "felis").symlink_to("cat")
    for root in ("unicode", "space", "link"):
        with pytest.raises(ValueError, match="are two folders of the same class; merge them or"):
            ClassFolder(tmp_path / root)


def test_classes_that_differ_in_case_are_two(tmp_path: Path) -> None:
    for name in ("Jaguar", "jaguar"):
        image_file(tmp_path / name / "1.png")
    assert ClassFolder(tmp_path).class_names == ["Jaguar", "jaguar"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_back_to_a_folder_above_is_refused(tmp_path: Path, target: str) -> None:
    image_file(tmp_path / "a" / "sub" / "1.png")
    (tmp_path / "a" / "sub" / "again").symlink_to(target)
    with pytest.raises(ValueError, match=r"again.*: leads back to a folder above it; rem"):
        ClassFolder(tmp_path)


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    image_file(tmp_path / "a" / "1.png")
    image_file(tmp_path / "b" / "1.png")
    for number in range(3):  # walked on, 3 ** 40 folders
        (tmp_path / "a" / f"b{number}").symlink_to("../b")
        (tmp_path / "b" / f"a{number}").symlink_to("../a")
    with pytest.raises(ValueError, match="leads back to a folder above it"):
        ClassFolder(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    image_file(tmp_path / "a" / "1.png")
    inside = os.open(tmp_path / "a", os.O_RDONLY)
    for _ in range(20):  # deeper than a path may be long: not even root can list the last
        os.mkdir("d" * 250, dir_fd=inside)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(inside)
    with pytest.raises(OSError, match=r"ddd: cannot be listed \(File name too long\); mend or"):
        ClassFolder(tmp_path)


def test_labels_come_from_the_targets_without_reading_images() -> None:
    dataset = Pairs([1, 0, 1], targets=torch.tensor([1, 0, 1]))
    labels = MapDataset(dataset).labels()
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, 0, 1]
    assert dataset.reads == []


@pytest.mark.parametrize("targets", [{}, {"targets": None}, {"targets": [0]}])
def test_labels_are_read_where_the_targets_do_not_tell_them(targets: dict[str, Any]) -> None:
    assert MapDataset(Pairs([2, 0, 1], **targets)).labels().tolist() == [2, 0, 1]


@pytest.mark.parametrize("label", [1, np.int32(1), np.array(1), torch.tensor(1)])
def test_a_label_is_any_kind_of_integer(label: Any) -> None:
    assert MapDataset([(PIXELS, label)]).read(0) == (PIXELS, 1)


@pytest.mark.parametrize("label", ["cat", 1.0, None, np.array([1, 2]), torch.tensor(1.0)])
def test_a_label_that_is_no_integer_is_shown(label: Any) -> None:
    with pytest.raises(ImageError, match=r"the label is .*, expected an integer"):
        MapDataset([(PIXELS, label)]).read(0)
    with pytest.raises(ImageError, match=r"list\[1\]: its label cannot be read: the label is"):
        MapDataset([(PIXELS, 0), (PIXELS, label)]).labels()


@pytest.mark.parametrize("sample", [PIXELS, (PIXELS, 0, 0), {"image": PIXELS}, 5, ()])
def test_a_sample_that_is_no_pair_is_shown_in_one_line(sample: Any) -> None:
    with pytest.raises(ImageError, match=r"expected a pair \(image, integer label\)") as caught:
        MapDataset([sample]).read(0)
    assert "\n" not in str(caught.value)


def test_a_dataset_that_fails_while_its_labels_are_read_is_named() -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index == 2:
                raise RuntimeError("no such row")
            return super().__getitem__(index)

    with pytest.raises(ImageError, match=r"Broken\[2\]: its label cannot be read.*no such row"):
        MapDataset(Broken([0, 0, 0])).labels()


@pytest.mark.parametrize("thing", [3, None, iter([]), {1, 2}])
def test_what_is_no_dataset_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="is no source of images: give a class folder"):
        MapDataset(thing)


def test_class_names_become_text() -> None:
    assert MapDataset(Pairs([0], classes=[7, "b"])).class_names == ["7", "b"]
    assert MapDataset(Pairs([0])).class_names is None


def test_selected_classes_keep_their_order_and_are_renumbered() -> None:
    source = MapDataset(Pairs([2, 0, 1, 2, 0], classes=["a", "b", "c"]))
    part = select(source, classes=iter(["c", "a"]))
    assert part.class_names == ["a", "c"]
    assert part.labels().tolist() == [1, 0, 1, 0]
    assert [part.read(i)[1] for i in range(len(part))] == [1, 0, 1, 0]
    assert [part.where(i) for i in range(len(part))] == [f"Pairs[{i}]" for i in (0, 1, 3, 4)]


def test_classes_without_names_are_selected_by_number() -> None:
    part = select(MapDataset(Pairs([5, 2, 5])), classes=["5"])
    assert part.class_names == ["5"]
    assert part.labels().tolist() == [0, 0]


def test_nothing_selected_is_the_source_itself() -> None:
    source = MapDataset(Pairs([0]))
    assert select(source) is source


def test_per_class_keeps_that_many_of_each_class_or_all() -> None:
    labels = np.random.default_rng(0).permutation([0] * 30 + [1] * 3 + [2] * 10)
    part = select(MapDataset(Pairs(labels.tolist())), per_class=5)
    assert Counter(part.labels().tolist()) == {0: 5, 1: 3, 2: 5}


def test_per_class_is_the_same_sample_in_every_run_and_grows_with_k() -> None:
    source = MapDataset(Pairs([i % 3 for i in range(60)]))

    def kept(count: int) -> list[str]:
        part = select(source, per_class=count)
        return [part.where(i) for i in range(len(part))]

    assert kept(4) == kept(4)
    assert set(kept(4)) < set(kept(7))
    assert kept(4) != [f"Pairs[{i}]" for i in range(12)]  # a sample, not the first ones


def test_per_class_and_classes_work_together() -> None:
    part = select(MapDataset(Pairs([i % 3 for i in range(30)])), classes=["0", "2"], per_class=4)
    assert part.class_names == ["0", "2"]
    assert Counter(part.labels().tolist()) == {0: 4, 1: 4}


def test_a_selection_s_fingerprint_tells_selections_apart() -> None:
    source = MapDataset(Pairs([0, 1, 0, 1]))
    parts = [
        select(source, per_class=1),
        select(source, classes=["0"]),
        select(source, per_class=2),
    ]
    assert len({source.fingerprint, *(part.fingerprint for part in parts)}) == 4


def test_an_unknown_class_is_named() -> None:
    source = MapDataset(Pairs([0], classes=["cat", "dog"]))
    with pytest.raises(
        ValueError, match=r"'cow' is not in the source, which has 2 classes \(cat, "
    ):
        select(source, classes=["cat", "cow"])


def test_a_class_listed_twice_is_named() -> None:
    with pytest.raises(ValueError, match="class 'cat' is listed twice; remove one"):
        select(MapDataset(Pairs([0], classes=["cat"])), classes=["cat", "cat"])


@pytest.mark.parametrize("count", [0, -1])
def test_per_class_below_one_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"per_class is {count}; it must be at least 1"):
        select(MapDataset(Pairs([0])), per_class=count)


@pytest.mark.parametrize(
    ("label", "options", "classes"),
    [
        (2, {"classes": ["a", "b"]}, "the 2 classes"),
        (-1, {"classes": ["a", "b"]}, "the 2 classes"),
        (-1, {}, "0 .. 1048575"),
        (MAX_CLASSES, {}, "0 .. 1048575"),
    ],
)
def test_a_selection_never_drops_a_label_outside_the_classes(
    label: int, options: dict[str, Any], classes: str
) -> None:
    source = MapDataset(Pairs([0, 1, label], **options))
    with pytest.raises(ImageError, match=rf"Pairs\[2\]: label {label} is none of {classes}; corr"):
        select(source, per_class=1)


def test_a_selection_by_targets_that_disagree_with_the_labels_is_refused() -> None:
    part = select(MapDataset(Pairs([1, 0], targets=[0, 1])), per_class=1)
    with pytest.raises(ImageError, match="its label is 1, and 0 by the dataset's `targets`; make"):
        part.read(0)


def test_a_torchvision_dataset_is_found_by_name(folder: Path) -> None:
    made = MapDataset(torchvision_dataset("ImageFolder", folder))
    assert made.class_names == ["a", "b", "c"]
    assert len(made) == len(ClassFolder(folder))
    image, label = made.read(0)
    opened = Image.open(io.BytesIO(image))  # the file as it is
    assert (opened.mode, opened.size, label) == ("RGB", (4, 4), 0)


@pytest.mark.parametrize("name", ["Flowers", "VisionDataset2", "__all__", "utils"])
def test_an_unknown_torchvision_dataset_is_answered_with_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=f"no dataset {name!r}; it has .*CIFAR10, .*Flowers102"):
        torchvision_dataset(name, "data", "train")


def test_a_split_that_a_torchvision_dataset_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torchvision:CIFAR10 has the splits train and test, not"):
        torchvision_dataset("CIFAR10", tmp_path, "val")
    with pytest.raises(ValueError, match="val2"):
        torchvision_dataset("Flowers102", tmp_path, "val2")


@pytest.mark.parametrize(
    "name", [n for n in torchvision.datasets.__all__ if n[0].isupper() and n != "VisionDataset"]
)
def test_no_torchvision_dataset_ignores_a_split_that_it_lacks(name: str, tmp_path: Path) -> None:
    """All of them, and before anything is looked for or downloaded."""
    with pytest.raises(ValueError, match=rf"torchvision:{name}\b.*split") as refused:
        torchvision_dataset(name, tmp_path, "nonsense")
    taken = {"split", "train", "image_set", "version", "background", "what", "classes"}
    kind = getattr(torchvision.datasets, name)
    if taken & set(inspect.signature(kind).parameters):
        assert re.search(r"has the splits .* and |Valid values are", str(refused.value))
    else:
        assert "has no splits" in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(set(TORCHVISION_SPLITS) - {"CelebA", "LSUN"}))
def test_the_splits_of_torchvision_are_those_that_it_names(name: str, tmp_path: Path) -> None:
    splits, kind = TORCHVISION_SPLITS[name], getattr(torchvision.datasets, name)
    assert splits.default in (None, *splits.options)
    (argument, *_), *_ = splits.options.values()
    if argument == "background":
        assert [options[argument] for options in splits.options.values()] == [True, False]
        return
    more = {"frames_per_clip": 1} if name == "Kinetics" else {}
    with pytest.raises((ValueError, RuntimeError)) as refused:
        kind(tmp_path, **{argument: "nonsense"}, **more)
    if "h5py" not in str(refused.value):
        listed = re.findall(r"'([^']+)'", str(refused.value).partition("Valid values are")[2])
        assert set(listed) == {options[argument] for options in splits.options.values()}


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("FGVCAircraft", "train"),
        ("INaturalist", "2021_train"),
        ("LSUN", "train"),
        ("Omniglot", "background"),
        ("OxfordIIITPet", "trainval"),
        ("Places365", "train-standard"),
        ("QMNIST", "train"),
    ],
)
def test_the_usual_split_is_train_or_the_data_set_s_own(name: str, default: str) -> None:
    assert TORCHVISION_SPLITS[name].default == default


@pytest.mark.parametrize("split", ["2021_train", "2021_valid", None])
def test_a_split_of_torchvision_is_the_part_that_is_read(split: str | None, tmp_path: Path) -> None:
    part = split or "2021_train"
    for other in ("2021_train", "2021_valid"):
        for number, kind in enumerate(("cat", "dog")):
            species = f"0000{number}_Animalia_Chordata_Mammalia_Carnivora_Any_{kind}_one"
            image_file(tmp_path / other / species / f"{other}.jpg")
    made = MapDataset(torchvision_dataset("INaturalist", tmp_path, split))
    assert made.class_names == [species.replace("00001", "00000").replace("dog", "cat"), species]
    data = (tmp_path / part / species / f"{part}.jpg").read_bytes()
    assert [made.read(i) for i in range(len(made))] == [(data, 0), (data, 1)]


def test_a_torchvision_dataset_has_names_whatever_it_calls_them(tmp_path: Path) -> None:
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    for kind in ("lotus", "anchor", "BACKGROUND_Google"):
        image_file(folder / kind / "image_0001.jpg")
    (tmp_path / "caltech101" / "Annotations").mkdir()
    made = MapDataset(torchvision_dataset("Caltech101", tmp_path))
    assert made.class_names == ["anchor", "lotus"]
    assert made.read(1)[1] == 1


def test_the_split_that_is_taken_is_said_where_there_are_several(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xmix_data")
    base = tmp_path / "food-101"
    (base / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        (base / "meta" / f"{split}.json").write_text('{"tart": ["tart/1"]}')
    image_file(base / "images" / "tart" / "1.jpg")
    torchvision_dataset("Food101", tmp_path)
    assert caplog.messages == [
        "torchvision:Food101 has the splits train and test; train is taken, --split takes another"
    ]
    torchvision_dataset("Food101", tmp_path, "test")
    image_file(tmp_path / "eurosat" / "2750" / "Forest" / "1.jpg")
    torchvision_dataset("EuroSAT", tmp_path)
    assert len(caplog.messages) == 1


def test_emnist_names_no_usual_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"EMNIST has the splits byclass, .*; choose one with"):
        torchvision_dataset("EMNIST", tmp_path)


def test_a_torchvision_dataset_that_needs_more_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CocoDetection also needs annFile; make the dataset in P"):
        torchvision_dataset("CocoDetection", tmp_path)


def test_a_torchvision_download_that_fails_says_where_to_put_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        OSError, match=r"torchvision:MNIST: .*put the data set's files below .*file"
    ):
        torchvision_dataset("MNIST", tmp_path / "file", "train")
