"""Nothing of ours follows what the caller has set in torch: device, dtype, gradients.

The device "meta", which holds no numbers, shows what is made on the default one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Betons

from xmix_data import CenterCrop, ImageLoader, RandomCrop, XMixLoader, class_centroids, methods
from xmix_data.backbones import load_backbone
from xmix_data.report import write_report
from xmix_data.training import Recipe, fit


@pytest.fixture
def other_defaults() -> Iterator[None]:
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    with torch.inference_mode():
        yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def network() -> torch.nn.Module:
    """As a user's is where the defaults were set later."""
    torch.manual_seed(0)
    with torch.device("cpu"), torch.inference_mode(False):
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, dtype=torch.float32),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(32, 5, dtype=torch.float32),
        )


OPTIONS: list[dict[str, Any]] = [
    {},
    {"labels": "soft"},
    {"mix": False},
    {"dtype": torch.bfloat16},
]


@pytest.mark.usefixtures("other_defaults")
@pytest.mark.parametrize("options", OPTIONS)
def test_batches_are_where_the_loader_says(
    betons: Betons, backend: str, options: dict[str, Any]
) -> None:
    domains = betons.target_jpg, betons.source_raw, betons.pairing
    common: dict[str, Any] = {"batch_size": 9, "backend": backend, "num_workers": 1}
    with XMixLoader(*domains, crop=RandomCrop(32), **common, **options) as loader:
        batches = [loader.peek(), *loader]
        loader.preview(4)
        loader.load_state_dict(loader.state_dict())
    with ImageLoader(betons.target_jpg, crop=CenterCrop(32), shuffle=True, **common) as images:
        batches += list(images)
    assert len(batches) == 1 + 3 + 3
    assert {x.device.type for batch in batches for x in batch if x is not None} == {"cpu"}
    dtype = options.get("dtype", torch.float32)
    assert {batch[0].dtype for batch in batches[:4]} == {dtype}


def test_what_was_looked_at_in_inference_mode_trains(betons: Betons, backend: str) -> None:
    domains = betons.target_jpg, betons.source_raw, betons.pairing
    options: dict[str, Any] = {"batch_size": 9, "backend": backend, "labels": "soft"}
    with XMixLoader(*domains, crop=RandomCrop(32), **options) as loader:
        with torch.inference_mode():
            looked_at = loader.peek()[0]
        images, labels = next(iter(loader))[:2]
    assert torch.equal(images, looked_at)
    logits = torch.nn.Conv2d(3, labels.shape[1], 32)(images).flatten(1)
    torch.nn.functional.cross_entropy(logits, labels).backward()


@pytest.mark.usefixtures("other_defaults")
def test_features_pairing_and_report(betons: Betons, tmp_path: Path) -> None:
    for _ in range(2):
        made = class_centroids(betons.target_jpg, network(), cache=tmp_path / "cache")
        assert made.counts.tolist() == betons.target_jpg.class_counts
    backbone = load_backbone("resnet18", "none")
    assert {p.dtype for p in backbone.network.parameters()} == {torch.float32}
    named = class_centroids(betons.target_jpg, backbone, crop=CenterCrop(32))
    assert named.values.shape == (4, 512)
    write_report(betons.pairing, betons.target_jpg, betons.source_jpg, tmp_path / "r.html")


@pytest.mark.usefixtures("other_defaults")
@pytest.mark.parametrize(
    "method",
    [
        methods.FineTune(),
        methods.L2SP(),
        methods.BSS(),
        methods.DELTA(),
        methods.CoTuning(),
        methods.SeqTrain(),
        methods.CoTrain(),
        methods.Mixup(),
        methods.XMixup(),
        methods.XMixup(heads="joint"),
        methods.GradMix(),
    ],
    ids=lambda method: method.name,
)
def test_training_and_its_resume(betons: Betons, tmp_path: Path, method: methods.Method) -> None:
    recipe = Recipe(iterations=2, batch_size=8, crop=32, save_every=1, log_every=1)
    for _ in range(2):
        result = fit(
            method,
            network(),
            betons.target_jpg,
            source=betons.source_jpg,
            pairing=betons.pairing,
            test=betons.target_raw,
            recipe=recipe,
            output=tmp_path / "run",
            num_workers=1,
        )
        assert result.accuracy is not None
        made = {(p.device.type, p.dtype) for p in result.network.parameters()}
        assert made == {("cpu", torch.float32)}
