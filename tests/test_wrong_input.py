"""What comes from other frameworks by mistake: one clear error, with what to give instead."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from conftest import Betons
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from xmix_data import (
    CenterCrop,
    ImageLoader,
    JointHead,
    MixedBatch,
    RandomCrop,
    XMixLoader,
    xmixup_loss,
)
from xmix_data.methods import FineTune, TransferNetwork, XMixup
from xmix_data.training import evaluate, fit

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
