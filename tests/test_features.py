"""Centroids of penultimate features, against a plain computation."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons
from pictures import Images, written
from torch import nn
from torchvision.models import (
    EfficientNet_V2_L_Weights,
    MobileNet_V3_Large_Weights,
    efficientnet_v2_l,
    mobilenet_v3_large,
)

from xmix_data import (
    CenterCrop,
    Centroids,
    ImageLoader,
    RandomResizedCrop,
    class_centroids,
    pair_classes,
)
from xmix_data.backbones import (
    Backbone,
    as_backbone,
    load_backbone,
    penultimate_features,
    state_hash,
)
from xmix_data.cli import main
from xmix_data.errors import MissingDependencyError
from xmix_data.methods import CoTuning, FineTune, Method, XMixup, split_classifier
from xmix_data.pairing import CentroidSum
from xmix_data.training import Recipe, fit


class Small(nn.Module):
    """Convolution, pooling, batch norm (whose mode matters) and a classifier."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 5, stride=3)
        self.norm = nn.BatchNorm1d(7)
        self.fc = nn.Linear(7, classes)

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
    assert made.provenance["domains"] == [
        {"files": ["target-jpg.beton"], "fingerprints": [betons.target_jpg.fingerprint]}
    ]
    assert made.provenance["weights_hash"].startswith("sha256:")


@pytest.mark.parametrize("in_place", [False, True])
def test_a_network_that_was_compiled_and_used_gives_its_features(
    betons: Betons, in_place: bool
) -> None:
    model = Small().eval()
    expected = class_centroids(betons.target_jpg, model)
    compiled: Any = model
    if in_place:
        model.compile(backend="eager")
    else:
        compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for count in (2, 3, 9):
            compiled(torch.zeros(count, 3, 40, 40))
    made = class_centroids(betons.target_jpg, compiled)
    assert np.array_equal(made.values, expected.values)


def test_batch_size_does_not_matter(betons: Betons) -> None:
    model = Small()
    one, other = (class_centroids(betons.target_raw, model, batch_size=b) for b in (3, 27))
    assert np.abs(one.values - other.values).max() < 1e-5


def test_a_class_finds_itself_through_another_encoding(betons: Betons) -> None:
    model = Small()
    target, source = (class_centroids(b, model) for b in (betons.target_raw, betons.target_jpg))
    pairs = pair_classes(target, source, method="optimal").pairs
    assert all(name == paired[0].name for name, paired in pairs.items())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "vit_b_32",
        "convnext_tiny",
        "swin_t",
        "vgg11",
    ],
)
def test_penultimate_features_of_torchvision_models(name: str) -> None:
    """The features and the classifier's weights give the model's logits."""
    model = load_backbone(name, "none").network
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


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device is 'gpu': Expected one of"),
        ("cuda:99", "device is 'cuda:99', and torch finds"),
        ("meta", "device is 'meta'; batches arrive on"),
        (None, "device is None; give 'cpu'"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_before_any_work(
    betons: Betons, device: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        class_centroids("no.beton", "no model", device=device)
    if device is not None:
        pair = f"pair --target {betons.target_jpg.path} --source {betons.source_jpg.path}"
        pair += f" --model no-model --device {device} -o {betons.target_jpg.path.parent}/no.json"
        assert main(pair.split()) == 2
        assert capsys.readouterr().err.startswith(f"xmix: {message}")


class Named(nn.Module):
    """As models of transformers without a classifier."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pooler_output": images.mean((2, 3)), "last": images}


def test_of_several_outputs_the_first_are_the_features() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(penultimate_features(Named(), images), images.mean((2, 3)))


def test_a_network_of_one_size_says_so(betons: Betons) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(ValueError, match=r"image of 3 x 40 x 40 pixels .*one_size=True\)"):
        class_centroids(betons.target_raw, network)
    given = Backbone(network, "mine", size=32, one_size=True)
    assert class_centroids(betons.target_raw, given).values.shape == (4, 3072)


def test_weights_are_no_url() -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/w\.pt: weights are read from files; fetch"):
        load_backbone("resnet18", "s3://bucket/w.pt")


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    trained = load_backbone("resnet18", "none").network
    nn.init.normal_(trained.conv1.weight)
    trained.fc = nn.Linear(512, 7)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "weights.pt")
    loaded = load_backbone("resnet18", tmp_path / "weights.pt").network
    images = torch.randn(2, 3, 64, 64)
    features = (penultimate_features(m.eval(), images) for m in (trained, loaded))
    assert torch.equal(*features)


def test_the_classifier_takes_the_size_of_the_weights(tmp_path: Path) -> None:
    """Its rows can then start a source head."""
    trained = load_backbone("resnet18", "none").network
    trained.fc = nn.Linear(512, 7)
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    loaded = load_backbone("resnet18", tmp_path / "weights.pt").network
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), trained.eval()(images))


@pytest.mark.parametrize("count", [10, 1000])
def test_weights_without_a_classifier_make_a_network_of_features(
    betons: Betons, tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    """As MoCo and DINO give theirs: the classifier that the network came with is random."""
    caplog.set_level("INFO", "xmix_data")
    path = tmp_path / "own.py"
    path.write_text(f"from test_features import Small\nmake = lambda: Small({count})\n")
    body = {k: v for k, v in Small().state_dict().items() if not k.startswith("fc.")}
    torch.save(body, tmp_path / "body.pt")
    loaded = load_backbone(f"{path}:make", tmp_path / "body.pt")
    assert "body.pt: has no classifier; Small gives features" in caplog.text
    assert loaded.network.state_dict().keys() == body.keys()
    numbers = Recipe(iterations=1, batch_size=4, crop=32)
    with pytest.raises(ValueError, match="ends in its features; give a model with its classifier"):
        fit(CoTuning(), loaded, betons.target_jpg, recipe=numbers)
    assert class_centroids(betons.target_jpg, loaded).values.shape == (4, 7)
    two = {"source": betons.source_jpg, "pairing": betons.pairing, "recipe": numbers}
    with pytest.raises(ValueError, match="no classifier to take them from"):
        fit(XMixup(), loaded, betons.target_jpg, source_rows=range(6), **two)
    torch.save({**body, "fc.bias": torch.zeros(4)}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match=r"half\.pt: lacks 'fc\.weight'"):
        load_backbone(f"{path}:make", tmp_path / "half.pt")


def test_weights_of_a_compiled_network_and_of_a_joint_head(
    betons: Betons, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xmix_data")
    path = tmp_path / "own.py"
    path.write_text("from test_features import Small as make\n")
    trained = Small()
    torch.save(torch.compile(trained).state_dict(), tmp_path / "compiled.pt")
    loaded = load_backbone(f"{path}:make", tmp_path / "compiled.pt")
    assert loaded.weights_hash == state_hash(trained)
    numbers = Recipe(iterations=1, batch_size=4, crop=32)
    two = {"source": betons.source_jpg, "pairing": betons.pairing, "recipe": numbers}
    made = fit(XMixup(heads="joint"), trained, betons.target_jpg, output=tmp_path, **two).network
    body = load_backbone(f"{path}:make", tmp_path / "model.pt").network
    assert "model.pt: has no classifier; Small gives features" in caplog.text
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(body(images), made.eval()(images).features, atol=1e-6)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "module.net._orig_mod.", "model.backbone.", "encoder_q."]
)
def test_weights_of_a_wrapped_network(tmp_path: Path, prefix: str) -> None:
    """Of DDP, of a module of Lightning, of several wrappers at once."""
    path = tmp_path / "own.py"
    path.write_text("from test_features import Small as make\n")
    trained = Small().state_dict()
    torch.save({"state_dict": {prefix + k: v for k, v in trained.items()}}, tmp_path / "w.pt")
    loaded = load_backbone(f"{path}:make", tmp_path / "w.pt").network.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[key], value) for key, value in trained.items())
    two = {f"{name}.{k}": v for name in ("encoder_q", "encoder_k") for k, v in trained.items()}
    torch.save(two, tmp_path / "two.pt")  # which of them is meant, nobody knows
    with pytest.raises(ValueError, match="has unknown 'encoder_"):
        load_backbone(f"{path}:make", tmp_path / "two.pt")
    both = {**{f"net.{k}": v for k, v in trained.items()}, "fc.weight": trained["fc.weight"] + 1}
    torch.save(both, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=r"two weights for 'fc\.weight', 'fc\.weight' is one"):
        load_backbone(f"{path}:make", tmp_path / "both.pt")


OWN_WITH_A_BACKBONE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.module = nn.BatchNorm1d(20)
        self.head = nn.Linear(20, 4)

    def forward(self, images):
        return self.head(self.module(self.backbone(images)))

def features():
    net = Net()
    net.head = nn.Identity()
    return net
"""


@pytest.mark.parametrize("function", ["Net", "features"])
@pytest.mark.parametrize("method", [FineTune(), XMixup()])
def test_a_network_with_parts_named_as_ours_reads_its_own_weights_and_what_training_wrote(
    betons: Betons, tmp_path: Path, function: str, method: Method
) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN_WITH_A_BACKBONE)
    own = load_backbone(f"{path}:{function}", "default")
    torch.save(own.network.state_dict(), tmp_path / "own.pt")
    again = load_backbone(f"{path}:{function}", tmp_path / "own.pt")
    assert again.weights_hash == own.weights_hash
    made = fit(
        method,
        own,
        betons.target_jpg,
        source=betons.source_jpg,
        pairing=betons.pairing,
        recipe=Recipe(iterations=2, batch_size=4, crop=32),
        output=tmp_path,
    )
    loaded = load_backbone(f"{path}:{function}", tmp_path / "model.pt").network
    images = torch.randn(2, 3, 32, 32)
    outputs = made.network.eval()(images)
    expected = outputs.target_logits if function == "Net" else outputs.features
    assert torch.allclose(loaded(images), expected, atol=1e-5)


def test_what_training_wrote_is_a_backbone(betons: Betons, tmp_path: Path) -> None:
    """Pre-train on a source, then pair by that network."""
    recipe = Recipe(iterations=2, batch_size=4, crop=32)
    made = fit(
        FineTune(),
        load_backbone("resnet18", "none"),
        betons.target_jpg,
        recipe=recipe,
        output=tmp_path,
    )
    loaded = load_backbone("resnet18", tmp_path / "model.pt").network
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = made.network.eval()(images).target_logits
        assert torch.allclose(loaded(images), logits, atol=1e-5)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no classifier 'resnet1'; there are resnet"):
        load_backbone("resnet1", "none")
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        load_backbone("resnet18", tmp_path / "weights.pt")
    most = load_backbone("resnet18", "none").network.state_dict()
    del most["conv1.weight"]  # other layers have one as well
    for state in (Small().state_dict(), most):
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=r"lacks 'conv1\.weight'"):
            load_backbone("resnet18", tmp_path / "weights.pt")
    for name, reader in (("weights.pt", "torch.load"), ("weights.safetensors", "safetensors")):
        (tmp_path / name).write_bytes(b"no")
        with pytest.raises(ValueError, match=f"{name}: no state dict that {reader}"):
            load_backbone("resnet18", tmp_path / name)


def test_weights_of_before_batch_norms_counted(tmp_path: Path) -> None:
    """As those of torchvision's first ResNets, which modules of today still read."""
    trained = load_backbone("resnet18", "none").network
    nn.init.normal_(trained.conv1.weight)
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "weights.pt")
    loaded = load_backbone("resnet18", tmp_path / "weights.pt").network
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), trained.eval()(images))


def test_weights_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The format of timm's and Hugging Face's files, if it can be read here."""
    form = pytest.importorskip("safetensors.torch", reason="needs safetensors: pip install timm")
    own = load_backbone("resnet18", "none").network.state_dict()
    form.save_file(
        {key: torch.full_like(value, 3) for key, value in own.items()}, tmp_path / "w.safetensors"
    )
    loaded = load_backbone("resnet18", tmp_path / "w.safetensors").network
    assert all((value == 3).all() for value in loaded.state_dict().values())
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingDependencyError, match=r"w\.safetensors needs .*pip install safet"):
        load_backbone("resnet18", tmp_path / "w.safetensors")


class Stops(nn.Module):
    """A model that fails at a chosen image: an interruption."""

    def __init__(self, inner: nn.Module, after: int | None = None) -> None:
        super().__init__()
        self.inner, self.after, self.seen = inner, after, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        if self.after is not None and self.seen > self.after:
            raise KeyboardInterrupt
        return self.inner(x)


def test_a_second_pairing_reads_what_the_first_computed(betons: Betons, tmp_path: Path) -> None:
    model = Stops(Small())
    first = class_centroids(betons.source_jpg, model, cache=tmp_path / "made" / "here")
    assert model.seen == len(betons.source_jpg)
    again = class_centroids(betons.source_jpg, model, cache=tmp_path / "made" / "here")
    assert model.seen == len(betons.source_jpg)
    assert np.array_equal(first.values, again.values)
    assert (first.counts == again.counts).all() and first.class_names == again.class_names
    assert first.provenance == again.provenance
    with_more = class_centroids(
        [betons.source_jpg, betons.target_jpg], model, cache=tmp_path / "made" / "here"
    )
    assert model.seen == len(betons.source_jpg) + len(betons.target_jpg)
    assert with_more.class_names == [*first.class_names, "t0", "t1", "t2", "t3"]
    assert with_more.domains.tolist() == [0] * 6 + [1] * 4


@pytest.mark.parametrize("change", ["weights", "transform", "beton"])
def test_the_cache_knows_what_features_depend_on(
    betons: Betons, tmp_path: Path, change: str
) -> None:
    model = Stops(Small())
    class_centroids(betons.source_jpg, model, cache=tmp_path)
    beton, options = betons.source_jpg, {}
    if change == "weights":
        with torch.no_grad():
            next(model.parameters())[0, 0, 0, 0] += 1
    elif change == "transform":
        options["crop"] = CenterCrop(32)
    else:
        beton = betons.source_raw
    model.seen = 0
    made = class_centroids(beton, model, cache=tmp_path, **options)
    assert model.seen == len(beton)
    fresh = class_centroids(beton, model, **options)
    assert np.array_equal(made.values, fresh.values)


def test_another_architecture_with_the_same_weights_is_another_model(
    betons: Betons, tmp_path: Path
) -> None:
    conv = nn.Conv2d(3, 5, 3)
    for last in (nn.ReLU(), nn.Tanh()):
        model = nn.Sequential(conv, last)
        made = class_centroids(betons.source_jpg, model, cache=tmp_path)
        assert np.array_equal(made.values, class_centroids(betons.source_jpg, model).values)


def test_the_hash_of_weights_knows_their_names() -> None:
    """What reads them by name would find others."""
    one, other = (
        nn.ModuleDict({name: nn.Linear(2, 2) for name in names}) for names in ("ab", "ac")
    )
    other["a"].load_state_dict(one["a"].state_dict())
    other["c"].load_state_dict(one["b"].state_dict())
    assert state_hash(one) != state_hash(other)


def test_a_backbone_that_learnt_meanwhile_is_computed_anew(betons: Betons, tmp_path: Path) -> None:
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 5, 3)), "small")
    before = class_centroids(betons.source_jpg, backbone, cache=tmp_path)
    nn.init.ones_(backbone.network[0].weight)
    after = class_centroids(betons.source_jpg, backbone, cache=tmp_path)
    assert not np.allclose(before.values, after.values)


def test_renamed_classes_find_their_features(betons: Betons, tmp_path: Path) -> None:
    model, path = Stops(Small()), tmp_path / "renamed.beton"
    class_centroids(betons.source_raw, model, cache=tmp_path / "cache")
    shutil.copy(betons.source_raw.path, path)
    manifest = json.loads(Path(f"{betons.source_raw.path}.json").read_text())
    manifest["class_names"] = [name.upper() for name in manifest["class_names"]]
    Path(f"{path}.json").write_text(json.dumps(manifest))
    model.seen = 0
    made = class_centroids(path, model, cache=tmp_path / "cache")
    assert model.seen == 0 and made.class_names == ["S0", "S1", "S2", "S3", "S4", "S5"]


def test_features_are_float32_whatever_the_caller_computes_in(
    betons: Betons, tmp_path: Path
) -> None:
    """Within autocast too: in a cache they have the same name."""
    model = Small()
    expected = class_centroids(betons.source_jpg, model)
    with torch.autocast("cpu", torch.bfloat16):
        made = class_centroids(betons.source_jpg, model, cache=tmp_path)
    assert np.array_equal(made.values, expected.values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_of_a_gpu_are_the_cpus(betons: Betons) -> None:
    """In float32: TensorFloat-32, torch's default in convolutions, is 1,000 times as far off."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        *(torch.nn.Conv2d(channels, 64, 3, padding=1) for channels in (3, 64, 64, 64)),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    ours, reference = (
        class_centroids(betons.source_jpg, model, device=device).values
        for device in ("cuda", "cpu")
    )
    model.cpu()
    assert np.linalg.norm(ours - reference) < 3e-6 * np.linalg.norm(reference)
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_an_interruption_between_sums_and_counts_is_not_kept(
    betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes anywhere; on a GPU mostly where the counts are waited for."""
    ones_like, calls = torch.ones_like, [0]

    def interrupted(*arguments: Any, **options: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return ones_like(*arguments, **options)

    model = Small()
    expected = class_centroids(betons.source_jpg, model, batch_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "ones_like", interrupted)
        with pytest.raises(KeyboardInterrupt):
            class_centroids(betons.source_jpg, model, batch_size=4, cache=tmp_path)
    again = class_centroids(betons.source_jpg, model, batch_size=4, cache=tmp_path)
    assert np.array_equal(again.values, expected.values)


def test_interrupted_extraction_resumes(betons: Betons, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inner = Small()
    expected = class_centroids(betons.source_jpg, Stops(inner), batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        class_centroids(betons.source_jpg, Stops(inner, after=22), batch_size=4, cache=tmp_path)
    assert [path.name.count(".unfinished.") for path in tmp_path.iterdir()] == [1]
    model = Stops(inner)
    made = class_centroids(betons.source_jpg, model, batch_size=4, cache=tmp_path)
    assert model.seen == len(betons.source_jpg) - 20
    assert np.array_equal(made.values, expected.values)
    assert [path.name.count(".unfinished.") for path in tmp_path.iterdir()] == [0]


@pytest.mark.parametrize("damage", ["cut", "emptied", "exchanged"])
@pytest.mark.parametrize("unfinished", [False, True])
def test_a_damaged_feature_cache_is_refused(
    betons: Betons, tmp_path: Path, damage: str, unfinished: bool
) -> None:
    model = Stops(Small(), after=22 if unfinished else None)
    with contextlib.suppress(KeyboardInterrupt):
        class_centroids(betons.source_jpg, model, batch_size=4, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        other = tmp_path / "other"
        model.after, model.seen = (10 if unfinished else None), 0
        with contextlib.suppress(KeyboardInterrupt):
            class_centroids(betons.target_jpg, model, batch_size=4, cache=other)
        next(other.iterdir()).rename(path)
        other.rmdir()
    model.after = None
    with pytest.raises(ValueError, match="delete it, and") as caught:
        class_centroids(betons.source_jpg, model, batch_size=4, cache=tmp_path)
    assert str(path) in str(caught.value)


def test_a_flipped_bit_of_a_feature_cache_changes_nothing_unnoticed(tmp_path: Path) -> None:
    total, path = CentroidSum(2), tmp_path / "sums.npz"
    total.add(torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]))
    total.save(path, 5, "key")
    total.centroids(["a", "b"]).save(tmp_path / "centroids.npz")
    refused = 0
    for file, load in ((path, _loaded_sums), (tmp_path / "centroids.npz", _loaded_centroids)):
        content, expected = file.read_bytes(), load(file)
        for position in range(0, len(content), 3):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            file.write_bytes(flipped)
            try:
                assert load(file) == expected
            except ValueError as error:
                assert "delete it" in str(error)
                refused += 1
    assert refused > 150


def _loaded_sums(path: Path) -> Any:
    total = CentroidSum(2)
    position = total.load(path, "key")
    return position, [x.tolist() for x in total.tensors()]


def _loaded_centroids(path: Path) -> Any:
    made = Centroids.load(path)
    numbers = [x.tolist() for x in (made.values, made.counts, made.domains)]
    return numbers, made.class_names, made.provenance


def test_a_cache_that_cannot_be_written_costs_a_line(
    betons: Betons, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    class_centroids(betons.target_jpg, Small(), cache=tmp_path / "file")
    assert "features are not cached" in caplog.text


def test_a_cache_that_another_job_is_writing_costs_no_work(
    betons: Betons, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Small()
    expected = class_centroids(betons.target_jpg, model, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    with open(f"{path}.partial", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        made = class_centroids(betons.target_jpg, model, cache=tmp_path)
    assert np.array_equal(made.values, expected.values)
    assert "another process is writing it" in caplog.text


def test_one_small_image_does_not_decide_for_all(tmp_path: Path) -> None:
    sizes = [(60, 60), (50, 70), (12, 12), (64, 48)]

    class Varied:
        classes = ("one",)

        def __len__(self) -> int:
            return len(sizes)

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return np.full((*sizes[index], 3), 40 * index, np.uint8), 0

    beton = written(
        Varied(), tmp_path / "varied.beton", image_size=None, crop="none", encoding="raw"
    )
    made = class_centroids(beton, Backbone(Small(), "small", size=48))
    assert made.provenance["transform"].startswith("RandomResizedCrop(size=48")
    large = Backbone(Small(), "small", size=12)
    assert class_centroids(beton, large).provenance["transform"] == repr(CenterCrop(12))


def test_without_a_manifest_nothing_is_cached(betons: Betons, tmp_path: Path) -> None:
    """Its fingerprint is that of the index: other pixels of the same sizes would have the same."""
    path = tmp_path / "bare.beton"
    shutil.copy(betons.target_raw.path, path)
    class_centroids(path, Small(), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_vision_transformer_sees_whole_enlarged_images(tmp_path: Path) -> None:
    """It takes 224 x 224 only; these are 40 x 40."""
    target = written(Images([3, 2], "t"), tmp_path / "target.beton", image_size=40, encoding="raw")
    backbone = load_backbone("vit_b_32", "none")
    assert (backbone.size, backbone.one_size) == (224, True)
    made = class_centroids(target, backbone, batch_size=2)
    assert made.provenance["transform"].startswith("RandomResizedCrop")
    resize = RandomResizedCrop(224, scale=(1, 1), ratio=(1, 1))
    images, labels = next(iter(ImageLoader(target, batch_size=29, crop=resize)))
    features = penultimate_features(backbone.network, images).double()
    assert np.abs(made.values[0] - features[labels == 0].mean(0).numpy()).max() < 1e-4
    whole = class_centroids(target, Small())
    assert whole.provenance["transform"] == repr(CenterCrop(40))


def test_weights_of_torchvision_come_with_their_own_transform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that sees other images than most; its file is there, as if it was downloaded."""
    with torch.device("meta"):
        shapes = {key: (v.shape, v.dtype) for key, v in efficientnet_v2_l().state_dict().items()}
    state = {key: torch.zeros((), dtype=d).expand(shape) for key, (shape, d) in shapes.items()}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / EfficientNet_V2_L_Weights.DEFAULT.url.rpartition("/")[2])
    backbone = load_backbone("efficientnet_v2_l", "default")
    assert backbone.size == 480 and not backbone.one_size
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert not any(value.any() for value in backbone.network.state_dict().values())


def test_weights_of_torchvision_by_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones are those of the papers, the newest ones the default."""
    state = mobilenet_v3_large().state_dict()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    names = {"IMAGENET1K_V1": 1, "IMAGENET1K_V2": 2, "DEFAULT": 2, "default": 2}
    for name, value in names.items():
        weights = MobileNet_V3_Large_Weights[name.upper()]
        path = folder / weights.url.rpartition("/")[2]
        torch.save({key: torch.full_like(v, value) for key, v in state.items()}, path)
        network = load_backbone("mobilenet_v3_large", name).network
        assert all((held == value).all() for held in network.state_dict().values())
    with pytest.raises(FileNotFoundError, match="IMAGENET1K_V3: no such weights file"):
        load_backbone("resnet18", "IMAGENET1K_V3")
    with pytest.raises(ValueError, match="no classifier 'resnet1'"):
        load_backbone("resnet1", "IMAGENET1K_V1")


def test_models_of_timm_come_with_their_own_transform(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs timm: pip install timm")
    backbone = load_backbone("timm:resnet18", "none")
    assert (backbone.name, backbone.size, backbone.one_size) == ("timm:resnet18", 224, False)
    vit = load_backbone("timm:vit_tiny_patch16_224", "none")
    assert vit.one_size and vit.mean == (0.5, 0.5, 0.5)
    images = torch.randn(2, 3, 224, 224)
    for model in (backbone.network, vit.network):
        features = penultimate_features(model, images)
        with torch.no_grad():
            assert torch.allclose(model.get_classifier()(features), model(images), atol=1e-5)
    given = as_backbone(timm.create_model("vit_tiny_patch16_224"))
    assert (given.size, given.mean, given.std) == (vit.size, vit.mean, vit.std)
    assert not given.one_size  # it may have been made with another img_size
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "weights.pt")
    load_backbone("timm:resnet18", tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="timm has no model 'resnet1"):
        load_backbone("timm:resnet1", "none")


def test_memory_does_not_grow_with_the_images(betons: Betons) -> None:
    """Only sums are kept: their size is that of the classes."""
    total = CentroidSum(3)
    for _ in range(50):
        total.add(torch.randn(10, 4), torch.randint(3, (10,)))
    assert total._sums is not None and total._sums.shape == (3, 4)
    assert int(total._counts.sum()) == 500
    made = total.centroids(["a", "b", "c"])
    assert isinstance(made, Centroids)


OWN = """
import torch
from xmix_data.backbones import Backbone

def network():
    pool = torch.nn.AdaptiveAvgPool2d(2)
    return torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(12, 5))

def with_its_own_mean():
    return Backbone(network(), "mine", size=48, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

def number():
    return 7

constant = 7
"""


def test_a_backbone_of_ones_own(betons: Betons, tmp_path: Path) -> None:
    """A function of a file, or of a module, that makes a network, or a `Backbone`."""
    path = tmp_path / "own_networks.py"
    path.write_text(OWN)
    plain = load_backbone(f"{path}:network", "default")
    assert plain.name == "own_networks.py:network" and plain.size == 224
    assert not plain.network.training
    again = load_backbone(f"{path}:network", "default")
    assert plain.weights_hash == again.weights_hash  # what is random is the same in every run
    torch.save(plain.network.state_dict(), tmp_path / "weights.pt")
    mine = load_backbone(f"{path}:with_its_own_mean", tmp_path / "weights.pt")
    assert (mine.name, mine.size, mine.std[0]) == ("mine", 48, 0.25)
    assert mine.weights_hash == plain.weights_hash
    assert class_centroids(betons.target_raw, mine).values.shape == (4, 12)
    assert load_backbone("torchvision.models:resnet18", "default").network.fc.out_features == 1000
    for name, weights, error, words in (
        (f"{path}:network", "none", ValueError, "makes its own weights"),
        (f"{path}:missing", "default", ValueError, "has no function 'missing'"),
        (f"{path}:constant", "default", ValueError, "has no function 'constant'"),
        (f"{path}:number", "default", ValueError, "makes a int"),
        (f"{tmp_path}/no.py:network", "default", FileNotFoundError, "no such file"),
        ("no_such_module:network", "default", ValueError, "cannot be imported"),
    ):
        with pytest.raises(error, match=words):
            load_backbone(name, weights)


def test_a_file_of_ones_own_imports_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ``python FILE.py``: while it is read, and while its function runs."""
    (tmp_path / "parts_of_mine.py").write_text("from test_features import Small\n")
    (tmp_path / "more_of_mine.py").write_text("classes = 5\n")
    (tmp_path / "net_of_mine.py").write_text(
        "from parts_of_mine import Small\n"
        "def make():\n"
        "    from more_of_mine import classes\n"
        "    return Small(classes)\n"
        "def lacks():\n"
        "    import no_such_module_of_mine\n"
    )
    before = list(sys.path)
    loaded = load_backbone(f"{tmp_path}/net_of_mine.py:make", "default").network
    assert loaded.get_submodule("fc").out_features == 5
    with pytest.raises(ValueError, match=r"of_mine\.py:lacks: imports what cannot .*no_such_mod"):
        load_backbone(f"{tmp_path}/net_of_mine.py:lacks", "default")
    monkeypatch.chdir(tmp_path)
    for name in ("net_of_mine", "parts_of_mine", "more_of_mine"):
        monkeypatch.delitem(sys.modules, name)
    assert load_backbone("net_of_mine:make", "default").name == "net_of_mine:make"
    (tmp_path / "wrong_of_mine.py").write_text("import no_such_module_of_mine\n")
    with pytest.raises(ValueError, match=r"wrong_of_mine\.py: imports what cannot be imported"):
        load_backbone("wrong_of_mine.py:make", "default")
    assert sys.path == before


def test_efficientnet_lite_is_a_backbone(betons: Betons, tmp_path: Path) -> None:
    """Its last module by definition is an activation; mean and deviation are its own."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch")
    path = tmp_path / "lite.py"
    path.write_text(
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "from xmix_data.backbones import Backbone\n"
        "def lite0():\n"
        "    half = (127 / 255,) * 3\n"
        "    network = EfficientNet.from_name('efficientnet-lite0')\n"
        "    return Backbone(network, 'lite0', mean=half, std=(128 / 255,) * 3)\n"
    )
    lite = load_backbone(f"{path}:lite0", "default")
    assert class_centroids(betons.target_raw, lite).values.shape == (4, 1280)
    body, classifier = split_classifier(lite.network)
    assert classifier is not None and classifier.out_features == 1000
    assert body(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)
