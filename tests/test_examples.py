"""The examples of the docs, as they are, on small betons with small networks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons, reversed_pairing
from pictures import written
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from xmix_data import Beton, Pairing, RandomCrop, XMixLoader, xmixup_loss

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
NEEDS = {"hf_trainer": "transformers", "lightning_module": "lightning", "timm_model": "timm"}
EPOCHS = 4


class Colours:
    """Noise around a colour of the class's own: learnt in a few steps."""

    def __init__(self, classes: int, prefix: str, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.classes = [f"{prefix}{i}" for i in range(classes)]
        self.targets = [label for label in range(classes) for _ in range(24)]
        colours = random.integers(0, 256, (classes, 1, 1, 3))
        noise = random.normal(0, 20, (len(self.targets), 24, 24, 3))
        self.pixels = np.clip(colours[self.targets] + noise, 0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], self.targets[index]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Beton, Beton, Pairing]:
    folder = tmp_path_factory.mktemp("colours")
    target, source = (
        written(Colours(classes, name[0], seed), folder / f"{name}.beton", image_size=24)
        for seed, (name, classes) in enumerate((("target", 4), ("source", 5)))
    )
    return target, source, reversed_pairing(target, source)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's Trainer makes a folder where it runs."""
    monkeypatch.chdir(tmp_path)


def small_network() -> Any:
    torch.manual_seed(0)
    return ResNet(BasicBlock, [1, 1, 1, 1])


def example(name: str) -> Any:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs {NEEDS[name]}: pip install {NEEDS[name]}")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_every_example_learns(colours: tuple[Beton, Beton, Pairing], name: str) -> None:
    module = example(name)
    model = small_network()
    if name == "timm_model":
        model = module.timm.create_model("resnet10t", pretrained=False)
    torch.manual_seed(1)
    losses = module.train(*colours, model=model, epochs=EPOCHS, batch_size=12, crop=20)
    assert len(losses) == EPOCHS and np.isfinite(losses).all()
    assert min(losses[1:]) < 0.8 * losses[0], losses


@pytest.mark.parametrize(
    ("loop", "framework"), [("plain_loop", "lightning_module"), ("own_criterion", "hf_trainer")]
)
def test_a_framework_trains_as_a_loop_does(betons: Betons, loop: str, framework: str) -> None:
    """The same batches, the same heads: the same losses."""
    arguments = (betons.target_raw, betons.source_raw, betons.pairing)
    losses = []
    for name in (loop, framework):
        module = example(name)
        model = small_network()
        torch.manual_seed(1)
        losses.append(module.train(*arguments, model=model, epochs=2, batch_size=9, crop=32))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_trainers_loss_is_the_mean_over_accumulated_batches(betons: Betons) -> None:
    """Which the Trainer leaves to the loss, and counts the elements of the labels for."""
    module = example("hf_trainer")
    options: dict[str, Any] = {"crop": RandomCrop(32), "labels": "soft"}
    arguments = (betons.target_raw, betons.source_raw, betons.pairing)
    images, labels = next(iter(XMixLoader(*arguments, batch_size=18, **options)))
    torch.manual_seed(0)
    layer = torch.nn.Linear(3 * 32 * 32, 10)
    network = module.Classifier(torch.nn.Sequential(torch.nn.Flatten(), layer))
    loss = torch.nn.functional.cross_entropy(network(images)["logits"], labels)
    expected = layer.weight - torch.autograd.grad(loss, layer.weight)[0]
    names = ("pixel_values", "labels")
    loader = XMixLoader(*arguments, batch_size=9, **options, names=names)
    settings = module.TrainingArguments(
        "run",
        gradient_accumulation_steps=2,
        max_steps=1,
        max_grad_norm=0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        lr_scheduler_type="constant",
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=1)
    trainer = module.Trainer(
        network,
        settings,
        compute_loss_func=module.soft_cross_entropy,
        optimizers=(optimizer, None),
    )
    trainer.get_train_dataloader = lambda: loader
    trainer.train()
    torch.testing.assert_close(layer.weight, expected)
    ids = torch.arange(18) % 10  # as in evaluation
    torch.testing.assert_close(
        module.soft_cross_entropy(network(images), ids),
        torch.nn.functional.cross_entropy(network(images)["logits"], ids),
    )


def test_soft_labels_are_the_two_head_loss_and_two_terms_more(betons: Betons) -> None:
    """What `own_criterion` trains on, against what `plain_loop` trains on, on the same logits."""
    options: dict[str, Any] = {"batch_size": 9, "crop": RandomCrop(32)}
    arguments = (betons.target_raw, betons.source_raw, betons.pairing)
    batch = next(iter(XMixLoader(*arguments, **options)))
    _, soft = next(iter(XMixLoader(*arguments, labels="soft", **options)))
    n, m = len(betons.target_raw.class_names), len(betons.source_raw.class_names)
    logits = torch.randn(9, n + m, dtype=torch.float64)
    joint = torch.nn.functional.cross_entropy(logits, soft.double())
    log_mass = torch.stack([logits[:, :n].logsumexp(1), logits[:, n:].logsumexp(1)], 1)
    log_mass = log_mass - logits.logsumexp(1, keepdim=True)
    lam = batch.lam.double()
    more = -(lam * log_mass[:, 0] + (1 - lam) * log_mass[:, 1]).mean()
    two = xmixup_loss(logits[:, :n], logits[:, n:], batch)
    assert joint.item() == pytest.approx((two + more).item(), rel=1e-6)
