"""What comes from other frameworks by mistake: one clear error, with what to give instead."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import Betons, Images, written
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from xmix_data import (
    CenterCrop,
    Centroids,
    ImageLoader,
    JointHead,
    MixedBatch,
    Pairing,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
    pair_classes,
    xmixup_loss,
)
from xmix_data.beton import open_domain
from xmix_data.methods import FineTune, TransferNetwork, XMixup
from xmix_data.report import write_report
from xmix_data.training import Recipe, evaluate, fit

B, N, M = 4, 3, 5
TARGET, SOURCE = torch.zeros(B, N), torch.zeros(B, M)
IMAGES, T, S, LAM = torch.zeros(B, 3, 8, 8), torch.arange(B) % N, torch.arange(B), torch.rand(B)
MIXED = MixedBatch(IMAGES, T, S, LAM)


class Output(dict[str, Any]):
    """As transformers' models and torchvision's segmentation give."""


@pytest.mark.parametrize(
    ("target", "source", "batch", "message"),
    [
        (Output(logits=TARGET), SOURCE, MIXED, r"target_logits is a Output; .* outputs\.logits"),
        (TARGET, (SOURCE, SOURCE), MIXED, "source_logits is a tuple; give its tensor of logits"),
        (SOURCE, TARGET, MIXED, "source label 3 does not fit a source head of 3 outputs; make it"),
        (TARGET[:2], SOURCE, MIXED, r"target_logits has shape \(2, 3\), expected \(4, classes\)"),
        (TARGET[..., None], SOURCE, MIXED, r"target_logits has shape \(4, 3, 1\)"),
        (TARGET, SOURCE, (IMAGES, torch.zeros(B, N + M)), 'a tuple of 2; give .* labels="pair"'),
        (TARGET, SOURCE, [IMAGES, T], "the batch is a list of 2; give what XMixLoader"),
        (TARGET, SOURCE, IMAGES, "the batch is a Tensor; give what XMixLoader"),
        (TARGET, SOURCE, {"pixel_values": IMAGES, "labels": T}, "a dict of pixel_values, labels;"),
        (TARGET, SOURCE, (IMAGES, LAM, T, S), r"target_labels is torch\.float32 of shape \(4,\); "),
        (TARGET, SOURCE, (IMAGES, T, nn.functional.one_hot(S), LAM), r"source_labels .* \(4, 4\)"),
        (TARGET.to("meta"), SOURCE, MIXED, 'on meta and the batch on cpu; .* device="meta"'),
    ],
)
def test_the_loss_says_what_to_give(target: Any, source: Any, batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        xmixup_loss(target, source, batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JointHead("512", 4, 6), "features is '512'; it must be a whole number"),
        (lambda: JointHead(512, ["a", "b"], 6), "num_target is .*; it must be a whole number"),
        (
            lambda: JointHead.from_linear(torchvision.models.mobilenet_v3_small().classifier, 4),
            r"classifier is a Sequential; give the torch\.nn\.Linear .* model\.classifier\[-1\]",
        ),
    ],
)
def test_the_joint_head_says_what_to_give(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture
def loader(betons: Betons) -> XMixLoader:
    files = betons.target_raw, betons.source_raw, betons.pairing
    return XMixLoader(*files, batch_size=8, crop=RandomCrop(32))


@pytest.mark.parametrize("crop", [128, (128, 128), torchvision.transforms.RandomCrop(32), None])
def test_set_crop_says_what_to_give(loader: XMixLoader, crop: Any) -> None:
    before = loader.crop
    with pytest.raises(
        ValueError, match=r"crop is .*; give RandomCrop, .* e\.g\. RandomCrop\(224\)"
    ):
        loader.set_crop(crop)
    assert loader.crop is before and len(list(loader)) == len(loader)


def test_classes_from_says_what_to_give(betons: Betons) -> None:
    folder = SimpleNamespace(class_to_idx={"t0": 0}, classes=["t0"])  # as torchvision's datasets
    for given in (folder, folder.class_to_idx, folder.class_to_idx.keys()):
        with pytest.raises(ValueError, match=r"is a \w+; give a beton, .* e\.g\. dataset\.classes"):
            ImageLoader(betons.target_raw, batch_size=8, crop=CenterCrop(32), classes_from=given)


def test_a_dataset_is_no_beton(betons: Betons) -> None:
    images = TensorDataset(IMAGES, T)
    for given in (images, DataLoader(images), [images, betons.target_raw], None):
        with pytest.raises(ValueError, match=r"a \w+ is no beton; give the path .*write_beton"):
            XMixLoader(given, betons.source_raw, betons.pairing, batch_size=8)  # type: ignore[arg-type]


def test_pairs_in_a_dict_are_no_pairing(betons: Betons) -> None:
    files = betons.target_raw, betons.source_raw
    for given in ({"t0": "s0"}, 5, None):
        with pytest.raises(ValueError, match=r"a \w+ is no pairing; give a Pairing, or the path"):
            XMixLoader(*files, given, batch_size=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a int is no pairing"):
        write_report(5, *files, "report.html")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a dict is no pairing"):
        ImageLoader(betons.source_raw, batch_size=8, crop=CenterCrop(32), pairing={})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a Domain is no pairing"):
        fit(
            XMixup(),
            Body(nn.Linear(12, 10)),
            betons.target_raw,
            source=betons.source_raw,
            pairing=open_domain(betons.source_raw),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("backend", ["hosts", ["host"], None])
def test_a_backend_is_one_of_the_known_names(betons: Betons, backend: Any) -> None:
    files = betons.target_raw, betons.source_raw, betons.pairing
    with pytest.raises(ValueError, match=r"backend is .*; it must be one of host, dali, reference"):
        XMixLoader(*files, batch_size=8, crop=RandomCrop(32), backend=backend)


class Body(nn.Module):
    """A network that ends in a layer, as most do."""

    def __init__(
        self, last: nn.Module, wraps: Callable[[Any], Any] = lambda logits: logits
    ) -> None:
        super().__init__()
        self.pool, self.last, self.wraps = nn.AdaptiveAvgPool2d(2), last, wraps

    def forward(self, images: torch.Tensor) -> Any:
        return self.wraps(self.last(self.pool(images).flatten(1)))


def clean_images(betons: Betons, **options: Any) -> ImageLoader:
    return ImageLoader(betons.target_raw, batch_size=8, crop=CenterCrop(32), **options)


def test_evaluate_takes_networks_that_give_logits(betons: Betons) -> None:
    """With a joint head too, and batches of any names."""
    head = JointHead(12, 4, 6)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    expected = evaluate(TransferNetwork(backbone, head.to_linear()), clean_images(betons))
    assert evaluate(Body(head), clean_images(betons)) == expected
    assert evaluate(Body(head.to_linear()), clean_images(betons, names=("x", "y"))) == expected


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            Body(nn.Linear(12, 10)),
            r"logits of shape \(8, 10\), and the loader counts 4 .*JointHead",
        ),
        (Body(nn.Linear(12, 4), lambda x: Output(logits=x)), "one that gives a Output; give a mod"),
        (
            TransferNetwork(
                nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), None, nn.Linear(12, 6)
            ),
            "network is one without a target head; give a module",
        ),
    ],
)
def test_evaluate_says_what_network_to_give(
    betons: Betons, network: nn.Module, message: str
) -> None:
    network.train()
    with pytest.raises(ValueError, match=message):
        evaluate(network, clean_images(betons))
    assert network.training


def test_evaluate_says_what_loader_to_give(betons: Betons, loader: XMixLoader) -> None:
    network = Body(nn.Linear(12, 4))
    for wrong in (loader, DataLoader(TensorDataset(IMAGES, T)), betons.target_raw):
        with pytest.raises(
            ValueError, match=r"loader is a \w+; give an ImageLoader of the test set"
        ):
            evaluate(network, wrong)  # type: ignore[arg-type]
    lacking = clean_images(betons, classes_from=[*betons.target_raw.class_names, "more"])
    with pytest.raises(ValueError, match=r"counts 5 classes; .* classes_from=training_loader"):
        evaluate(network, lacking)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "xmixup"}, r"method is 'xmixup'; give an object .* e\.g\. XMixup\(\)"),
        ({"method": XMixup}, "method is <class .*; give an object of a class of xmix_data.methods"),
        ({"recipe": {"iterations": 3}}, r"recipe is {'iterations': 3}; give Recipe\("),
        (
            {"backbone": torchvision.models.resnet18},
            "backbone is .*; give the name of a model, e.g",
        ),
        ({"target": TensorDataset(IMAGES, T)}, "a TensorDataset is no beton; give the path of one"),
        ({"test": DataLoader(TensorDataset(IMAGES, T))}, "a DataLoader is no beton"),
    ],
)
def test_fit_says_what_to_give(betons: Betons, changes: dict[str, Any], message: str) -> None:
    given = {"method": FineTune(), "backbone": Body(nn.Linear(12, 10))}
    with pytest.raises(ValueError, match=message):
        fit(**{**given, "target": betons.target_raw, **changes})


def saved_and_loaded(state: Any) -> Any:
    """As a checkpoint is: `torch.load` reads no numbers of NumPy."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *b: XMixLoader(*b, batch_size=8, alpha="1"), "alpha is '1'; it must be a number"),
        (lambda *b: XMixLoader(*b, batch_size=8, beta=None), "beta is None; it must be a number"),
        (
            lambda *b: XMixLoader(*b, batch_size=8, labels="soft", label_smoothing="0.1"),
            "label_smoothing is '0.1'; it must be a number",
        ),
        (lambda *_: CenterCrop(32, ratio="0.9"), "ratio is '0.9'; it must be a number"),
    ],
)
def test_what_is_no_number_is_an_error_of_the_option(
    betons: Betons, make: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(betons.target_raw, betons.source_raw, betons.pairing)


class TestNumbersOfNumPy:
    """A sweep over ``np.logspace`` or ``np.arange`` gives them; they are numbers as others are."""

    def test_in_a_conversion(self, tmp_path: Path) -> None:
        images, size = Images([3, 2], "t", seed=1), np.int64(40)
        options = {"image_size": size, "num_workers": np.int64(0)}
        written(images, tmp_path / "a.beton", quality=np.int64(80), **options)
        for number in np.arange(2):
            shard = number, np.int64(2)
            made = written(images, tmp_path / f"{number}.beton", shard=shard, **options)
            assert json.loads(Path(f"{made.path}.json").read_text())["image_size"] == 40
        for wrong in ({"image_size": 40.5}, {"quality": 80.5}, {"shard": (0, 1.5)}):
            with pytest.raises(ValueError, match="it must be a whole number"):
                written(images, tmp_path / "wrong.beton", **{"image_size": 40, **wrong})

    def test_in_a_crop(self) -> None:
        crop = CenterCrop((np.int64(24), np.int64(32)), ratio=np.float64(0.5))
        assert repr(crop) == repr(CenterCrop((24, 32), ratio=0.5))  # which names it in caches

    def test_in_a_loader(self, betons: Betons) -> None:
        crop = RandomResizedCrop(np.int64(32), (np.float64(0.1), np.float64(1)))
        one = np.int64(1)
        common: dict[str, Any] = {
            "batch_size": np.int64(4),
            "crop": crop,
            "seed": np.uint64(3),
            "num_workers": one,
            "prefetch": one,
            "rank": np.int64(0),
            "world_size": one,
            "drop_last": np.bool_(False),
            "mean": np.full(3, 0.5),
        }
        paths = betons.target_raw, betons.source_raw, betons.pairing
        mixed = XMixLoader(*paths, alpha=np.float64(1), beta=np.float32(2), **common)
        for loader in (mixed, ImageLoader(betons.target_raw, **common)):
            next(iter(loader))
            loader.set_crop(CenterCrop(np.int64(24), ratio=np.float64(0.9)))
            loader.set_epoch(one)
            loader.skip(one)
            loader.load_state_dict(saved_and_loaded(loader.state_dict()))
            loader.close()

    @pytest.mark.parametrize(
        "options",
        [
            {"method": "random", "seed": np.int64(3)},
            {"rounds": np.int64(1)},
            {"min_images": np.int64(3), "strict": np.bool_(True)},
            {"num_images": np.int64(12)},
        ],
    )
    def test_in_a_pairing(self, tmp_path: Path, options: dict[str, Any]) -> None:
        random = np.random.default_rng(0)
        target, source = (
            Centroids(random.normal(size=(n, 3)), np.full(n, 5), [f"{n}-{i}" for i in range(n)])
            for n in (4, 6)
        )
        pairing = pair_classes(target, source, **options)
        pairing.save(tmp_path / "pairing.json")
        assert Pairing.load(tmp_path / "pairing.json").options == pairing.options

    def test_in_a_recipe(self, betons: Betons, tmp_path: Path) -> None:
        """Trained, resumed and written as the same numbers of Python are."""
        numbers: dict[str, Any] = {
            "learning_rate": np.logspace(-3, -2, 2)[1],
            "seed": np.arange(2)[1],
            "iterations": np.int64(4),
            "batch_size": np.int16(8),
            "momentum": np.float32(0.5),
            "flip": np.bool_(False),
            "save_every": np.int64(2),
        }
        recipe = Recipe(crop=32, **numbers)
        plain = Recipe(crop=32, **{name: value.item() for name, value in numbers.items()})
        assert repr(recipe) == repr(plain)
        network = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 10)
        )
        for recipe_of_run in (recipe, plain):  # the second one finds the first one's checkpoint
            fit(
                FineTune(),
                network,
                betons.target_raw,
                test=betons.target_raw,
                recipe=recipe_of_run,
                output=tmp_path / "run",
            )
        assert json.loads((tmp_path / "run" / "result.json").read_text())["recipe"]["seed"] == 1

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"iterations": 2.5}, "iterations is 2.5; it must be a whole number"),
            ({"seed": -1}, "seed is -1; it must be a whole number"),
            ({"learning_rate": "0.1"}, "learning_rate is '0.1'; it must be a number"),
            ({"alpha": None}, "alpha is None; it must be a number"),
            ({"flip": "no"}, "flip is 'no'; it must be True or False"),
        ],
    )
    def test_what_is_no_number_is_said(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Recipe(**wrong)
