"""The reference trainer: what it computes, how it resumes, what it refuses, and its command."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import processes
import pytest
import torch
from conftest import Betons
from pictures import Images, written
from torch import distributed, nn
from torch.nn.functional import cross_entropy

from xmix_data import (
    Beton,
    BetonError,
    CenterCrop,
    ImageLoader,
    Pairing,
    RandomCrop,
    XMixError,
    class_centroids,
)
from xmix_data.backbones import Backbone, state_hash
from xmix_data.cli import _parser, main
from xmix_data.commands.train import _with_options
from xmix_data.methods import (
    BSS,
    DELTA,
    L2SP,
    METHODS,
    CoTrain,
    CoTuning,
    FineTune,
    GradMix,
    Method,
    Mixup,
    Phase,
    SeqTrain,
    TransferNetwork,
    XMixup,
)
from xmix_data.training import Recipe, evaluate, fit
from xmix_data.training.checkpoint import identity_of, load_checkpoint, save_checkpoint
from xmix_data.training.recipe import PRESETS, advice_on_mixing

CROP = 36


@pytest.fixture(autouse=True)
def no_fuse() -> None:
    Fuse.steps = -1


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """The command's messages go to the stderr of the test that runs it."""
    log = logging.getLogger("xmix_data")
    before, log.handlers = log.handlers, []
    yield
    log.handlers = before


class Fuse(nn.Identity):
    """Burns for so many training steps, and then acts once."""

    steps = -1
    act: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        Fuse.steps -= 1
        return Fuse.act(x) if Fuse.steps == 0 else x


def interrupt(x: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


def forbidden(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a step was made")


def network(*, norm: bool = True, dropout: float = 0.0, outputs: int = 10) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 12, 5, 3),
        nn.BatchNorm2d(12) if norm else nn.Identity(),
        nn.Tanh(),
        Fuse(),
        nn.Conv2d(12, 16, 3, 2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64, outputs),
    )


def recipe(**numbers: Any) -> Recipe:
    usual = {"iterations": 9, "batch_size": 8, "learning_rate": 0.05, "crop": CROP, "log_every": 1}
    return Recipe(**{**usual, **numbers})


def data(betons: Betons, method: Method, *, unlabelled: bool = False) -> dict[str, Any]:
    """What a method is given."""
    two = {"source": betons.source_raw, "pairing": betons.pairing}
    needs = any(phase.heads != ("target",) for phase in method.phases)
    needs = needs and not method.keeps_classifier
    return {
        "target": betons.target_raw,
        "test": betons.target_jpg,
        "num_workers": 1,
        **(two if needs else {}),
        **({"unlabelled": betons.target_jpg} if unlabelled else {}),
    }


def small_beton(images: Images, path: Path) -> Beton:
    return written(images, path, image_size=len(images.pixels[0]), encoding="raw")


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def accuracy_by_hand(net: TransferNetwork, test: Beton, names: Sequence[str]) -> float:
    """Image after image, by the names of the classes."""
    right = 0
    net.eval()
    with ImageLoader(test, batch_size=1, crop=CenterCrop(CROP), num_workers=1) as loader:
        for image, label in loader:
            with torch.no_grad():
                logits = net(image).target_logits[0]
            right += names[int(logits.argmax())] == test.class_names[int(label)]
    return right / test.num_samples


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def finite(state: dict[str, Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values())


# What it computes


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("finetune", []),
        ("l2sp", ["alpha=0.001", "beta=0"]),
        ("bss", ["k=2", "eta=1e-3"]),
        ("seqtrain", ["auxiliary_iterations=24"]),
        ("cotrain", ["source_weight=.5"]),
        ("mixup", ["alpha=0.2", "seed=3"]),
        ("xmixup", ["heads=joint"]),
        ("xmixup", ["lam=batch", "source_labels=False"]),
        ("gradmix", ["pseudo_label_threshold=none", "gamma=2"]),
    ],
)
def test_every_method_learns(name: str, options: list[str], betons: Betons, tmp_path: Path) -> None:
    method = _with_options(METHODS[name], options)
    model = network()
    before = state_hash(model)
    given = data(betons, method)
    if name == "xmixup":
        given |= {"source": betons.source_raw, "pairing": betons.pairing}
    numbers = recipe(iterations=36, test_every=18)
    result = fit(method, model, recipe=numbers, output=tmp_path, **given)
    assert state_hash(model) == before and model.training  # it was copied

    names = betons.target_raw.class_names
    assert result.accuracy == accuracy_by_hand(result.network, betons.target_jpg, names)
    lines = metrics(tmp_path)
    for number, phase in enumerate(method.phases):
        steps = phase.iterations or 36
        losses = [line["loss"] for line in lines if line["phase"] == number and "loss" in line]
        assert len(losses) == steps
        assert sum(losses[-6:]) < 0.9 * sum(losses[:6]), losses
    tests = [line for line in lines if "accuracy" in line]
    assert [(line["phase"], line["step"]) for line in tests] == [
        (len(method.phases) - 1, 18),
        (len(method.phases) - 1, 36),
    ]
    assert tests[-1]["accuracy"] == result.accuracy > 0.4  # the largest class has a third
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "method": repr(method),
        "model": "Sequential",
        "accuracy": result.accuracy,
        "recipe": dataclasses.asdict(numbers),
        "iterations": [phase.iterations or 36 for phase in method.phases],
    }

    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert saved["target_classes"] == names and saved["model"] == "Sequential"
    assert saved["heads"] == list(method.phases[-1].heads)
    same(saved["network"], result.network.state_dict())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    same(saved["network"], result.network.state_dict())
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "metrics.jsonl",
        "model.pt",
        "result.json",
    ]


def untouched(method: Method, model: nn.Module, numbers: Recipe, given: Any) -> TransferNetwork:
    """The network that a training begins with: one step whose rate is 0 in float32."""
    still = dataclasses.replace(numbers, iterations=1, learning_rate=1e-60)
    return fit(method, model, recipe=still, **given).network


def test_the_steps_are_sgd_by_the_schedule(betons: Betons, tmp_path: Path) -> None:
    numbers = recipe(iterations=6, weight_decay=0.01, seed=5)
    given = data(betons, FineTune())
    net = untouched(FineTune(), network(), numbers, given).train()
    moved = [torch.zeros_like(p) for p in net.parameters()]
    losses, rates = [], []
    with ImageLoader(
        betons.target_raw,
        batch_size=8,
        crop=RandomCrop(CROP),
        flip=True,
        shuffle=True,
        seed=5,
        drop_last=True,
        num_workers=1,
    ) as loader:
        batches = (batch for _ in range(2) for batch in loader)
        for step, (images, labels) in enumerate(islice(batches, 6)):
            loss = cross_entropy(net(images).target_logits, labels)
            slopes = torch.autograd.grad(loss, list(net.parameters()))
            rates.append(0.05 * (0.1 if step >= 4 else 1.0))
            losses.append(loss.item())
            with torch.no_grad():
                for p, slope, motion in zip(net.parameters(), slopes, moved, strict=True):
                    motion.mul_(0.9).add_(slope.add(p, alpha=0.01))
                    p.add_(motion, alpha=-rates[-1])
    result = fit(FineTune(), network(), recipe=numbers, output=tmp_path, **given)
    for one, other in zip(result.network.parameters(), net.parameters(), strict=True):
        assert torch.equal(one, other)
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-6)
    assert [line["lr"] for line in lines] == rates


def test_rates_of_the_paper_and_of_a_method(betons: Betons, tmp_path: Path) -> None:
    paper = Recipe()
    rates = [paper.rate(step, paper.iterations) for step in (0, 5999, 6000, 8999)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001], rel=1e-12)
    assert [Recipe(drop_at=1).rate(8999, 9000), Recipe(drop_at=0).rate(0, 9)] == pytest.approx(
        [0.01, 0.001]
    )
    method = GradMix(step_scale=lambda importance: 0.25 * importance)
    fit(method, network(), recipe=recipe(iterations=3), output=tmp_path, **data(betons, method))
    for line in [line for line in metrics(tmp_path) if "loss" in line]:
        drop = 0.1 if line["step"] == 3 else 1.0
        assert line["lr"] == pytest.approx(0.05 * drop * 0.25 * line["importance"], rel=1e-12)
        assert line["pseudo_labels"] == 0
    assert any(line.get("importance", 0) > 0 for line in metrics(tmp_path))


def test_weight_decay_is_the_recipes_unless_a_method_has_its_own(betons: Betons) -> None:
    heavy, none = recipe(weight_decay=0.3, iterations=2), recipe(weight_decay=0, iterations=2)
    for method, differs in ((FineTune(), True), (L2SP(), False)):
        one, other = (
            fit(method, network(), recipe=numbers, **data(betons, method)).network.state_dict()
            for numbers in (heavy, none)
        )
        found = any(not torch.equal(one[name], other[name]) for name in one)
        assert found == differs, method


def test_l2sp_trains_the_head_of_a_frozen_backbone(betons: Betons) -> None:
    model = network(norm=False).requires_grad_(False)
    trained = fit(L2SP(), model, recipe=recipe(), **data(betons, L2SP())).network
    same(trained.backbone.state_dict(), model[:-1].state_dict())
    assert trained.target_head is not None and trained.target_head.weight.requires_grad


def test_where_the_heads_start(betons: Betons) -> None:
    model, numbers, given = network(outputs=6), recipe(), data(betons, CoTrain())
    known = untouched(CoTrain(), model, numbers, {**given, "source_rows": range(5, -1, -1)})
    assert known.source_head is not None and known.target_head is not None
    assert torch.equal(known.source_head.weight, model[-1].weight.flip(0))
    assert torch.equal(known.source_head.bias, model[-1].bias.flip(0))
    again, fresh = (
        untouched(CoTrain(), model, dataclasses.replace(numbers, seed=seed), given)
        for seed in (0, 1)
    )
    assert torch.equal(again.target_head.weight, known.target_head.weight)
    assert not torch.equal(again.source_head.weight, known.source_head.weight)
    assert not torch.equal(again.target_head.weight, fresh.target_head.weight)
    for name, value in model[:-1].state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(known.backbone.state_dict()[name], value)


def test_a_backbone_without_classifier(betons: Betons) -> None:
    headless = nn.Sequential(*network()[:-1], nn.Identity())
    result = fit(FineTune(), headless, recipe=recipe(iterations=2), **data(betons, FineTune()))
    assert result.network.target_head.weight.shape == (4, 64)


def test_seqtrain_begins_its_second_phase_where_the_first_ended(
    betons: Betons, tmp_path: Path
) -> None:
    numbers, given = recipe(iterations=4, save_every=4), data(betons, SeqTrain())
    Fuse.steps, Fuse.act = 5, interrupt  # in the first step of the second phase
    with pytest.raises(KeyboardInterrupt):
        fit(SeqTrain(), network(), recipe=numbers, output=tmp_path, **given)
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (first["phase"], first["step"]) == (0, 4)
    result = fit(SeqTrain(), network(), recipe=numbers, output=tmp_path, **given)
    second = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (second["phase"], second["step"]) == (1, 4)
    for name, value in first["network"].items():
        if name.startswith("backbone."):
            assert torch.equal(second["start"][name], value)
    assert set(first["network"]) - set(second["start"]) == {
        "source_head.weight",
        "source_head.bias",
    }
    assert result.network.heads == ("target",)
    assert [line["phase"] for line in metrics(tmp_path)] == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_mixed_precision_stays_close(betons: Betons, tmp_path: Path) -> None:
    for method in (FineTune(), L2SP(), BSS(), XMixup(), GradMix()):
        exact, half = (
            fit(
                method,
                network(),
                recipe=recipe(iterations=3, amp=amp),
                output=tmp_path / f"{method.name}-{amp}",
                **data(betons, method, unlabelled=method.unlabelled),
            )
            for amp in (False, True)
        )
        one, other = exact.network.state_dict(), half.network.state_dict()
        assert all(value.dtype == one[name].dtype for name, value in other.items())
        assert not torch.equal(one["backbone.0.weight"], other["backbone.0.weight"])
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "compiler",
    [
        "aot_eager",  # traces and differentiates as the usual one, and writes no C++
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    not any(map(shutil.which, ("c++", "g++", "clang++"))),
                    reason="torch.compile needs a C++ compiler for the CPU",
                ),
            ],
        ),
    ],
)
def test_a_compiled_network_learns_the_same(
    betons: Betons, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    """A network as small as one can be: inductor takes seconds for it."""
    compiled_by = []

    def compile_with(network: nn.Module, *, mode: str, dynamic: bool) -> Any:
        compiled_by.append(compiler)
        return torch_compile(network, backend=compiler, mode=mode, dynamic=dynamic)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile_with)
    numbers, given = recipe(iterations=3), data(betons, FineTune())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * CROP * CROP, 10))
    plain, compiled = (
        fit(FineTune(), model, recipe=dataclasses.replace(numbers, compile=on), **given)
        for on in (False, True)
    )
    assert compiled_by == [compiler]
    assert list(compiled.network.state_dict()) == list(plain.network.state_dict())
    for one, other in zip(plain.network.parameters(), compiled.network.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


class NotedMixup(Mixup):
    """Keeps the lam of its steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lams: list[torch.Tensor] = []

    def _lam(self, count: int, step: int) -> torch.Tensor:
        self.lams.append(super()._lam(count, step))
        return self.lams[-1]


def test_the_recipes_seed_is_mixups_too(betons: Betons) -> None:
    def lams(seed: int, own: int | None = None) -> torch.Tensor:
        method = NotedMixup(seed=own)
        numbers = recipe(seed=seed, iterations=3)
        fit(method, network(), recipe=numbers, **data(betons, method))
        return torch.stack(method.lams)

    zero, one = lams(0), lams(1)
    assert torch.equal(lams(0), zero) and len(zero.unique()) == zero.numel()
    assert not (zero == one).any()
    assert torch.equal(lams(0, own=4), lams(1, own=4))  # a seed of its own is what it says


# Resuming


class ThreeTimes(L2SP):
    """Each phase is held where the one before it ended."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(Phase("target", ("target",), iterations) for iterations in (3, 2, 4))


RESUMED: dict[str, Callable[[], Method]] = {
    "finetune": FineTune,
    "l2sp": L2SP,
    "mixup": Mixup,
    "three times": lambda: ThreeTimes(alpha=0.5),
    "seqtrain": lambda: SeqTrain(auxiliary_iterations=6),
    "xmixup": XMixup,
    "gradmix": lambda: GradMix(pseudo_label_threshold=0.3, step_scale=lambda x: math.tanh(x)),
    "delta": lambda: DELTA(attention_images=4),
    "cotuning": CoTuning,
}


@pytest.mark.parametrize("name", list(RESUMED))
def test_a_resumed_training_ends_in_the_same_weights(
    name: str, betons: Betons, tmp_path: Path
) -> None:
    numbers = recipe(save_every=2, test_every=4, log_every=3 if name == "mixup" else 1)
    unlabelled = name == "gradmix"

    def train(folder: str) -> dict[str, Any]:
        method, model = RESUMED[name](), network(dropout=0.3)  # each time new, as in a new process
        given = data(betons, method, unlabelled=unlabelled)
        result = fit(method, model, recipe=numbers, output=tmp_path / folder, **given)
        return result.network.state_dict()

    expected = train("whole")
    steps = sum(phase.iterations or 9 for phase in RESUMED[name]().phases)
    # In the first step, before any checkpoint, on one, after one, and again and again.
    for number, stops in enumerate([(1,), (2, 4, 3), (6, 2, 2), (steps - 2, 1), (steps,)]):
        for stop in stops:
            Fuse.steps, Fuse.act = stop, interrupt
            with pytest.raises(KeyboardInterrupt):
                train(f"{number}")
            assert not (tmp_path / f"{number}" / "result.json").exists()
            with (tmp_path / f"{number}" / "metrics.jsonl").open("a") as stream:
                stream.write('{"phase": 0, "st')  # a process that is killed writes half a line
        Fuse.steps = -1
        same(train(f"{number}"), expected)
        for file in ("metrics.jsonl", "result.json", "model.pt"):
            content = (tmp_path / f"{number}" / file).read_bytes()
            assert content == (tmp_path / "whole" / file).read_bytes(), (stops, file)
    if unlabelled:
        assert any(line.get("pseudo_labels", 0) > 0 for line in metrics(tmp_path / "whole"))
        assert "0x" not in (tmp_path / "whole" / "result.json").read_text()


def test_few_epochs_of_mixing_are_warned_of(
    betons: Betons, caplog: pytest.LogCaptureFixture
) -> None:
    for unmixed, epochs, warned in ((0.0, 74, True), (0.0, 75, False), (0.3, 24, True)):
        assert (advice_on_mixing(Recipe(unmixed=unmixed), epochs) is not None) == warned
    assert advice_on_mixing(Recipe(unmixed=0.3), 25) is None
    assert advice_on_mixing(Recipe(unmixed=0.001), 30) is not None  # no end that was measured
    assert advice_on_mixing(Recipe(unmixed=1), 1) is None  # nothing is mixed
    short = advice_on_mixing(Recipe(), 0.4)
    assert short is not None and "unmixed" not in short  # an end begins where an epoch ends
    for method, warned in ((XMixup(), True), (Mixup(), True), (FineTune(), False)):
        caplog.clear()
        fit(method, network(), recipe=recipe(epochs=2), **data(betons, method))
        # 2 passes of 3 batches of 8 of 27 images
        assert ("has 1.78 epochs of the target" in caplog.text) == warned
        assert ("try unmixed=0.33 with clean_statistics=True (--unmixed" in caplog.text) == warned


def test_a_test_set_of_training_images_is_warned_of(
    betons: Betons, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = tmp_path / "test.beton"
    for file in sorted(betons.target_jpg.path.parent.glob(f"{betons.target_jpg.path.name}*")):
        shutil.copy(file, tmp_path / file.name.replace(betons.target_jpg.path.name, copied.name))
    for test, warned in ((betons.target_jpg, 1), (copied, 1), (betons.target_raw, 0)):
        caplog.clear()
        fit(FineTune(), network(), betons.target_jpg, test=test, recipe=recipe(iterations=1))
        assert caplog.text.count("holds training images") == warned


def test_a_finished_training_is_only_tested_again(
    betons: Betons, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for method in (FineTune(), SeqTrain()):
        caplog.set_level("INFO", "xmix_data")
        output, given = tmp_path / method.name, data(betons, method)
        numbers = recipe(test_every=2)
        result = fit(method, network(), recipe=numbers, output=output, **given)
        files = {file.name: file.read_bytes() for file in output.iterdir()}
        Fuse.steps, Fuse.act = 1, forbidden  # no step is made any more
        again = fit(method, network(), recipe=numbers, output=output, **given)
        assert again.accuracy == result.accuracy
        same(again.network.state_dict(), result.network.state_dict())
        assert files == {file.name: file.read_bytes() for file in output.iterdir()}
        assert "goes on after iteration 9" in caplog.text
        # Another test set, and other intervals, do not touch what was learnt.
        given["test"] = None
        rarely = dataclasses.replace(numbers, test_every=None, save_every=7, log_every=9)
        untested = fit(method, network(), recipe=rarely, output=output, **given)
        assert untested.accuracy is None
        same(untested.network.state_dict(), result.network.state_dict())
        assert json.loads((output / "result.json").read_text())["accuracy"] is None
        Fuse.steps = -1


def test_a_training_without_checkpoint_begins_its_metrics_anew(
    betons: Betons, tmp_path: Path
) -> None:
    given = data(betons, FineTune())
    Fuse.steps, Fuse.act = 4, interrupt
    with pytest.raises(KeyboardInterrupt):
        fit(FineTune(), network(), recipe=recipe(), output=tmp_path, **given)
    assert len(metrics(tmp_path)) == 3 and not (tmp_path / "checkpoint.pt").exists()
    fit(FineTune(), network(), recipe=recipe(), output=tmp_path, **given)
    assert [line["step"] for line in metrics(tmp_path)] == [*range(1, 10), 9]


# Test sets


def test_classes_of_the_test_set_are_found_by_name(betons: Betons, tmp_path: Path) -> None:
    train = Images([9, 7, 5, 6], "t", seed=1)
    assert train.classes == betons.target_raw.class_names

    def beton(name: str, classes: list[str], kept: set[str]) -> Beton:
        images = Images([9, 7, 5, 6], "t", seed=1)
        wanted = [i for i, label in enumerate(train.targets) if train.classes[label] in kept]
        images.targets = [classes.index(train.classes[train.targets[i]]) for i in wanted]
        images.pixels, images.classes = [images.pixels[i] for i in wanted], classes
        return small_beton(images, tmp_path / f"{name}.beton")

    given = data(betons, FineTune())
    turned = beton("turned", ["t2", "unknown", "t0", "t3", "t1"], {"t0", "t1", "t2", "t3"})
    part = beton("part", ["t3", "t1"], {"t1", "t3"})
    found = {}
    for test in (betons.target_raw, turned, part):
        given["test"] = test
        result = fit(FineTune(), network(), recipe=recipe(iterations=60), **given)
        found[test] = result.accuracy
        assert result.accuracy == accuracy_by_hand(result.network, test, train.classes)
    assert found[betons.target_raw] == found[turned] > 0.5

    given["test"] = beton("strange", ["t2", "unknown"], {"t2"})
    fit(FineTune(), network(), recipe=recipe(iterations=1), **given)
    strange = Images([2, 2], "t")
    strange.classes = ["t1", "zebra"]
    given["test"] = small_beton(strange, tmp_path / "zebra.beton")
    with pytest.raises(ValueError, match=r"test class 'zebra' \(.*zebra.beton\) has no training"):
        fit(FineTune(), network(), recipe=recipe(), **given)
    # A class that the target knows by name, and has no image of.
    lacking = beton("lacking", train.classes, {"t1", "t2", "t3"})
    with pytest.raises(ValueError, match=r"test class 't0' .* has no training image"):
        fit(FineTune(), network(), lacking, test=betons.target_raw, recipe=recipe())
    with pytest.raises(ValueError, match=r"test class 't3' .* is in several target"):
        fit(FineTune(), network(), [betons.target_raw, turned], test=part, recipe=recipe())


def test_evaluation_leaves_the_mode_as_it_was(betons: Betons) -> None:
    net = fit(
        FineTune(), network(), recipe=recipe(iterations=1), **data(betons, FineTune())
    ).network
    with ImageLoader(betons.target_raw, batch_size=5, crop=CenterCrop(CROP)) as loader:
        for training, of_norm in ((True, True), (False, False), (True, False)):
            net.train(training)
            net.backbone[1].train(of_norm)  # as where the statistics are frozen
            before = state_hash(net)
            evaluate(net, loader)
            assert (net.training, net.backbone[1].training) == (training, of_norm)
            assert state_hash(net) == before


# Several processes


class Case(NamedTuple):
    """A training that several processes share."""

    method: Callable[[], Method]
    model: Callable[[], nn.Module]
    unlabelled: bool = False
    interrupted: bool = False


CASES = {
    "finetune": Case(FineTune, lambda: network(norm=False)),
    "xmixup": Case(XMixup, lambda: network(norm=False)),
    "gradmix": Case(GradMix, lambda: network(norm=False)),
    "normed": Case(FineTune, network),
    "cotuning": Case(CoTuning, lambda: network(norm=False)),
    "resumed": Case(
        lambda: GradMix(pseudo_label_threshold=0.3),
        lambda: network(dropout=0.3),
        unlabelled=True,
        interrupted=True,
    ),
}


class Shared(NamedTuple):
    """Of two processes."""

    folder: Path
    one: dict[str, Any]
    other: dict[str, Any]
    out: str
    err: str


SHARED = recipe(batch_size=4, save_every=3, test_every=4)


def job(folder: Path, given: Betons) -> None:
    """One process of several: trains every case and writes down what it has."""
    assert main(train_command(given, folder / "command", "finetune", "--json")) == 0
    # The command has had the launcher's meeting place, which serves once.
    rank, meeting = int(os.environ["RANK"]), (folder / "meeting").as_uri()
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)

    def train(name: str, output: str) -> Any:
        case = CASES[name]
        method = case.method()
        return fit(
            method,
            case.model(),
            recipe=SHARED,
            output=folder / output,
            **data(given, method, unlabelled=case.unlabelled),
        )

    found: dict[str, Any] = {}
    for name, case in CASES.items():
        result = train(name, f"{name} of {rank}" if name == "finetune" else name)
        found[name] = (result.accuracy, result.network.state_dict())
        if case.interrupted:
            Fuse.steps, Fuse.act = 6, interrupt
            try:
                train(name, "again")
            except KeyboardInterrupt:
                found["again"] = train(name, "again").network.state_dict()
    if rank == 1:
        Fuse.steps, Fuse.act = 6, lambda x: x * math.nan
    try:
        train("normed", "nan")
    except XMixError as error:
        found["error"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared(
    betons: Betons, tmp_path_factory: pytest.TempPathFactory, forked: processes.Server
) -> Shared:
    """What two processes of a job have done."""
    folder = tmp_path_factory.mktemp("shared")
    betons.pairing.save(folder / "pairing.json")
    files = [str(beton.path) for beton in betons[:4]]
    results = processes.ended(forked.job(2, __file__, str(folder), *files), 120)
    assert [status for status, *_ in results] == [0, 0], results
    one, other = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    _, out, err = ("".join(map(str, texts)) for texts in zip(*results, strict=True))
    return Shared(folder, one, other, out, err)


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_have_one_network(name: str, shared: Shared, betons: Betons) -> None:
    (accuracy, state), (other_accuracy, other_state) = shared.one[name], shared.other[name]
    same(state, other_state)  # buffers as well
    folder = shared.folder / ("finetune of 0" if name == "finetune" else name)
    same(torch.load(folder / "model.pt", weights_only=True)["network"], state)
    # 27 test images: each counts once, though the last batch is padded.
    case, names = CASES[name], betons.target_raw.class_names
    method = case.method()
    net = untouched(method, case.model(), SHARED, data(betons, method))
    net.load_state_dict(state)
    by_hand = accuracy_by_hand(net, betons.target_jpg, names)
    assert accuracy == other_accuracy == by_hand == metrics(folder)[-1]["accuracy"]


@pytest.mark.parametrize("name", ["finetune", "xmixup", "gradmix"])
def test_two_processes_train_as_one(
    name: str, shared: Shared, betons: Betons, tmp_path: Path
) -> None:
    case = CASES[name]
    method, numbers = case.method(), dataclasses.replace(SHARED, batch_size=8)
    alone = fit(method, case.model(), recipe=numbers, output=tmp_path, **data(betons, method))
    for key, value in alone.network.state_dict().items():
        torch.testing.assert_close(shared.one[name][1][key], value, rtol=1e-4, atol=1e-5)
    folder = shared.folder / ("finetune of 0" if name == "finetune" else name)
    for line, expected in zip(metrics(folder), metrics(tmp_path), strict=True):
        assert line == pytest.approx(expected, rel=1e-3)


def test_two_processes_write_and_speak_once(shared: Shared) -> None:
    assert (shared.folder / "finetune of 0" / "result.json").exists()
    assert list((shared.folder / "finetune of 1").iterdir()) == []
    result = json.loads(shared.out)  # the command's, of one process
    assert result == json.loads((shared.folder / "command" / "result.json").read_text())
    assert 27 * result["accuracy"] == pytest.approx(round(27 * result["accuracy"]))
    assert shared.err.count("finetune: 2/2 (100 %)") == 1


def test_two_processes_resume_exactly(shared: Shared) -> None:
    same(shared.one["again"], shared.one["resumed"][1])
    same(shared.other["again"], shared.one["resumed"][1])
    for file in ("metrics.jsonl", "model.pt", "result.json"):
        content = (shared.folder / "again" / file).read_bytes()
        assert content == (shared.folder / "resumed" / file).read_bytes()


def test_what_one_process_finds_ends_both(shared: Shared) -> None:
    assert "the loss is nan in step 6, from " in shared.other["error"]
    assert "the loss of another process is not finite in step 6" in shared.one["error"]
    saved = torch.load(shared.folder / "nan" / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 3 and finite(saved["network"])


# What it refuses


def test_a_loss_that_is_not_finite(betons: Betons, tmp_path: Path) -> None:
    given = data(betons, FineTune())
    Fuse.steps, Fuse.act = 5, lambda x: x / 0
    with pytest.raises(XMixError) as error:
        fit(FineTune(), network(), recipe=recipe(save_every=1), output=tmp_path, **given)
    with ImageLoader(
        betons.target_raw, batch_size=8, crop=RandomCrop(CROP), shuffle=True, drop_last=True
    ) as loader:
        for _ in islice((batch for _ in range(2) for batch in loader), 5):
            pass
        assert loader.last_rows is not None
        names = loader.describe(loader.last_rows)
    text = str(error.value)
    assert text.startswith(
        f"finetune: the loss is nan in step 5, from {'; '.join(names[:4])} and 4"
    )
    assert names[4] not in text
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 4 and finite(saved["network"])
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_learning_rate_that_is_too_high(betons: Betons, tmp_path: Path) -> None:
    method = XMixup()
    wild = recipe(save_every=1, learning_rate=1e30)
    with pytest.raises(XMixError, match=r"xmixup: (the loss|a weight) is .* in step \d, from "):
        fit(method, network(), recipe=wild, output=tmp_path, **data(betons, method))
    assert finite(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"])


def test_singular_values_of_features_that_are_not_finite(betons: Betons, tmp_path: Path) -> None:
    """A decomposition raises an error of its own, which names neither step nor images."""
    given = data(betons, BSS())
    Fuse.steps, Fuse.act = 5, lambda x: x / 0
    with pytest.raises(XMixError, match=r"bss: the loss is nan in step 5, from .*target-raw"):
        fit(BSS(), network(), recipe=recipe(save_every=1), output=tmp_path, **given)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 4 and finite(saved["network"])


class NoSlope(torch.autograd.Function):
    """Nothing forth, NaN back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
        return slope * math.nan


@pytest.mark.parametrize("save_every", [1, 100])
def test_weights_that_are_not_finite_are_never_saved(
    betons: Betons, tmp_path: Path, save_every: int
) -> None:
    """The loss of the step is finite, and its gradient is not."""
    numbers = recipe(save_every=save_every, iterations=4)
    Fuse.steps, Fuse.act = 4, NoSlope.apply
    with pytest.raises(XMixError, match=r"a weight is not finite in step 4, from .*target-raw"):
        fit(FineTune(), network(), recipe=numbers, output=tmp_path, **data(betons, FineTune()))
    assert not (tmp_path / "model.pt").exists()
    if save_every == 1:
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert saved["step"] == 3 and finite(saved["network"])


def test_what_does_not_fit_is_said_before_the_first_step(betons: Betons, tmp_path: Path) -> None:
    small = small_beton(Images([3, 3, 3, 3], "t", size=(30, 30)), tmp_path / "small.beton")
    given = data(betons, SeqTrain())
    whole = Backbone(network(), "vit", size=32, one_size=True)
    cases: list[tuple[Method, dict[str, Any], str]] = [
        (FineTune(), {"target": small}, "30x30, smaller than the crop 36x36"),
        (FineTune(), {"test": small}, "30x30, smaller than the crop 36x36"),
        (
            SeqTrain(),
            {"target": small, "recipe": recipe(crop=30, batch_size=13)},
            r"13 x 1 processes is larger than the 12 images of an epoch of small\.beton",
        ),
        (SeqTrain(), {"source": None}, "seqtrain trains on source images too; give a source"),
        (XMixup(source_labels=False), {"pairing": None}, "give a source and a pairing"),
        (XMixup(), {"unlabelled": small}, "xmixup has no use for unlabelled images"),
        (GradMix(pseudo_label_threshold=None), {"unlabelled": small}, "gradmix has no use for"),
        (CoTrain(), {"pairing": tmp_path / "no.json"}, "no.json"),
        (CoTrain(), {"source": betons.target_raw}, "in no source beton"),
        (CoTrain(), {"source_rows": [0, 1]}, "2 numbers for 6 source classes"),
        (CoTrain(), {"source_rows": [0, 1, 2, 3, 4, 10]}, "from 0 to 9"),
        (FineTune(), {"recipe": recipe(batch_size=28)}, "28 x 1 processes is larger than the 27"),
        (FineTune(), {"backbone": whole}, "vit takes images of 32 pixels .* crop is 36; give it"),
        (FineTune(), {"backbone": nn.Conv2d(3, 4, 1)}, "must come from one linear layer"),
        (FineTune(), {"backbone": network()[:-1]}, r"Sequential\(network, torch.nn.Identity\(\)\)"),
        (FineTune(), {"tensorboard": True}, "tensorboard writes into output"),
        (FineTune(), {"device": "cuda:99"}, "device is 'cuda:99', and torch finds"),
        (FineTune(), {"num_workers": 0}, "num_workers is 0"),
    ]
    for method, changes, message in cases:
        Fuse.steps, Fuse.act = 1, forbidden
        changed = {"backbone": network(), "recipe": recipe(), **given, **changes}
        with pytest.raises((ValueError, OSError), match=message):
            fit(method, **changed, output=None if "tensorboard" in changes else tmp_path / "run")
        # Heads are made last; all the rest is looked at before anything is written.
        assert "source_rows" in changes or not (tmp_path / "run").exists(), message
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_a_network_of_the_crops_size_alone(
    betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and rows are looked for with an image as the training has them."""
    path, weights = tmp_path / "own.py", tmp_path / "weights.pt"
    path.write_text(
        "from torch import nn\n"
        "make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6))\n"
    )
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6)).state_dict(), weights)
    betons.pairing.save(tmp_path / "pairing.json")
    two = ["--source", str(betons.source_raw.path), "--pairing", str(tmp_path / "pairing.json")]
    own = ["--model", f"{path}:make", "--weights", str(weights), "--same-rows"]
    command = train_command(betons, tmp_path / "run", "cotrain", *two, *own)
    assert main(command) == 0, capsys.readouterr().err


def test_what_is_missing_is_said_before_the_model_is_made(
    betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which may be a download."""
    never = tmp_path / "never.py"
    never.write_text("raise RuntimeError('it was made')")
    model = ["--model", f"{never}:model", "--output", str(tmp_path / "run")]
    assert main(["train", "--method", "xmixup", "--target", str(betons.target_raw.path), *model])
    said = capsys.readouterr().err
    assert "give a source and a pairing" in said and "it was made" not in said


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"iterations": 0}, "iterations is 0; it must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1; it must be a whole number in 0 "),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"crop": -1}, "crop is -1"),
        ({"test_every": 0}, "test_every is 0"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"beta": math.inf}, "beta is inf"),
        ({"drop_at": 1.5}, "drop_at 1.5"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
        ({"weight_decay": math.nan}, "weight_decay nan"),
    ],
)
def test_impossible_recipes(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**numbers)


def test_one_training_at_a_time_writes_to_a_folder(betons: Betons, tmp_path: Path) -> None:
    given = {**data(betons, FineTune()), "output": tmp_path}

    def begin_another(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(FileExistsError, match=f"{tmp_path}: another process or thread is w"):
            fit(FineTune(), network(), recipe=recipe(seed=1), **given)
        return x

    expected = fit(FineTune(), network(), recipe=recipe(), **data(betons, FineTune()))
    Fuse.steps, Fuse.act = 3, begin_another
    result = fit(FineTune(), network(), recipe=recipe(), **given)
    assert Fuse.steps < 0 and result.accuracy == expected.accuracy
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == list(range(1, 10))
    fit(FineTune(), network(), recipe=recipe(), **given)  # the folder is free again


def test_checkpoints_of_another_training(betons: Betons, tmp_path: Path) -> None:
    numbers, output = recipe(iterations=3), tmp_path / "xmixup"
    given = data(betons, XMixup())
    fit(XMixup(), network(), recipe=numbers, output=output, **given)
    files = {file.name: file.read_bytes() for file in output.iterdir()}
    other = network()
    with torch.no_grad():
        other[0].weight[0] += 1
    pairs = betons.pairing.pairs
    reverse = Pairing({name: pairs[f"t{3 - i}"] for i, name in enumerate(pairs)})
    more = small_beton(Images([9, 7, 5, 7], "t", seed=1), tmp_path / "more.beton")
    wide = small_beton(Images([9, 7, 5, 6, 0], "t", seed=1), tmp_path / "wide.beton")
    fold = small_beton(Images([9, 7, 5, 6], "t", seed=9), tmp_path / "fold.beton")
    renamed = small_beton(Images([9, 7, 5, 6], "z", seed=1), tmp_path / "renamed.beton")
    source = small_beton(Images([8, 3, 6, 9, 5, 7], "s", seed=9), tmp_path / "source.beton")
    cases: list[tuple[Method, dict[str, Any], str]] = [
        (FineTune(), {}, r"with method XMixup\(.*\), and this one has FineTune\(\); choose"),
        (XMixup(heads="joint"), {}, r"with method .*'two'.*'joint'"),
        (XMixup(), {"backbone": other}, "with model Sequential sha256:"),
        (XMixup(), {"recipe": recipe(iterations=4)}, "with iterations 3, and this one has 4"),
        (XMixup(), {"recipe": recipe(iterations=3, alpha=2.0)}, "with alpha 1.0, and this one"),
        (XMixup(), {"recipe": recipe(iterations=3, seed=1)}, "with seed 0, and this one has 1"),
        (XMixup(), {"pairing": reverse}, "saved with other data or another pairing; .* or choose"),
        (XMixup(), {"target": more}, "with other target images or class names; .* or choose"),
        (XMixup(), {"target": fold}, "with other target images or class names; .* or choose"),
        (XMixup(), {"source": source}, "with other source images or class names; .* or choose"),
        (XMixup(), {"backbone": network(dropout=0.5)}, "with a network of other layers; .* or"),
        (XMixup(), {"source_rows": range(6)}, r"with other rows for the source head \(--same-rows"),
    ]
    for method, changes, message in cases:
        Fuse.steps, Fuse.act = 1, forbidden
        changed = {"backbone": network(), "recipe": numbers, **given, **changes}
        with pytest.raises(ValueError, match=f"{output}.*{message}"):
            fit(method, output=output, **changed)
        assert files == {file.name: file.read_bytes() for file in output.iterdir()}
    Fuse.steps, given = -1, data(betons, FineTune())
    fit(FineTune(), network(), recipe=numbers, output=tmp_path / "plain", **given)
    given |= {"output": tmp_path / "plain", "test": None}
    for other_target in (wide, fold, renamed):
        with pytest.raises(ValueError, match="with other target images or class names; give those"):
            fit(FineTune(), network(), recipe=numbers, **{**given, "target": other_target})
    path = tmp_path / "plain" / "checkpoint.pt"
    earlier = torch.load(path)
    for key in ("target", "architecture", "source_rows"):
        del earlier["identity"][key]
    torch.save(earlier, path)
    fit(FineTune(), network(), recipe=numbers, **given)  # one of before goes on
    with pytest.raises(ValueError, match="the checkpoint has heads for other classes"):
        fit(FineTune(), network(), recipe=numbers, **{**given, "target": wide})
    method, output = GradMix(), tmp_path / "gradmix"
    given = data(betons, method)
    fit(method, network(), recipe=numbers, output=output, **given, unlabelled=betons.target_jpg)
    with pytest.raises(ValueError, match="was made with other --unlabelled images"):
        fit(method, network(), recipe=numbers, output=output, **given)


def test_a_checkpoint_of_images_normalised_otherwise(betons: Betons, tmp_path: Path) -> None:
    given = {**data(betons, FineTune()), "recipe": recipe(iterations=2), "output": tmp_path}
    fit(FineTune(), Backbone(network(), "mine", mean=(0.5, 0.5, 0.5)), **given)
    with pytest.raises(ValueError, match=r"of a run with mean \[0\.5, .*, and this one has \[0\.4"):
        fit(FineTune(), Backbone(network(), "mine", mean=(0.4, 0.5, 0.5)), **given)
    other = Backbone(network(), "mine", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    with pytest.raises(ValueError, match=r"of a run with std \[.*, and this one has \[1\.0, 1"):
        fit(FineTune(), other, **given)
    path = tmp_path / "checkpoint.pt"
    earlier = torch.load(path)
    del earlier["identity"]["mean"], earlier["identity"]["std"], earlier["data"]
    torch.save(earlier, path)
    fit(FineTune(), other, **given)  # one of before goes on


def test_a_second_phase_goes_on_only_after_the_same_first(betons: Betons, tmp_path: Path) -> None:
    """Its own batches know nothing of the pairing that the first phase had."""
    given = {**data(betons, SeqTrain()), "recipe": recipe(iterations=2), "output": tmp_path}
    fit(SeqTrain(), network(), **given)
    fewer = Pairing({name: paired[:1] for name, paired in betons.pairing.pairs.items()})
    fewer.pairs["t0"] = fewer.pairs["t1"]
    with pytest.raises(ValueError, match="an earlier phase learnt from other data or by another"):
        fit(SeqTrain(), network(), **{**given, "pairing": fewer})
    path = tmp_path / "checkpoint.pt"
    earlier = torch.load(path)
    del earlier["data"]
    torch.save(earlier, path)
    fit(SeqTrain(), network(), **given)


class Versioned(nn.Identity):
    """Has a state that is no tensor, as layers of Transformer Engine have."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 3}


def test_a_second_phase_begins_with_states_that_are_no_tensors(
    betons: Betons, tmp_path: Path
) -> None:
    given = {**data(betons, SeqTrain()), "recipe": recipe(iterations=2), "output": tmp_path}
    for _ in range(2):
        fit(SeqTrain(), nn.Sequential(Versioned(), *network()), **given)


def test_damaged_checkpoints(betons: Betons, tmp_path: Path) -> None:
    given = data(betons, FineTune())
    fit(FineTune(), network(), recipe=recipe(iterations=2), output=tmp_path, **given)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()

    def foreign(content: Any) -> bytes:
        torch.save(content, path)
        return path.read_bytes()

    for content in (
        b"",
        whole[: len(whole) // 2],
        b"\0" * len(whole),
        b"no checkpoint",
        foreign({"format": "somebody else's"}),
        foreign([1, 2]),
        foreign(nn.Linear(1, 1)),
        foreign({"format": "xmix_data.checkpoint/1"}),
    ):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"checkpoint.pt: damaged, or no checkpoint of .*begin anew$"
        ):
            fit(FineTune(), network(), recipe=recipe(iterations=2), output=tmp_path, **given)
        assert path.read_bytes() == content


def test_an_output_that_cannot_be_written(betons: Betons, tmp_path: Path) -> None:
    Fuse.steps, Fuse.act = 1, forbidden
    file, folder, closed = tmp_path / "file", tmp_path / "folder", tmp_path / "closed"
    file.touch()
    (folder / "metrics.jsonl").mkdir(parents=True)
    closed.mkdir(mode=0o555)
    user = os.geteuid()

    def train(output: Path) -> None:
        fit(FineTune(), network(), recipe=recipe(), output=output, **data(betons, FineTune()))

    with pytest.raises(OSError, match="file: is a file; give the name of a folder"):
        train(file)
    with pytest.raises(OSError, match="file/below"):
        train(file / "below")
    with pytest.raises(OSError, match=r"folder/metrics.jsonl"):
        train(folder)
    if user == 0:
        os.seteuid(65534)  # nobody: to root no folder is closed
    try:
        with pytest.raises(PermissionError, match="closed"):
            train(closed)
    finally:
        os.seteuid(user)


def test_tensorboard_shows_the_metrics(betons: Betons, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = data(betons, SeqTrain())
    numbers = recipe(iterations=4, test_every=2)
    fit(SeqTrain(), network(), recipe=numbers, output=tmp_path, tensorboard=True, **given)
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    shown = {
        (int(tag.split("/")[0].removeprefix("phase ")), event.step, tag.split("/")[1]): event.value
        for tag in board.Tags()["scalars"]
        for event in board.Scalars(tag)
    }
    written = {
        (line["phase"], line["step"], name): value
        for line in metrics(tmp_path)
        for name, value in line.items()
        if name not in ("phase", "step")
    }
    assert {name for _, _, name in written} == {"loss", "lr", "accuracy"}
    assert shown == pytest.approx(written, rel=1e-6)


def test_tensorboard_that_is_missing(
    betons: Betons,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert main(train_command(betons, tmp_path / "run", "finetune", "--tensorboard")) == 2
    assert "pip install tensorboard" in error_line(capsys)


def test_a_training_that_a_damaged_image_stopped_goes_on_without_it(
    betons: Betons, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for suffix in ("", ".json"):
        shutil.copy(f"{betons.target_jpg.path}{suffix}", tmp_path / f"t.beton{suffix}")
    with (tmp_path / "t.beton").open("r+b") as stream:
        stream.seek(int(betons.target_jpg.pointers[11]))
        stream.write(b"no")
    output = tmp_path / "run"
    given = {**data(betons, FineTune()), "target": tmp_path / "t.beton"}
    numbers = recipe(save_every=1)

    def train(on_error: str, output: Path | None = output) -> dict[str, Any]:
        chosen = dataclasses.replace(numbers, on_error=on_error)
        result = fit(FineTune(), network(), recipe=chosen, output=output, **given)
        return result.network.state_dict()

    with pytest.raises(BetonError, match="image 11"):
        train("raise")
    assert 1 <= len(metrics(output)) < numbers.iterations
    resumed = train("replace")
    assert "another of its class replaces it" in caplog.text
    same(resumed, train("replace", None))


# The command


def train_command(betons: Betons, output: Path, method: str, *more: str) -> list[str]:
    files = f"--target {betons.target_raw.path} --test {betons.target_jpg.path} --output {output}"
    numbers = "--iterations 2 --batch-size 4 --crop 32 --log-every 1 --workers 1 --device cpu"
    model = "--model mobilenet_v3_small --weights none"
    return [*f"train --method {method} {files} {model} {numbers}".split(), *more]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which is the last line on stderr."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("xmix: ") and "Traceback" not in captured.err
    return lines[-1]


def test_the_command_trains(
    betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    betons.pairing.save(tmp_path / "pairing.json")
    two = ["--source", str(betons.source_raw.path), "--pairing", str(tmp_path / "pairing.json")]
    output = tmp_path / "run"
    command = train_command(betons, output, "xmixup", *two, "--set", "heads=joint", "--no-flip")
    assert main(command) == 0
    captured = capsys.readouterr()
    result = json.loads((output / "result.json").read_text())
    assert captured.out == (
        f"trained by xmixup: top-1 accuracy {100 * result['accuracy']:.2f} % on the test set; "
        f"the network is in {output / 'model.pt'}\n"
    )
    assert "xmixup: 2/2 (100 %)" in captured.err
    assert result["method"] == repr(XMixup(heads="joint"))
    assert result["recipe"] == dataclasses.asdict(
        Recipe(iterations=2, batch_size=4, crop=32, log_every=1, flip=False)
    )
    assert [line["step"] for line in metrics(output)] == [1, 2, 2]
    assert main([*command, "--json"]) == 0  # it was finished
    assert json.loads(capsys.readouterr().out) == result

    preset = train_command(betons, tmp_path / "preset", "finetune", "--preset", "paper")
    assert main(preset) == 0  # what is given beside it wins
    numbers = json.loads((tmp_path / "preset/result.json").read_text())["recipe"]
    assert numbers == dataclasses.asdict(
        dataclasses.replace(PRESETS["paper"], iterations=2, batch_size=4, crop=32, log_every=1)
    )
    capsys.readouterr()

    untested = train_command(betons, tmp_path / "untested", "finetune")
    del untested[untested.index("--test") : untested.index("--test") + 2]
    assert main(untested) == 0
    assert "trained by finetune: no test set was given" in capsys.readouterr().out


def test_the_command_knows_every_method_and_the_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed = ["--target", "t.beton", "--model", "resnet50", "--output", "run"]
    for name in METHODS:
        options = _parser().parse_args(["train", "--method", name, *needed])
        assert options.method == name
        for field in dataclasses.fields(Recipe):
            assert getattr(options, field.name, field.default) == field.default
    with pytest.raises(SystemExit):
        _parser().parse_args(["train", "--method", "other", *needed])
    assert "'gradmix'" in capsys.readouterr().err


def test_what_the_command_refuses(
    betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    betons.pairing.save(tmp_path / "pairing.json")
    source = ["--source", str(betons.source_raw.path)]
    pairing = ["--pairing", str(tmp_path / "pairing.json")]
    cases: list[tuple[str, list[str], str]] = [
        ("xmixup", [], "give a source and a pairing (--source, --pairing)"),
        ("xmixup", source, "give a source and a pairing (--source, --pairing)"),
        ("xmixup", [*source, "--pairing", "no.json"], "no.json"),
        ("finetune", ["--same-rows"], "--same-rows is about the source's classes; give --source"),
        (
            "cotrain",
            ["--same-rows", *source, *pairing],
            "the classifier of mobilenet_v3_small has 1000 outputs, and the source 6 classes",
        ),
        ("finetune", ["--unlabelled", str(betons.target_jpg.path)], "no use for unlabelled"),
        (
            "finetune",
            ["--set", "eta=1"],
            "--set eta=1: give NAME=VALUE; finetune has the options none",
        ),
        ("bss", ["--set", "eta"], "--set eta: give NAME=VALUE; bss has the options eta, k"),
        ("bss", ["--set", "eta=much"], "--set eta=much: the value is to be of type float"),
        ("bss", ["--set", "k=2.5"], "--set k=2.5: the value is to be of type int"),
        ("bss", ["--set", "k=none"], "--set k=none: the value is to be of type int"),
        ("bss", ["--set", "k=0"], "k is 0; give at least 1"),
        ("xmixup", ["--set", "source_labels=maybe"], "to be of type bool"),
        ("xmixup", ["--set", "heads=three"], "heads is 'three'; it must be 'two' or 'joint'"),
        ("gradmix", ["--set", "step_scale=2"], "step_scale=2: the value is to be of type Callable"),
        ("finetune", ["--iterations", "0"], "iterations is 0"),
        ("finetune", ["--epochs", "2"], "--iterations 2 and --epochs 2 both say how long"),
        ("finetune", ["--crop", "41"], "smaller than the crop 41x41; crop less"),
        ("finetune", ["--batch-size", "28"], "is larger than the 27 images of an epoch"),
        ("finetune", ["--model", "resnet19"], "torchvision has no classifier 'resnet19'"),
        ("finetune", ["--weights", "no.pth"], "no.pth: no such weights file"),
        ("finetune", ["--learning-rate", "1e30", "--iterations", "9"], "finetune: the loss is"),
        ("finetune", ["--device", "gpu"], "device is 'gpu'"),
        ("finetune", ["--output", str(tmp_path / "pairing.json")], "is a file; give the name of"),
    ]
    for number, (method, more, message) in enumerate(cases):
        command = train_command(betons, tmp_path / f"run-{number}", method, *more)
        assert main(command) == 2, more
        assert message in error_line(capsys), more


def test_options_of_methods_by_text() -> None:
    for name, texts, expected in (
        ("finetune", [], FineTune()),
        ("l2sp", ["alpha=1", "beta=1e-2"], L2SP(alpha=1.0, beta=0.01)),
        ("bss", ["k=3", "eta=.5"], BSS(eta=0.5, k=3)),
        ("seqtrain", ["auxiliary_iterations=None"], SeqTrain()),
        ("mixup", ["seed=7", "seed=8"], Mixup(seed=8)),
        ("xmixup", ["source_labels=false", "lam=batch"], XMixup(lam="batch", source_labels=False)),
        (
            "gradmix",
            ["pseudo_label_threshold=none", "step_scale=none"],
            GradMix(pseudo_label_threshold=None),
        ),
    ):
        assert repr(_with_options(METHODS[name], texts)) == repr(expected)


if __name__ == "__main__":
    folder, *files = map(Path, sys.argv[1:])
    job(folder, Betons(*map(Beton, files), Pairing.load(folder / "pairing.json")))


# What the recipe leaves open


class Seen(nn.Module):
    """Notes whether the images of each forward pass in training are stored ones, unmixed."""

    images: list[torch.Tensor]

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        Seen.images = []

    def forward(self, images: torch.Tensor) -> Any:
        if self.training:
            Seen.images.append(images.detach().clone())
        return self.inner(images)


def test_epochs_count_passes_over_a_phases_images(betons: Betons, tmp_path: Path) -> None:
    method = XMixup()
    of_epoch = 27 // 8
    fit(
        method,
        network(),
        recipe=recipe(iterations=1, epochs=2.5),
        output=tmp_path,
        **data(betons, method),
    )
    steps = [line["step"] for line in metrics(tmp_path) if "loss" in line]
    assert steps[-1] == round(2.5 * of_epoch)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["iterations"] == [steps[-1]]  # and no figure that was not trained
    assert (result["recipe"]["iterations"], result["recipe"]["epochs"]) == (None, 2.5)


def test_a_result_says_how_long_each_phase_was(betons: Betons, tmp_path: Path) -> None:
    method = SeqTrain(auxiliary_iterations=2)
    fit(method, network(), recipe=recipe(iterations=3), output=tmp_path, **data(betons, method))
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["iterations"], result["recipe"]["iterations"]) == ([2, 3], 3)


@pytest.mark.parametrize(
    ("method", "iterations", "unmixed", "first"),
    [
        *((method, 12, 0.4, 6) for method in (XMixup(), XMixup(lam="batch"), Mixup())),
        (XMixup(), 9, 0.1, 6),  # the nearest end would be the training's: there is an unmixed end
        (XMixup(), 4, 0.9, 3),  # and the nearest here its beginning: something is mixed
        (XMixup(), 2, 1, 0),
    ],
    ids=repr,
)
def test_mixing_is_off_at_the_end(
    betons: Betons, method: Method, iterations: int, unmixed: float, first: int
) -> None:
    """From the nearest end of an epoch, of 3 steps, on: then images are those of plain loading."""
    settings = {"iterations": iterations, "unmixed": unmixed, "crop": 40, "flip": False}
    what = data(betons, method)
    fit(method, Seen(network(norm=False)), recipe=recipe(**settings), **what)
    passes = [images for images in Seen.images if len(images) in (8, 16)][-iterations:]
    beton = ImageLoader(betons.target_raw, batch_size=1, crop=CenterCrop(40))
    stored = torch.cat([images for images, _ in beton])

    def clean(images: torch.Tensor) -> bool:
        distances = (images[:8, None] - stored[None]).abs().amax(dim=(2, 3, 4)).amin(1)
        return bool((distances < 1e-5).all())

    assert [clean(images) for images in passes] == [step >= first for step in range(iterations)]


@pytest.mark.parametrize("method", [XMixup(), Mixup()], ids=repr)
def test_an_unmixed_end_needs_more_than_an_epoch(betons: Betons, method: Method) -> None:
    numbers = recipe(iterations=3, unmixed=0.34)
    with pytest.raises(ValueError, match=r"unmixed is 0\.34.* has no more than one of 3; give"):
        fit(method, network(), recipe=numbers, **data(betons, method))


def test_an_interrupted_run_leaves_mixing_off_where_it_did(betons: Betons, tmp_path: Path) -> None:
    method, what = XMixup(), data(betons, XMixup())
    settings = {"iterations": 12, "unmixed": 0.5, "save_every": 1, "clean_statistics": True}
    whole = fit(method, network(), recipe=recipe(**settings), **what)
    for stop in (4, 8, 10):
        Fuse.steps, Fuse.act = stop, interrupt
        with pytest.raises(KeyboardInterrupt):
            fit(method, network(), recipe=recipe(**settings), output=tmp_path / str(stop), **what)
        Fuse.steps = -1
        again = fit(
            method, network(), recipe=recipe(**settings), output=tmp_path / str(stop), **what
        )
        for name, value in whole.network.state_dict().items():
            assert torch.equal(value, again.network.state_dict()[name]), (stop, name)


def test_statistics_measured_again_are_the_same(betons: Betons, tmp_path: Path) -> None:
    """Those behind dropout, too: a finished training that is run again changes nothing."""
    method, what = XMixup(), data(betons, XMixup())
    numbers = recipe(iterations=4, clean_statistics=True)

    def behind_dropout() -> nn.Module:
        torch.manual_seed(1)
        flat = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5))
        return nn.Sequential(*flat, nn.BatchNorm1d(12), nn.Linear(12, 10))

    states = []
    for _ in range(2):
        torch.manual_seed(len(states))  # what the caller did before is of no account
        result = fit(method, behind_dropout(), recipe=numbers, output=tmp_path, **what)
        states.append(result.network.state_dict())
    same(*states)


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(
    betons: Betons, tmp_path: Path
) -> None:
    what = data(betons, FineTune())
    fit(FineTune(), network(), recipe=recipe(iterations=2), output=tmp_path, **what)
    for file in ("model.pt", "result.json"):
        (tmp_path / file).unlink()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model\.pt: cannot be written \(File too large\); free"):
            fit(FineTune(), network(), recipe=recipe(iterations=2), output=tmp_path, **what)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "model.pt").exists()


def test_a_log_of_something_else_is_not_cut(betons: Betons, tmp_path: Path) -> None:
    text = '{"epoch": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r'metrics\.jsonl: is no log of a training \(\{"epoch": 1'):
        fit(FineTune(), network(), recipe=recipe(), output=tmp_path, **data(betons, FineTune()))
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_network_in_half_precision_is_refused(betons: Betons) -> None:
    half = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).bfloat16()
    for use in (
        lambda: fit(FineTune(), half, recipe=recipe(), **data(betons, FineTune())),
        lambda: class_centroids(betons.target_raw, half),
    ):
        with pytest.raises(ValueError, match=r"is in torch\.bfloat16.* \(network\.float\(\)\)"):
            use()


def test_statistics_are_those_of_unmixed_images(betons: Betons) -> None:
    method, what = XMixup(), data(betons, XMixup())
    results = [
        fit(method, network(), recipe=recipe(iterations=6, clean_statistics=clean), **what)
        for clean in (False, True)
    ]
    plain, measured = (result.network for result in results)
    accuracies = [
        evaluate(one, ImageLoader(what["test"], batch_size=8, crop=CenterCrop(CROP)))
        for one in (plain, measured)
    ]
    assert [result.accuracy for result in results] == accuracies and len(set(accuracies)) == 2
    weights, statistics = {}, {}
    for name, value in measured.state_dict().items():
        same_ = torch.equal(value, plain.state_dict()[name])
        (statistics if "running" in name else weights)[name] = same_
    assert not any(statistics.values())
    assert all(value for name, value in weights.items() if "num_batches" not in name)
    norm = measured.backbone[1]
    loader = ImageLoader(
        betons.target_raw,
        batch_size=8,
        crop=RandomCrop(CROP),
        shuffle=True,
        drop_last=True,
        flip=True,
    )
    with torch.no_grad():
        expected = torch.stack(
            [measured.backbone[0](images).mean((0, 2, 3)) for images, _ in loader]
        ).mean(0)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1


def test_nesterov_is_torchs(betons: Betons) -> None:
    weights = [
        fit(
            FineTune(), network(), recipe=recipe(nesterov=on), **data(betons, FineTune())
        ).network.state_dict()["backbone.0.weight"]
        for on in (False, True)
    ]
    assert not torch.equal(weights[0], weights[1])
    with pytest.raises(ValueError, match="nesterov needs momentum"):
        Recipe(nesterov=True, momentum=0)


@pytest.mark.parametrize("numbers", [{"epochs": 0}, {"unmixed": 1.5}, {"unmixed": -0.1}], ids=str)
def test_impossible_open_ends_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(numbers))):
        Recipe(**numbers)  # type: ignore[arg-type]


def test_unmixed_is_for_methods_that_mix(betons: Betons) -> None:
    with pytest.raises(ValueError, match="l2sp mixes none"):
        fit(L2SP(), network(), recipe=recipe(unmixed=0.3), **data(betons, L2SP()))


@pytest.mark.parametrize(
    "method",
    [FineTune(), L2SP(), DELTA(), Mixup(), SeqTrain(), CoTrain(), GradMix()],
    ids=lambda method: method.name,
)
def test_alpha_and_beta_are_for_methods_that_mix_two_domains(
    betons: Betons, method: Method, capsys: pytest.CaptureFixture[str]
) -> None:
    own = isinstance(method, (L2SP, DELTA, Mixup))
    words = f"mix target and source, and {method.name} does not; leave it out"
    words += f"; {method.name} has an alpha of its own: --set alpha=0.2\n" if own else "\n"
    command = f"train --method {method.name} --target {betons.target_raw.path} --model resnet18"
    command += " --weights none --alpha 0.2 --output out"
    assert main(command.split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("method", [FineTune(), Mixup()], ids=lambda method: method.name)
def test_methods_may_share_a_recipe(
    betons: Betons, method: Method, caplog: pytest.LogCaptureFixture
) -> None:
    """What is of XMixup changes no other method; one with such an option of its own says so."""
    one, other = (
        fit(method, network(), recipe=recipe(iterations=2, alpha=alpha), **data(betons, method))
        for alpha in (1.0, 0.2)
    )
    assert state_hash(one.network) == state_hash(other.network)
    said = "the recipe's alpha 0.2 is for methods that mix target and source; mixup has its own, 1"
    assert caplog.messages.count(said) == isinstance(method, Mixup)


@pytest.mark.parametrize("method", [XMixup(), XMixup(lam="batch")], ids=repr)
def test_alpha_and_beta_reach_both_forms_of_xmixup(betons: Betons, method: Method) -> None:
    one, other = (
        fit(method, network(), recipe=recipe(iterations=1, beta=beta), **data(betons, method))
        for beta in (1.0, 9.0)
    )
    weights = [net.network.state_dict()["target_head.weight"] for net in (one, other)]
    assert not torch.equal(*weights)


def test_a_checkpoint_whose_alpha_meant_nothing_goes_on_without_it(tmp_path: Path) -> None:
    path, now = tmp_path / "checkpoint.pt", identity_of(Mixup(), "m", Recipe())
    save_checkpoint(path, {**now, "recipe": dataclasses.asdict(Recipe(alpha=0.2))}, {"step": 3})
    assert load_checkpoint(path, now)["step"] == 3


def test_a_checkpoint_of_before_these_options_goes_on(tmp_path: Path) -> None:
    """What it does not name means the default; what it names must be asked for again."""
    path, now = tmp_path / "checkpoint.pt", identity_of(FineTune(), "m", Recipe())
    later = {"epochs", "nesterov", "unmixed", "clean_statistics", "label_smoothing", "compile_mode"}
    before = {key: value for key, value in now["recipe"].items() if key not in later}
    save_checkpoint(path, {**now, "recipe": before}, {"step": 3})
    assert load_checkpoint(path, now)["step"] == 3
    other = identity_of(FineTune(), "m", Recipe(unmixed=0.3))
    with pytest.raises(ValueError, match=r"is of a run with unmixed 0\.0, and this one has 0\.3"):
        load_checkpoint(path, other)
    save_checkpoint(path, other, {"step": 3})
    with pytest.raises(ValueError, match=r"is of a run with unmixed 0\.3, and this one has 0\.0"):
        load_checkpoint(path, now)


def smoothed(logits: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
    """Cross-entropy with labels of (1 - share) e + share / n, by its definition, (B,)."""
    rows = torch.full_like(logits, share / logits.shape[1])
    rows[torch.arange(len(labels)), labels] += 1 - share
    return -(rows * logits.log_softmax(1)).sum(1)


def of_mixed(outputs: Any, batch: Any, share: float) -> torch.Tensor:
    target = smoothed(outputs.target_logits, batch.target_labels, share)
    source = smoothed(outputs.source_logits, batch.source_labels, share)
    return (batch.lam * target + (1 - batch.lam) * source).mean()


def of_joint(outputs: Any, batch: Any, share: float) -> torch.Tensor:
    """Contract: row = lam ((1 - e) e_t + e / n) beside (1 - lam) ((1 - e) e_s + e / m)."""
    both = torch.cat([outputs.target_logits, outputs.source_logits], 1).log_softmax(1)
    blocks = both.split([outputs.target_logits.shape[1], outputs.source_logits.shape[1]], 1)
    weights = batch.lam, 1 - batch.lam
    loss = torch.zeros(len(batch.lam))
    for block, labels, weight in zip(
        blocks, (batch.target_labels, batch.source_labels), weights, strict=True
    ):
        chosen = block.gather(1, labels[:, None])[:, 0]
        loss = loss - weight * ((1 - share) * chosen + share * block.mean(1))
    return loss.mean()


def of_pairs(outputs: Any, batch: Any, share: float) -> torch.Tensor:
    size = len(batch.lam)
    target = smoothed(outputs.target_logits[:size], batch.target_labels, share)
    source = smoothed(outputs.source_logits[size:], batch.source_labels, share)
    return target.mean() + source.mean()


def of_target(outputs: Any, batch: Any, share: float) -> torch.Tensor:
    return smoothed(outputs.target_logits, batch[1], share).mean()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (FineTune(), of_target),
        (L2SP(alpha=0, beta=0), of_target),
        (BSS(eta=0), of_target),
        (DELTA(alpha=0, beta=0, attention=False), of_target),
        (CoTuning(weight=0), of_target),
        (SeqTrain(), None),
        (CoTrain(), of_pairs),
        (GradMix(), of_pairs),
        (Mixup(), None),
        (XMixup(), of_mixed),
        (XMixup(heads="joint"), of_joint),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_labels_are_smoothed_within_their_set(
    betons: Betons, method: Method, expected: Any
) -> None:
    """`Recipe.label_smoothing` in the first step's loss, against its definition."""
    losses: dict[float, list[Any]] = {share: [] for share in (0.0, 0.3)}
    kind = type(method)
    original = kind.backward

    def watched(self: Any, network: Any, batch: Any, **options: Any) -> Any:
        with torch.no_grad():
            seen = (
                torch.cat([batch.target_images, batch.source_images])
                if hasattr(batch, "target_images")
                else batch[0]
            )
            outputs = network(seen)
        done = original(self, network, batch, **options)
        losses[self.label_smoothing].append((done.loss, outputs, batch))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "backward", watched)
        for share in losses:
            numbers = recipe(iterations=1, label_smoothing=share)
            fit(method, network(norm=False), recipe=numbers, **data(betons, method))
    plain, smooth = losses[0.0], losses[0.3]
    assert len(plain) == len(smooth) == len(method.phases)
    assert method.label_smoothing == 0  # the caller's is as it was
    for (without, _, _), (loss, outputs, batch) in zip(plain, smooth, strict=True):
        assert not torch.equal(without, loss)
        if expected is not None:
            torch.testing.assert_close(loss, expected(outputs, batch, 0.3), rtol=1e-5, atol=1e-6)


def test_label_smoothing_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing is 1.0; give a share in \[0, 1\)"):
        Recipe(label_smoothing=1.0)


def test_the_papers_recipe_is_its_section_4_1() -> None:
    numbers = dataclasses.asdict(PRESETS["paper"])
    stated = {
        "iterations": 9000,
        "batch_size": 48,
        "learning_rate": 0.01,
        "drop_at": 6000 / 9000,
        "momentum": 0.9,
        "crop": 224,
        "flip": True,
        "beta": 1.0,
    }
    assert {name: numbers[name] for name in stated} == stated
    ours = ("nesterov", "label_smoothing", "unmixed", "clean_statistics", "amp", "epochs")
    assert not any(numbers[name] for name in ours)


@pytest.mark.parametrize("method", [FineTune(), CoTuning(), XMixup(), XMixup(heads="joint")])
def test_a_model_names_the_classes_that_its_heads_have(
    betons: Betons, tmp_path: Path, method: Method, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "xmix_data")
    what = {**data(betons, method), "source": betons.source_raw}
    fit(method, network(), recipe=recipe(iterations=1), output=tmp_path, **what)
    model = torch.load(tmp_path / "model.pt")
    of_source = betons.source_raw.class_names if isinstance(method, XMixup) else None
    assert model["source_classes"] == of_source
    assert ("source head" in caplog.text) == isinstance(method, XMixup)


def test_a_checkpoint_has_no_statistics_that_are_not_finite(betons: Betons, tmp_path: Path) -> None:
    """Batch norm's are spoilt a step before the loss is."""
    numbers = recipe(save_every=1, learning_rate=1e20)
    with pytest.raises(XMixError, match=r"not finite|is nan|is inf"):
        fit(FineTune(), network(), recipe=numbers, output=tmp_path, **data(betons, FineTune()))
    saved = torch.load(tmp_path / "checkpoint.pt")["network"]
    assert all(value.isfinite().all() for value in saved.values())


class Masked(nn.Identity):
    """Holds a constant of -inf, as attention does whose tokens see only those before them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1), persistent=False)


def test_what_is_made_with_infinities_may_have_them(betons: Betons, tmp_path: Path) -> None:
    model = nn.Sequential(Masked(), *network())
    numbers = recipe(save_every=1, iterations=2)
    fit(FineTune(), model, recipe=numbers, output=tmp_path, **data(betons, FineTune()))
    Fuse.steps, Fuse.act = 2, NoSlope.apply
    with pytest.raises(XMixError, match=r"a weight is not finite in step 2, from .*target-raw"):
        fit(FineTune(), model, recipe=numbers, **data(betons, FineTune()))
