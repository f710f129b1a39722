"""Centroids of penultimate features, against a plain computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Betons
from torch import nn

from xmix_data import CenterCrop, Centroids, ImageLoader, class_centroids, pair_classes
from xmix_data.features import load_backbone, penultimate_features


class Small(nn.Module):
    """Convolution, pooling, batch norm (whose mode matters) and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 5, stride=3)
        self.norm = nn.BatchNorm1d(7)
        self.fc = nn.Linear(7, 4)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).relu().mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x))


def test_centroids_are_the_mean_features_of_each_class(betons: Betons) -> None:
    model = Small().train()
    made = class_centroids(betons.target_jpg, model, batch_size=5)
    assert model.training
    with torch.no_grad():
        loader = ImageLoader(betons.target_jpg, batch_size=99, crop=CenterCrop(40))
        images, labels = next(iter(loader))
        features = model.eval().features(images).double()
    for label, values in enumerate(made.values):
        expected = features[labels == label].mean(0).numpy()
        assert np.abs(values - expected).max() < 1e-5
    assert made.counts.tolist() == [9, 7, 5, 6]
    assert made.class_names == ["t0", "t1", "t2", "t3"]
    assert made.provenance["betons"] == [betons.target_jpg.fingerprint]
    assert made.provenance["weights_hash"].startswith("sha256:")


def test_batch_size_does_not_matter(betons: Betons) -> None:
    model = Small()
    one, other = (class_centroids(betons.target_raw, model, batch_size=b) for b in (3, 27))
    assert np.abs(one.values - other.values).max() < 1e-5


def test_a_class_finds_itself_through_another_encoding(betons: Betons) -> None:
    model = Small()
    target, source = (class_centroids(b, model) for b in (betons.target_raw, betons.target_jpg))
    pairs = pair_classes(target, source, method="optimal").pairs
    assert all(name == paired[0].name for name, paired in pairs.items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "vit_b_32",
                                  "convnext_tiny", "swin_t", "vgg11"])  # fmt: skip
def test_penultimate_features_of_torchvision_models(name: str) -> None:
    """The features and the classifier's weights give the model's logits."""
    model = load_backbone(name, "none")
    images = torch.randn(2, 3, 224, 224)
    features = penultimate_features(model, images)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert features.shape == (2, last.in_features)
    with torch.no_grad():
        assert torch.allclose(last(features), model(images), atol=1e-5)


def test_a_model_without_classifier_gives_its_output() -> None:
    headless = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()).eval()
    images = torch.randn(2, 3, 8, 8)
    expected = headless(images).mean((2, 3))
    assert torch.allclose(penultimate_features(headless, images), expected)
    with pytest.raises(ValueError, match="one feature vector an image"):
        penultimate_features(nn.Flatten(0), images)


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    trained = load_backbone("resnet18", "none")
    nn.init.normal_(trained.conv1.weight)
    trained.fc = nn.Linear(512, 7)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "weights.pt")
    loaded = load_backbone("resnet18", tmp_path / "weights.pt")
    images = torch.randn(2, 3, 64, 64)
    features = (penultimate_features(m.eval(), images) for m in (trained, loaded))
    assert torch.equal(*features)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no classifier 'resnet1'; there are resnet"):
        load_backbone("resnet1", "none")
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        load_backbone("resnet18", tmp_path / "weights.pt")
    torch.save(Small().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"lacks 'conv1\.weight'"):
        load_backbone("resnet18", tmp_path / "weights.pt")
    (tmp_path / "weights.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="no state dict"):
        load_backbone("resnet18", tmp_path / "weights.pt")


def test_memory_does_not_grow_with_the_images(betons: Betons) -> None:
    """Only sums are kept: their size is that of the classes."""
    from xmix_data.centroids import CentroidSum

    total = CentroidSum(3)
    for _ in range(50):
        total.add(torch.randn(10, 4), torch.randint(3, (10,)))
    assert total._sums is not None and total._sums.shape == (3, 4)
    assert int(total._counts.sum()) == 500
    made = total.centroids(["a", "b", "c"])
    assert isinstance(made, Centroids)
