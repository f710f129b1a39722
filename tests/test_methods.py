"""Every method against its formula, in float64, and on real betons."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import Betons
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

from xmix_data import (
    CenterCrop,
    ImageLoader,
    MixedBatch,
    PairedBatch,
    RandomCrop,
    XMixLoader,
)
from xmix_data.backbones import penultimate_features
from xmix_data.methods import (
    BSS,
    DELTA,
    L2SP,
    METHODS,
    CoTrain,
    CoTuning,
    FineTune,
    GradMix,
    JointHead,
    Method,
    Mixup,
    Outputs,
    Phase,
    SeqTrain,
    TransferNetwork,
    XMixup,
    delta,
    source_head,
    split_classifier,
    xmixup_loss,
)
from xmix_data.methods.network import imagenet_wnids

B, N, M, D = 6, 3, 5, 7


def network(seed: int = 0, *, norm: bool = True, joint: bool = False) -> TransferNetwork:
    """Smooth, so that finite differences are exact to many digits."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.Tanh(),
        nn.Conv2d(4, D, 3),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return TransferNetwork(backbone, nn.Linear(D, N), nn.Linear(D, M), joint=joint).double()


def images(seed: int = 0, count: int = B) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=random, dtype=torch.float64)


def labels(classes: int, seed: int = 0, count: int = B) -> torch.Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def target_batch() -> tuple[torch.Tensor, torch.Tensor]:
    return images(1), labels(N, 1)


def mixed_batch() -> MixedBatch:
    lam = torch.rand(B, generator=torch.Generator().manual_seed(3))
    return MixedBatch(images(2), labels(N, 1), labels(M, 2), lam)


def paired_batch(domains: tuple[int, ...] = (0, 1, 0, 1, 1, 0)) -> PairedBatch:
    lam = torch.rand(len(domains), generator=torch.Generator().manual_seed(3))
    return PairedBatch(
        images(1, len(domains)),
        images(2, len(domains)),
        labels(N, 1, len(domains)),
        labels(M, 2, len(domains)),
        torch.tensor(domains),
        lam,
    )


def prepared(method: Any, net: TransferNetwork, phase: int = 0) -> Any:
    method.prepare(net, method.phases[phase])
    if method.surveys:
        training = net.training
        method.survey(net.eval(), [target_batch()])
        net.train(training)
    return method


def value(scalar: torch.Tensor) -> float:
    return float(scalar.detach())


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    """What a step filled in, by name; and it is taken away again."""
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return found


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


# One method after the other


def test_finetune_is_cross_entropy() -> None:
    net, (x, y) = network(), target_batch()
    method = prepared(FineTune(), net)
    step = method.backward(net, (x, y), step=0)
    found = gradients(net)
    loss = -log_softmax(net(x).target_logits, 1)[range(B), y].sum() / B
    loss.backward()
    assert not step.loss.requires_grad and (step.lr_scale, step.values) == (1, {})
    assert value(step.loss) == pytest.approx(value(loss), rel=1e-12)
    same(found, gradients(net))
    assert not any("source_head" in name for name in found)
    assert (method.weight_decay, method.unlabelled) == (None, False)


def test_l2sp_is_the_penalty_summed_by_hand() -> None:
    net, (x, y) = network(), target_batch()
    plain = {name: p.detach().clone() for name, p in net.named_parameters()}
    method = prepared(L2SP(alpha=0.3, beta=0.05), net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(9)))
        for buffer in net.buffers():
            buffer.add_(5)
    penalty = 0.0
    for name, p in net.named_parameters():
        if name.startswith("backbone."):
            penalty += 0.3 / 2 * value(((p - plain[name]) ** 2).sum())
        elif name.startswith("target_head."):
            penalty += 0.05 / 2 * value((p**2).sum())
    loss = method.loss(net, (x, y), step=0)
    assert penalty > 1
    assert value(loss) == pytest.approx(
        value(cross_entropy(net(x).target_logits, y)) + penalty, rel=1e-12
    )
    # A wrapper, as DDP is one, has other parameter names; the penalty is the same.
    wrapped = method.loss(lambda batch: nn.Sequential(net)(batch), (x, y), step=0)
    assert value(wrapped) == pytest.approx(value(loss), rel=1e-12)
    # A step adds the penalty's gradient itself: that of the loss, and the loss as well.
    loss.backward()
    expected = gradients(net)
    step = method.backward(net, (x, y), step=0)
    assert value(step.loss) == pytest.approx(value(loss), rel=1e-12)
    same(gradients(net), expected)


def test_l2sp_pulls_towards_the_starting_point() -> None:
    net, batch = network(), target_batch()
    plain = {name: p.detach().clone() for name, p in net.named_parameters()}
    method = prepared(L2SP(alpha=0.3, beta=0.05), net)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    prepared(FineTune(), net).backward(net, batch, step=0)
    expected = gradients(net)
    for name, p in net.named_parameters():
        if name in expected:
            head = name.startswith("target_head")
            pull = 0.05 * p if head else 0.3 * (p - plain[name])
            expected[name] = expected[name] + pull.detach()
    method.backward(net, batch, step=0)
    same(gradients(net), expected)
    assert L2SP.weight_decay == 0


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "without parameters"])
def test_l2sps_penalty_of_nothing_is_zero(frozen: bool) -> None:
    net, batch = network(), target_batch()
    if frozen:
        net.backbone.requires_grad_(False)
    else:
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        net = TransferNetwork(pool, nn.Linear(3, N)).double()
    prepared(FineTune(), net).backward(net, batch, step=0)
    expected = gradients(net)
    head = net.target_head
    assert head is not None
    for name, p in head.named_parameters(prefix="target_head"):
        expected[name] = expected[name] + 0.05 * p.detach()
    method = prepared(L2SP(alpha=0.3, beta=0.05), net)
    step = method.backward(net, batch, step=0)
    same(gradients(net), expected)
    loss = method.loss(net, batch, step=0)
    plain = value(cross_entropy(net(batch[0]).target_logits, batch[1]))
    squares = sum(value(p.square().sum()) for p in head.parameters())
    assert value(loss) == pytest.approx(plain + 0.05 / 2 * squares, rel=1e-12)
    assert value(step.loss) == pytest.approx(value(loss), rel=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_bss_against_a_full_decomposition(k: int) -> None:
    net, (x, y) = network(), target_batch()
    loss = prepared(BSS(eta=0.7, k=k), net).loss(net, (x, y), step=0)
    outputs = net(x)
    singular = np.linalg.svd(outputs.features.detach().numpy(), full_matrices=True)[1]
    smallest = sorted(singular)[:k]
    plain = value(cross_entropy(outputs.target_logits, y))
    assert value(loss) == pytest.approx(plain + 0.7 * sum(s**2 for s in smallest), rel=1e-10)


def test_bss_gradient_is_that_of_the_smallest_singular_value() -> None:
    """d(sigma^2)/dF = 2 sigma u v^T, added to the features' gradient of the cross-entropy."""
    net, (x, y) = network(), target_batch()
    prepared(BSS(eta=0.7), net).backward(net, (x, y), step=0)
    found = gradients(net)
    outputs = net(x)
    u, s, vt = torch.linalg.svd(outputs.features.detach(), full_matrices=False)
    shrink = 0.7 * 2 * s[-1] * torch.outer(u[:, -1], vt[-1])
    (cross_entropy(outputs.target_logits, y) + (outputs.features * shrink).sum()).backward()
    same(found, gradients(net))


def test_bss_takes_half_precision() -> None:
    net = network().bfloat16()
    x, y = target_batch()
    step = prepared(BSS(), net).backward(net, (x.bfloat16(), y), step=0)
    assert math.isfinite(value(step.loss))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1e30], ids=str)
@pytest.mark.parametrize("count", [1, B * D])
def test_bss_of_features_that_are_not_finite_is_nan(wrong: float, count: int) -> None:
    """No exception of linalg: the training loop says in which step, and from which images."""
    features = torch.randn(B, D, generator=torch.Generator().manual_seed(2))
    features.view(-1)[:count] = wrong
    outputs = Outputs(features.requires_grad_(), torch.zeros(B, N), None)
    loss = BSS().loss(lambda _: outputs, (images(), labels(N)), step=0)
    assert math.isnan(value(loss))
    loss.backward()


def test_seqtrain_trains_one_head_after_the_other() -> None:
    net, method, x = network(), SeqTrain(auxiliary_iterations=40), images(1)
    assert method.phases == (
        Phase("auxiliary", ("source",), 40),
        Phase("target", ("target",), None),
    )
    for phase, (head, other, classes) in enumerate(
        (("source", "target", M), ("target", "source", N))
    ):
        y = labels(classes, 4)
        prepared(method, net, phase)
        step = method.backward(net, (x, y), step=0)
        logits = getattr(net(x), f"{head}_logits")
        assert value(step.loss) == pytest.approx(value(cross_entropy(logits, y)), rel=1e-12)
        trained = gradients(net)
        assert any(name.startswith(f"{head}_head") for name in trained)
        assert not any(name.startswith(f"{other}_head") for name in trained)


def test_cotrain_is_two_losses_of_one_pass() -> None:
    net, batch = network(), paired_batch()
    method = prepared(CoTrain(target_weight=0.3, source_weight=0.9), net)
    found = method.loss(net, batch, step=0)
    assert int(net.backbone[1].num_batches_tracked) == 1
    both = net(torch.cat([batch.target_images, batch.source_images]))
    target = cross_entropy(both.target_logits[:B], batch.target_labels)
    source = cross_entropy(both.source_logits[B:], batch.source_labels)
    assert value(found) == pytest.approx(0.3 * value(target) + 0.9 * value(source), rel=1e-12)
    net.eval()  # now no image sees another, and two passes are the same
    target = cross_entropy(net(batch.target_images).target_logits, batch.target_labels)
    source = cross_entropy(net(batch.source_images).source_logits, batch.source_labels)
    assert value(method.loss(net, batch, step=0)) == pytest.approx(
        0.3 * value(target) + 0.9 * value(source), rel=1e-12
    )


def test_mixup_is_the_formula_summed_by_hand() -> None:
    net, (x, y) = network(norm=False), target_batch()
    method = prepared(Mixup(alpha=0.4, seed=5), net)
    lam = method._lam(B, 17)
    total = 0.0
    for i in range(B):
        weight = value(lam[i])
        mixed = weight * x[i] + (1 - weight) * x[i - 1]
        logs = log_softmax(net(mixed[None]).target_logits[0], 0)
        total -= weight * value(logs[y[i]]) + (1 - weight) * value(logs[y[i - 1]])
    assert value(method.loss(net, (x, y), step=17)) == pytest.approx(total / B, rel=1e-12)


def test_mixup_draws_from_seed_and_step_alone() -> None:
    method = Mixup(alpha=0.4, seed=5)
    first = method._lam(B, 8)
    method._lam(B, 9)
    torch.rand(3)
    assert torch.equal(Mixup(alpha=0.4, seed=5)._lam(B, 8), first)
    assert not torch.equal(method._lam(B, 9), first)
    assert not torch.equal(Mixup(alpha=0.4, seed=6)._lam(B, 8), first)
    torch.manual_seed(5)  # without a seed of its own it has torch's, and takes nothing from it
    assert torch.equal(Mixup(alpha=0.4)._lam(B, 8), first)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    for alpha in (0.4, 3.0):  # mean 1/2 and variance 1 / (4 (2 alpha + 1))
        lam = torch.cat([Mixup(alpha=alpha)._lam(500, step) for step in range(40)])
        assert value(lam.min()) >= 0 and value(lam.max()) <= 1
        assert value(lam.mean()) == pytest.approx(0.5, abs=0.01)
        assert value(lam.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_xmixup_with_two_heads() -> None:
    net, batch = network(), mixed_batch()
    found = prepared(XMixup(), net).loss(net, batch, step=0)
    outputs = net(batch.images)
    expected = xmixup_loss(outputs.target_logits, outputs.source_logits, batch)
    assert value(found) == pytest.approx(value(expected), rel=1e-12)


def test_xmixup_joint_head_is_two_heads_plus_the_mass_of_each_block() -> None:
    """L_joint = L_two + mean(-λ log P(T) - (1 - λ) log P(S)), and by soft labels."""
    net, two, batch = network(joint=True), network(), mixed_batch()
    assert [name for name, _ in net.named_children()] == ["backbone", "joint_head"]
    method = prepared(XMixup(heads="joint"), net)
    joint = value(method.loss(net, batch, step=0))
    outputs = two(batch.images)  # of the same seed: one layer has the rows of both
    both = torch.cat([outputs.target_logits, outputs.source_logits], 1)
    mass = log_softmax(both, 1).exp()
    lam = batch.lam.double()
    extra = -lam * mass[:, :N].sum(1).log() - (1 - lam) * mass[:, N:].sum(1).log()
    apart = prepared(XMixup(), two).loss(two, batch, step=0)
    assert joint == pytest.approx(value(apart + extra.mean()), rel=1e-12)
    assert joint == pytest.approx(
        value(cross_entropy(both, batch.soft_labels(N, M).double())), 1e-6
    )
    method.backward(net, batch, step=0)
    found = gradients(net)["joint_head.weight"]
    assert bool((found[:N].abs().sum() > 0) & (found[N:].abs().sum() > 0))


def test_xmixup_with_one_lam_a_batch() -> None:
    net, batch = network(norm=False), paired_batch()
    found = prepared(XMixup(lam="batch"), net).loss(net, batch, step=0)
    lam, total = value(batch.lam[0]), 0.0
    for i in range(B):
        out = net((lam * batch.target_images[i] + (1 - lam) * batch.source_images[i])[None])
        total -= lam * value(log_softmax(out.target_logits[0], 0)[batch.target_labels[i]])
        total -= (1 - lam) * value(log_softmax(out.source_logits[0], 0)[batch.source_labels[i]])
    # The loader's lam is float32, and the mixture is exact for that number.
    assert value(found) == pytest.approx(total / B, rel=1e-9)


def test_xmixup_without_source_labels_drops_their_term() -> None:
    batch = mixed_batch()
    net = TransferNetwork(network().backbone, network().target_head)
    method = prepared(XMixup(source_labels=False), net)
    logs = log_softmax(net(batch.images).target_logits, 1)[range(B), batch.target_labels]
    expected = -value((batch.lam.double() * logs).sum()) / B
    assert value(method.loss(net, batch, step=0)) == pytest.approx(expected, rel=1e-12)


def test_xmixup_phases_name_batches_and_heads() -> None:
    assert XMixup().phases == (Phase("mixed", ("target", "source")),)
    assert XMixup(lam="batch").phases == (Phase("paired", ("target", "source")),)
    assert XMixup(heads="joint").phases == (Phase("mixed", ("joint",)),)
    assert XMixup(source_labels=False).phases == (Phase("mixed", ("target",)),)


# GradMix


LAYERS = {
    "conv1": ["backbone.0.weight", "backbone.0.bias"],
    "norm": ["backbone.1.weight", "backbone.1.bias"],
    "conv2": ["backbone.3.weight", "backbone.3.bias"],
    "head": ["target_head.weight", "target_head.bias"],
}


def group_losses(
    net: TransferNetwork, batch: PairedBatch, extra: tuple[torch.Tensor, torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """Mean losses of the target, of each domain, and of pseudo-labelled images: one pass."""
    parts = [batch.target_images, batch.source_images]
    outputs = net(torch.cat(parts if extra is None else [*parts, extra[0]]))
    size = len(batch.target_labels)
    losses = [cross_entropy(outputs.target_logits[:size], batch.target_labels)]
    source = cross_entropy(
        outputs.source_logits[size : 2 * size], batch.source_labels, reduction="none"
    )
    for domain in batch.source_domains.unique():
        losses.append(source[batch.source_domains == domain].mean())
    if extra is not None:
        losses.append(cross_entropy(outputs.target_logits[2 * size :], extra[1]))
    return losses


def gradient_of(net: TransferNetwork, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    net.zero_grad()
    loss.backward()
    found = gradients(net)
    return {name: found.get(name, torch.zeros_like(p)) for name, p in net.named_parameters()}


def looked_ahead(
    net: TransferNetwork,
    losses: Callable[[], list[torch.Tensor]],
    shares: dict[int, float],
) -> tuple[dict[str, torch.Tensor], float]:
    """The gradient by definition, and the sum of raw weights.

    Each weight is how fast the target's loss falls along one source's gradient in one layer, by
    central differences.
    """
    every = [gradient_of(net, losses()[k]) for k in range(len(losses()))]
    target, sources = every[0], every[1:]
    result, total, signs = dict(target), 0.0, set()
    parameters = dict(net.named_parameters())

    def target_loss(layer: list[str], direction: dict[str, torch.Tensor], step: float) -> float:
        with torch.no_grad():
            kept = [parameters[name].clone() for name in layer]
            for name in layer:
                parameters[name] -= step * direction[name]
            loss = value(losses()[0])
            for name, weights in zip(layer, kept, strict=True):
                parameters[name].copy_(weights)
        return loss

    for layer in LAYERS.values():
        if layer[0] not in parameters:
            continue
        epsilon = 1e-5
        slopes = [
            (target_loss(layer, g, epsilon) - target_loss(layer, g, -epsilon)) / (2 * epsilon)
            for g in sources
        ]
        raw = [max(0.0, -slope) if abs(slope) > 1e-10 else 0.0 for slope in slopes]
        signs |= {slope < 0 for slope in slopes if abs(slope) > 1e-10}
        total += sum(raw)
        for weight, g in zip(raw, sources, strict=True):
            for name in layer:
                if sum(raw):
                    result[name] = result[name] + weight / sum(raw) * g[name]
    for name in ("source_head.weight", "source_head.bias"):
        result[name] = sum(share * sources[k][name] for k, share in shares.items())
    assert signs == {True, False}, "the example must have sources that help and that harm"
    return result, total


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_gradmix_weights_are_what_a_look_ahead_gains(seed: int) -> None:
    net, batch = network(seed), paired_batch((0, 1, 0, 1, 1, 1))
    step = prepared(GradMix(), net).backward(net, batch, step=0)
    found = gradients(net)
    losses = group_losses(net, batch)
    assert value(step.loss) == pytest.approx(
        value(losses[0] + (2 * losses[1] + 4 * losses[2]) / 6), rel=1e-12
    )
    expected, _ = looked_ahead(net, lambda: group_losses(net, batch), {0: 2 / 6, 1: 4 / 6})
    close(found, expected)


def test_gradmix_where_no_source_helps_is_the_target_alone() -> None:
    """The same images with the same labels, and a source head that says the opposite.

    Two classes and no bias: the loss of logits -z has the features' gradient of logits z with the
    other label. With z near 0 that is the target's, turned around.
    """
    torch.manual_seed(0)
    head = nn.Linear(D, 2, bias=False)
    with torch.no_grad():
        head.weight *= 1e-3
    backbone = network(norm=False).backbone
    opposite = nn.Linear(D, 2, bias=False)
    opposite.weight.data = -head.weight.data
    net = TransferNetwork(backbone, head, opposite).double()
    x, y = images(1), labels(2, 1)
    batch = PairedBatch(x, x, y, y, torch.zeros(B, dtype=torch.int64), torch.ones(B))
    method = prepared(GradMix(), net)
    step = method.backward(net, batch, step=0)
    found = gradients(net)
    alone = gradient_of(net, group_losses(net, batch)[0])
    same(
        {n: g for n, g in found.items() if n != "source_head.weight"},
        {n: g for n, g in alone.items() if n != "source_head.weight"},
    )
    assert step.values["importance"] == 1, "nothing has helped so far"
    assert step.lr_scale == pytest.approx(math.tanh(0.5))
    source = gradient_of(net, group_losses(net, batch)[1])
    torch.testing.assert_close(found["source_head.weight"], source["source_head.weight"])
    assert value(source["source_head.weight"].abs().sum()) > 0


def test_gradmix_with_one_agreeing_source_is_cotrain() -> None:
    net, x, y = network(), images(1), labels(N, 1)
    net.source_head = nn.Linear(D, N).double()
    net.source_head.load_state_dict(net.target_head.state_dict())  # type: ignore[union-attr]
    batch = PairedBatch(x, x, y, y, torch.full((B,), 3), torch.ones(B))
    prepared(GradMix(), net).backward(net, batch, step=0)
    found = gradients(net)
    prepared(CoTrain(), net).backward(net, batch, step=0)
    same(found, gradients(net))


def test_gradmix_skips_a_domain_without_images() -> None:
    found = []
    for domains in ((0, 1, 0, 1, 1, 0), (0, 5, 0, 5, 5, 0)):
        net = network(2)
        step = prepared(GradMix(), net).backward(net, paired_batch(domains), step=0)
        found.append((gradients(net), step.lr_scale))
    same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_gradmix_scales_the_step_by_the_importance() -> None:
    batches = [paired_batch(), paired_batch((1, 1, 0, 0, 1, 0)), paired_batch((0, 0, 0, 1, 1, 1))]
    totals = []
    net = network(1)
    for batch in batches:
        losses = lambda batch=batch: group_losses(net, batch)  # noqa: E731
        totals.append(looked_ahead(net, losses, {0: 0.5, 1: 0.5})[1])
    method = prepared(GradMix(gamma=0.8, momentum=0.75), net)
    other = prepared(GradMix(step_scale=lambda importance: 10 * importance), net)
    mean = totals[0]
    for k, (batch, total) in enumerate(zip(batches, totals, strict=True)):
        mean = 0.75 * mean + 0.25 * total
        if k == 2:  # resumed
            state = method.state_dict()
            method = prepared(GradMix(gamma=0.8, momentum=0.75), net)
            method.load_state_dict(state)
        step = method.backward(net, batch, step=k)
        assert step.values["importance"] == pytest.approx(total / mean, rel=1e-5)
        assert step.lr_scale == pytest.approx(math.tanh(0.8 * total / mean / 2), rel=1e-5)
        other_step = other.backward(net, batch, step=k)
        assert other_step.lr_scale == pytest.approx(10 * other_step.values["importance"])
    assert len({round(total / totals[0], 3) for total in totals}) == 3


def test_gradmix_takes_sure_unlabelled_images_as_one_more_source() -> None:
    net, batch, unlabelled = network(), paired_batch(), images(8, 9)
    with torch.no_grad():
        net.target_head.weight *= 40  # type: ignore[union-attr]
    reference = network()
    reference.load_state_dict(net.state_dict())
    reference.eval()
    with torch.no_grad():
        means = (
            sum(reference(x).target_logits.softmax(1) for x in (unlabelled, unlabelled.flip(3))) / 2
        )
    probabilities, classes = means.max(1)
    threshold = value(probabilities.median())
    sure = probabilities > threshold
    assert 0 < int(sure.sum()) < 9
    method = prepared(GradMix(pseudo_label_threshold=threshold), net)
    step = method.backward(net, batch, step=0, unlabelled=unlabelled)
    found = gradients(net)
    assert step.values["pseudo_labels"] == int(sure.sum())
    extra = unlabelled[sure], classes[sure]
    expected, _ = looked_ahead(net, lambda: group_losses(net, batch, extra), {0: 0.5, 1: 0.5})
    close(found, expected)


def test_gradmix_predicts_without_a_trace() -> None:
    """With no image sure, the step and the network are as without unlabelled images."""
    results = []
    for unlabelled in (None, images(8, 4)):
        net = network()
        net.backbone[1].eval()  # a frozen layer stays frozen
        step = prepared(GradMix(pseudo_label_threshold=0.99), net).backward(
            net, paired_batch(), step=0, unlabelled=unlabelled
        )
        assert step.values["pseudo_labels"] == 0
        assert net.training and not net.backbone[1].training
        results.append({**gradients(net), **dict(net.named_buffers())})
    same(results[0], results[1])
    assert GradMix().unlabelled and not GradMix(pseudo_label_threshold=None).unlabelled


def test_gradmix_under_autocast() -> None:
    """Weights that older torch's autocast keeps from predicting have no graph."""
    net = network().float()
    batch = paired_batch()
    batch = batch._replace(
        target_images=batch.target_images.float(), source_images=batch.source_images.float()
    )
    method = prepared(GradMix(pseudo_label_threshold=0.99), net)
    with torch.autocast("cpu", torch.bfloat16):
        method.backward(net, batch, step=0, unlabelled=images(8, 4).float())
    found = gradients(net)
    assert len(found) == 10 and all(value(g.abs().sum()) > 0 for g in found.values())


def test_gradmix_averages_over_processes() -> None:
    """Two halves of a batch, one without domain 1, and pseudo-labels in the other only."""
    batch = paired_batch((0, 0, 0, 1, 1, 0))
    unlabelled = images(8, 4)

    def half(part: slice) -> PairedBatch:
        return PairedBatch(*(tensor[part] for tensor in batch))

    def made() -> TransferNetwork:
        net = network(norm=False)  # batch statistics are those of each process
        with torch.no_grad():
            net.target_head.weight *= 40  # type: ignore[union-attr]
        return net

    def step(net: TransferNetwork, part: slice, more: torch.Tensor, average: Any) -> Any:
        method = prepared(GradMix(pseudo_label_threshold=0.6), net)
        done = method.backward(net, half(part), step=0, unlabelled=more, average=average)
        kept.append(done.values["pseudo_labels"])
        return gradients(net), method.state_dict()["mean"]

    kept: list[float] = []
    expected = step(made(), slice(0, 6), unlabelled, None)
    nets = made(), made()  # here: threads share torch's random numbers
    barrier, shared, results = threading.Barrier(2, timeout=60), {}, {}

    def process(rank: int) -> None:
        def average(tensors: list[torch.Tensor]) -> None:
            shared[rank] = [tensor.clone() for tensor in tensors]
            barrier.wait()
            for tensor, one, other in zip(tensors, shared[0], shared[1], strict=True):
                tensor.copy_((one + other) / 2)
            barrier.wait()

        parts = (slice(0, 3), unlabelled[:0]), (slice(3, 6), unlabelled)
        results[rank] = step(nets[rank], *parts[rank], average)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept[0] > 0 and sorted(kept[1:]) == [0, kept[0]]
    for rank in range(2):
        close(results[rank][0], expected[0])
        assert results[rank][1] == pytest.approx(expected[1], rel=1e-6)


# Networks


def test_network_splits_a_joint_layer_into_the_two_heads() -> None:
    two, one = network(), network(joint=True)
    for found, expected in zip(one(images()), two(images()), strict=True):
        torch.testing.assert_close(found, expected)
    assert (two.heads, one.heads) == (("target", "source"), ("joint",))
    target, source = nn.Linear(D, N, bias=False), nn.Linear(D, M)
    mixed = TransferNetwork(nn.Flatten(), target, source, joint=True).joint_head
    assert mixed is not None
    assert torch.equal(mixed.bias, torch.cat([torch.zeros(N), source.bias]))


def test_network_says_what_does_not_fit() -> None:
    flat = nn.Flatten()
    with pytest.raises(ValueError, match="needs a head"):
        TransferNetwork(flat)
    with pytest.raises(ValueError, match="takes 7 features and the source head 8"):
        TransferNetwork(flat, nn.Linear(7, 2), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="a joint head is made of both"):
        TransferNetwork(flat, nn.Linear(7, 2), joint=True)
    with pytest.raises(ValueError, match=r"shape \(2, 12\), and the heads take \(B, 7\)"):
        TransferNetwork(flat, nn.Linear(7, 2))(torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match="trains a source head, and the network has only target"):
        prepared(CoTrain(), TransferNetwork(flat, nn.Linear(7, 2)))
    with pytest.raises(ValueError, match="trains a joint head"):
        prepared(XMixup(heads="joint"), network())


def test_source_head_takes_rows_by_wordnet_id() -> None:
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000 and list(wnids) == sorted(wnids)
    assert (wnids[0], wnids[-1]) == ("n01440764", "n15075141")
    classifier = nn.Linear(D, 1000).double()
    names = [
        "n15075141",
        "n01440764 tench, Tinca tinca",
        "n01443537-goldfish",
        "n99999999",
        "n014407640",
        "tench n01440764",
        "0",
    ]
    torch.manual_seed(1)
    head = source_head(classifier, D, names)
    torch.manual_seed(1)
    fresh = nn.Linear(D, len(names), dtype=torch.float64)
    assert head.weight.dtype == torch.float64
    for label, row in ((0, 999), (1, 0), (2, 1)):
        assert torch.equal(head.weight[label], classifier.weight[row])
        assert torch.equal(head.bias[label], classifier.bias[row])
    assert torch.equal(head.weight[3:], fresh.weight[3:])
    assert torch.equal(head.bias[3:], fresh.bias[3:])


def test_source_head_takes_the_rows_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "xmix_data")
    classifier = nn.Linear(D, M, bias=False)
    names = [f"{i}" for i in range(M)]
    head = source_head(classifier, D, names, rows=range(M))
    assert torch.equal(head.weight, classifier.weight) and head.bias is None
    assert torch.equal(
        source_head(classifier, D, ["a", "b"], rows=[4, 2]).weight, classifier.weight[[4, 2]]
    )
    assert not torch.equal(source_head(classifier, D, names).weight, classifier.weight)
    assert source_head(None, D, names).weight.shape == (M, D)
    assert [r.getMessage()[:28] for r in caplog.records] == [
        "source head: 5 of 5 classes ",
        "source head: 2 of 2 classes ",
        "source head: 0 of 5 classes ",
        "source head: 0 of 5 classes ",
    ]
    for rows, classes in (([0, 1], M), ([0, 5], 2), ([0, -1], 2)):
        with pytest.raises(ValueError, match="one for each, from 0 to 4"):
            source_head(classifier, D, names[:classes], rows=rows)
    with pytest.raises(ValueError, match="no classifier to take them from"):
        source_head(None, D, names, rows=range(M))
    with pytest.raises(ValueError, match="takes 7 features, and the backbone makes 9"):
        source_head(classifier, 9, names)


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "resnet18",
        "shufflenet_v2_x0_5",
        "swin_t",
        "vgg11_bn",
        "vit_b_16",
    ],
)
def test_split_classifier_knows_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = models.get_model(name, weights=None, num_classes=11, **options)
        backbone, classifier = split_classifier(model)
        side = 299 if name == "inception_v3" else 224
        x = torch.zeros(2, 3, side, side)
        assert isinstance(classifier, nn.Linear) and classifier.out_features == 11
        assert classifier(backbone(x)).shape == (2, 11)  # in training mode
        assert backbone.eval()(x).shape == (2, classifier.in_features)
        assert model.eval()(x).shape == (2, 11), "the model itself was changed"
    assert not any("aux" in part.lower() for part, _ in backbone.named_parameters())
    assert sum(p.numel() for p in classifier.parameters()) == 11 * (classifier.in_features + 1)


def test_split_classifier_cuts_and_changes_nothing_else() -> None:
    models = pytest.importorskip("torchvision").models
    model = models.mobilenet_v3_small(weights=None, num_classes=4).eval()
    backbone, classifier = split_classifier(model)
    x = torch.randn(2, 3, 48, 48)
    assert classifier is not None
    assert torch.equal(TransferNetwork(backbone, classifier)(x).target_logits, model(x))
    headless, nothing = split_classifier(backbone)
    assert nothing is None and torch.equal(headless(x), backbone(x))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.LogSoftmax(1)),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(2, 2),
    ],
)
def test_split_classifier_wants_a_linear_layer_at_the_end(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"must come from one linear .*, and .* makes it; let a "):
        split_classifier(model, size=2)


class TwoHeads(nn.Module):
    """As DeiT distilled: the mean of two classifiers, the last of them a linear layer."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 2), nn.Linear(12, 2)
        self.share = share

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        return self.first(x) * self.share + self.second(x)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_layer_that_makes_half_of_the_output_is_no_classifier(share: float) -> None:
    network = TwoHeads(share)
    for take in (split_classifier, lambda *x: JointHead.replace_classifier(x[0], 4, 6, x[1])):
        with pytest.raises(ValueError, match="and no layer inside it makes it"):
            take(network, 2)
    assert type(network.second) is nn.Linear


class SeveralOutputs(nn.Module):
    """As models of transformers, and networks of several tasks; the classifier runs first."""

    def __init__(self, outputs: Callable[..., Any]) -> None:
        super().__init__()
        self.classifier, self.domain = nn.Linear(12, 10), nn.Linear(12, 2)
        self.outputs = outputs

    def forward(self, images: torch.Tensor) -> Any:
        x = images.flatten(1)
        return self.outputs(self.classifier(x), self.domain(x))


@pytest.mark.parametrize(
    "outputs",
    [
        lambda logits, domain: (logits, domain),
        lambda logits, domain: {"domain": domain, "logits": logits},
        lambda logits, domain: {"classes": logits, "domain": domain},
        lambda logits, domain: ([logits], domain),
    ],
)
def test_of_several_outputs_the_logits_are_looked_at(outputs: Callable[..., Any]) -> None:
    network = SeveralOutputs(outputs)
    head = JointHead.replace_classifier(network, 4, 6, size=2)
    assert network.classifier is head and type(network.domain) is nn.Linear


def test_a_mean_of_classifiers_among_other_outputs_is_no_layers() -> None:
    network = SeveralOutputs(lambda a, b: {"logits": (a[:, :2] + b) / 2, "a": a, "b": b})
    with pytest.raises(ValueError, match="and no layer inside it makes it"):
        JointHead.replace_classifier(network, 4, 6, size=2)


def test_a_classifier_is_found_in_inference_mode() -> None:
    class Inferring(SeveralOutputs):
        @torch.inference_mode()
        def forward(self, images: torch.Tensor) -> Any:
            return super().forward(images)

    network = Inferring(lambda logits, domain: logits)
    assert split_classifier(network, size=2)[1] is not None


def test_an_attribute_of_a_known_name_stays() -> None:
    """``aux1`` is a second classifier in GoogLeNet alone."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aux1, self.fc = nn.Flatten(), nn.Linear(12, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(self.aux1(images))

    backbone, classifier = split_classifier(Own(), size=2)
    assert classifier is not None and backbone(torch.zeros(1, 3, 2, 2)).shape == (1, 12)


def test_split_classifier_says_which_image_it_tried() -> None:
    with pytest.raises(ValueError, match="does not take an image of 3 x 64 x 64 pixels"):
        split_classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), size=64)


class Used(nn.Module):
    """A network whose forward pass is given, with a layer that all of them have."""

    def __init__(self, forward: Callable[[Used, torch.Tensor], Any], last: nn.Module) -> None:
        super().__init__()
        self.pass_, self.fc = forward, last

    def forward(self, images: torch.Tensor) -> Any:
        return self.pass_(self, images.flatten(1))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda net, x: net.fc(net.fc(x).relu()), r"gives other features without fc \(Linear\)"),
        (lambda net, x: net.fc(x[:, : net.fc.in_features]), r"fails without fc .*'in_features'"),
    ],
)
def test_a_classifier_that_is_needed_for_more_is_not_cut(
    forward: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split_classifier(Used(forward, nn.Linear(12, 12)), size=2)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: {"loss": None, "logits": net.fc(x)},
        lambda net, x: (net.fc(x), x[:, :3]) if net.training else net.fc(x),
        lambda net, x: nn.functional.dropout(net.fc(x), 0.0),
    ],
)
def test_of_several_outputs_the_features_become_outputs(forward: Callable[..., Any]) -> None:
    backbone, classifier = split_classifier(Used(forward, nn.Linear(12, 10)).train(), size=2)
    x = torch.randn(4, 3, 2, 2)
    assert classifier is not None
    outputs = TransferNetwork(backbone, classifier).train()(x)
    assert torch.equal(outputs.features, x.flatten(1))
    assert torch.equal(outputs.target_logits, classifier(x.flatten(1)))


def test_a_network_that_is_random_in_evaluation_too_is_cut() -> None:
    """And what is random afterwards is what would have been without the comparison's image."""
    network = Used(lambda net, x: net.fc(nn.functional.dropout(x, 0.5)), nn.Linear(12, 10))
    assert split_classifier(network, size=2)[1] is not None


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(12), nn.BatchNorm1d(12, momentum=None)])
def test_a_cut_moves_neither_statistics_nor_random_numbers(norm: nn.BatchNorm1d) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), norm, nn.Dropout(0.5), nn.Linear(12, 10)).train()
    torch.manual_seed(3)
    backbone, _ = split_classifier(model, size=2)
    assert torch.equal(torch.rand(3), expected)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert all(module.training for module in backbone.modules())


def test_a_compiled_network_is_cut() -> None:
    model = torch.compile(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), backend="eager")
    _, classifier = split_classifier(model, size=2)
    assert classifier is not None and classifier.out_features == 10


def test_a_layer_with_weight_norm_of_old_is_named() -> None:
    layer = nn.utils.weight_norm(nn.Linear(12, 10))
    with pytest.raises(ValueError, match=r"Sequential cannot be copied .*remove_weight_norm"):
        split_classifier(nn.Sequential(nn.Flatten(), layer), size=2)


class Cosine(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        normalised = (nn.functional.normalize(x) for x in (input, self.weight))
        return 16 * nn.functional.linear(*normalised)


def test_rows_of_what_is_not_linear_start_no_source_head(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "xmix_data")
    names = list(imagenet_wnids()[:3])
    classifier = Cosine(D, 1000)
    torch.manual_seed(1)
    head = source_head(classifier, D, names)
    torch.manual_seed(1)
    assert torch.equal(head.weight, nn.Linear(D, 3).weight)
    assert "0 of 3 classes start from rows" in caplog.text
    with pytest.raises(
        ValueError, match=r"is a Cosine, which computes something else .*leave rows"
    ):
        source_head(classifier, D, names, rows=range(3))
    for mode in (True, False):
        joint = JointHead(D, 4, 6).train(mode)
        rows = source_head(joint, D, names, rows=range(4, 7)).weight
        assert torch.equal(rows, joint.weight[4:7])


class OutOfOrder(nn.Module):
    """As EfficientNet-Lite: what is defined last is not what makes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.stem = nn.Conv2d(3, 5, 3)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.activation(self.stem(images)).mean((2, 3)))
        return logits


def test_split_classifier_follows_the_forward_pass() -> None:
    model = OutOfOrder().train()
    backbone, classifier = split_classifier(model, size=8)
    x = torch.randn(2, 3, 8, 8)
    assert classifier is not None and torch.equal(classifier(backbone(x)), model(x))
    assert torch.equal(penultimate_features(model, x), backbone(x))
    assert backbone.training and model.training


# All methods


def test_methods_by_their_names() -> None:
    assert list(METHODS) == [
        "finetune",
        "l2sp",
        "bss",
        "delta",
        "cotuning",
        "seqtrain",
        "cotrain",
        "mixup",
        "xmixup",
        "gradmix",
    ]
    for name, method in METHODS.items():
        made = method()
        assert made.name == name and type(made).__name__ in repr(made)
        assert made.phases[-1].heads and made.phases[-1].iterations is None
        made.load_state_dict(made.state_dict())


def test_importing_methods_leaves_torchvision_alone() -> None:
    code = "import sys, xmix_data.methods; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2SP(alpha=-1), "alpha is -1; it must be a number of at least 0"),
        (lambda: L2SP(beta=math.inf), "beta is inf"),
        (lambda: BSS(eta=math.nan), "eta is nan"),
        (lambda: BSS(k=0), "k is 0"),
        (lambda: DELTA(alpha=-1), "alpha is -1"),
        (lambda: DELTA(attention_images=0), "attention_images is 0; give at least 1"),
        (lambda: CoTuning(weight=-1), "weight is -1"),
        (lambda: SeqTrain(auxiliary_iterations=0), "auxiliary_iterations is 0"),
        (lambda: CoTrain(source_weight=-0.1), "source_weight is -0.1"),
        (lambda: CoTrain(0, 0), "both 0"),
        (lambda: Mixup(alpha=0), "alpha is 0; it must be a number above 0"),
        (lambda: Mixup(seed=-1), "seed is -1"),
        (lambda: XMixup(heads="three"), "heads is 'three'; it must be 'two' or 'joint'"),
        (lambda: XMixup(lam="epoch"), "lam is 'epoch'; it must be 'sample' or 'batch'"),
        (lambda: XMixup(heads="joint", source_labels=False), "a joint head needs source labels"),
        (lambda: GradMix(gamma=0), "gamma is 0"),
        (lambda: GradMix(pseudo_label_threshold=1), "pseudo_label_threshold is 1"),
        (lambda: GradMix(momentum=1), "momentum is 1"),
    ],
)
def test_impossible_options(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", list(METHODS))
def test_batches_of_another_kind(name: str) -> None:
    kinds: dict[str, Any] = {
        "target": target_batch(),
        "auxiliary": target_batch(),
        "mixed": mixed_batch(),
        "paired": paired_batch(),
    }
    method, net = METHODS[name](), network()
    for number, phase in enumerate(method.phases):
        prepared(method, net, number)
        method.backward(net, kinds[phase.batches], step=0)
        for kind, batch in kinds.items():
            if type(batch) is not type(kinds[phase.batches]):
                with pytest.raises(ValueError, match="this phase takes") as error:
                    method.backward(net, batch, step=0)
                assert type(batch).__name__ in str(error.value), kind


@pytest.mark.parametrize("name", list(METHODS))
def test_labels_that_do_not_fit_the_heads(name: str) -> None:
    method = METHODS[name]()
    batches: dict[str, Any] = {
        "target": target_batch(),
        "auxiliary": (images(), labels(M)),
        "mixed": mixed_batch(),
        "paired": paired_batch(),
    }
    for number, phase in enumerate(method.phases):
        heads = {head: nn.Linear(D, 1).double() for head in phase.heads}
        net = TransferNetwork(network().backbone, heads.get("target"), heads.get("source"))
        with pytest.raises(ValueError, match=r"label \d does not fit a \w+ head of 1 outputs"):
            prepared(method, net, number)
            method.backward(net, batches[phase.batches], step=3)


def test_what_else_a_method_refuses() -> None:
    net, (x, y) = network(), target_batch()
    soft = torch.rand(B, N + M)
    with pytest.raises(ValueError, match=r"target labels are torch.float32 of shape \(6, 8\)"):
        FineTune().loss(net, (x, soft), step=0)
    with pytest.raises(ValueError, match="expected one int64 class id for each of 6 images"):
        FineTune().loss(net, (x, y[:-1]), step=0)
    with pytest.raises(ValueError, match="target label 3 does not fit a target head of 3 outputs"):
        FineTune().loss(net, (x, torch.full_like(y, N)), step=0)
    with pytest.raises(ValueError, match="no target head; give TransferNetwork a target_head"):
        FineTune().loss(lambda batch: Outputs(batch, None, None), (x, y), step=0)
    with pytest.raises(ValueError, match=r"features of shape \(6, 7\) have 6 singular"):
        BSS(k=7).loss(net, (x, y), step=0)
    for method, batch in ((L2SP(), (x, y)), (SeqTrain(), (x, y)), (GradMix(), paired_batch())):
        with pytest.raises(ValueError, match=r"call prepare\(network, phase\) first"):
            method.backward(net, batch, step=0)
    for method, first in ((DELTA(), "prepare"), (CoTuning(), "survey")):
        with pytest.raises(ValueError, match=rf"call {first}\(network"):
            method.backward(net, (x, y), step=0)
    unsurveyed = DELTA()
    unsurveyed.prepare(net, unsurveyed.phases[0])
    with pytest.raises(ValueError, match=r"no attention is known; call survey"):
        unsurveyed.backward(net, (x, y), step=0)
    flat = TransferNetwork(nn.Flatten(), nn.Linear(192, N)).double()
    with pytest.raises(ValueError, match="Flatten makes no feature maps"):
        prepared(DELTA(attention=False), flat).backward(flat, (x, y), step=0)
    with pytest.raises(ValueError, match="source domain 256; GradMix takes 256 domains"):
        prepared(GradMix(), net).backward(net, paired_batch((0, 0, 0, 0, 0, 256)), step=0)
    with pytest.raises(ValueError, match="finetune has no state of mean"):
        FineTune().load_state_dict(GradMix().state_dict())


# DELTA and Co-Tuning


def test_delta_looks_into_a_compiled_network_whatever_was_compiled_before() -> None:
    (x, y), before, net = target_batch(), network(), network()
    plain = prepared(FineTune(), before)
    plain.loss(torch.compile(before, backend="eager"), (x, y), step=0)
    method = prepared(DELTA(), net)
    expected = method.loss(net, (x, y), step=0)
    torch.testing.assert_close(
        method.loss(torch.compile(net, backend="eager"), (x, y), step=0), expected
    )


@pytest.mark.parametrize("attention", [False, True])
def test_deltas_loss_is_its_formula(attention: bool) -> None:
    """alpha / 2 sum C W_j |FM_j - FM0_j|^2 / (H W), over images too, and beta / 2 |head|^2."""
    net, (x, y) = network(norm=False), target_batch()
    method = prepared(DELTA(alpha=0.3, beta=0.2, attention=attention), net)
    before = deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)))
    maps, start = net.backbone[:3](x), before.backbone[:3](x)  # the last module at 3 x 3 pixels
    change = (maps - start).square().sum((0, 2, 3)) / 9
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    if attention:
        (weights,) = method._weights
    penalty = 0.3 / 2 * 4 * (weights * change).sum()
    head = sum(p.square().sum() for p in net.target_head.parameters())
    expected = cross_entropy(net(x).target_logits, y) + penalty + 0.2 / 2 * head
    torch.testing.assert_close(method.loss(net, (x, y), step=0), expected)
    assert method.weight_decay == 0
    method.backward(net, (x, y), step=1)
    assert all(p.grad is None for p in method._start.parameters())
    assert not any(m._forward_hooks for m in net.modules())  # nothing stays in the network


def test_deltas_attention_is_where_the_loss_rises(caplog: pytest.LogCaptureFixture) -> None:
    """A channel that alone tells the classes has the most of it, one of constants none.

    Measuring it takes minutes with a large network on a CPU: who waits is told what for.
    """
    caplog.set_level("INFO", "xmix_data")
    body = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        body[0].weight.zero_()
        body[0].weight[1, 0] = 1.0  # channel 1 is the red of an image, the others are 0
    net = TransferNetwork(body, nn.Linear(4, 2))
    y = torch.arange(40) % 2
    x = torch.zeros(40, 3, 6, 6)
    x[:, 0] = (2.0 * y - 1)[:, None, None]
    method = DELTA(attention_images=40)
    method.prepare(net, method.phases[0])
    method.survey(net.eval(), [(x[:25], y[:25]), (x[25:], y[25:])])
    said = "delta: measuring the attention of 4 channels first, by a forward pass of 40 images "
    assert [r.getMessage()[: len(said)] for r in caplog.records] == [said]
    (weights,) = method._weights
    assert weights.sum() == pytest.approx(1) and weights.argmax() == 1
    others = weights[[0, 2, 3]]
    assert torch.allclose(others, others[0].expand(3))
    # Without channel 1 the head knows nothing: the loss rises to log 2 from about 0.
    ratio = float(weights[1] / weights[0])
    assert ratio == pytest.approx(math.exp(math.log(2) / 5), rel=0.02)


def of_torchvision(name: str) -> nn.Module:
    return getattr(torchvision.models, name)()


def of_timm(name: str, **sizes: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="needs timm: pip install timm")
    return timm.create_model(name, **sizes)


TOKENS: dict[str, Callable[[], nn.Module]] = {
    "Swin": lambda: torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4]),
    "Swin v2": lambda: torchvision.models.SwinTransformer(
        [4, 4],
        8,
        [1, 1],
        [1, 2],
        [4, 4],
        block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
    ),
    # Its first maps (B, 16, 16, 16) could as well have channels first.
    "Swin as wide as its maps": lambda: torchvision.models.SwinTransformer(
        [4, 4], 16, [1, 1], [1, 2], [4, 4]
    ),
    "ViT": lambda: torchvision.models.VisionTransformer(64, 8, 2, 2, 16, 32),
    "Swin of timm": lambda: of_timm(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 2),
    ),
    "ViT of timm": lambda: of_timm(
        "vit_tiny_patch16_224", img_size=64, embed_dim=16, depth=2, num_heads=2
    ),
    "hybrid of timm": lambda: of_timm(
        "vit_tiny_r_s16_p8_224", img_size=64, embed_dim=16, depth=2, num_heads=2
    ),
    "Mixer of timm": lambda: of_timm("mixer_s16_224", img_size=64),
}


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("name", list(TOKENS))
def test_delta_refuses_what_has_no_feature_maps(name: str, attention: bool) -> None:
    """Tokens, heads, and maps with channels last have four axes, or a convolution, as well."""
    model = TOKENS[name]()
    body, classifier = split_classifier(model, 64)
    assert classifier is not None
    net = TransferNetwork(body, nn.Linear(classifier.in_features, N))
    method = DELTA(attention=attention)
    method.prepare(net, method.phases[0])
    asked = []

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number in range(3):
            asked.append(number)
            yield torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])

    with pytest.raises(ValueError, match=r"makes no feature maps \(B, C, H, W\), .* L2SP or BSS"):
        if attention:
            method.survey(net.eval(), Known(batches, 6))
        else:
            method.loss(net, next(batches()), step=0)
    assert asked == [0]  # before all images have been looked at
    assert not any(m._forward_hooks for m in net.modules())


class Known:
    """Batches whose number of images is known before they come, as a loader's is."""

    def __init__(self, batches: Callable[[], Iterator[Any]], count: int) -> None:
        self.batches, self.sampler = batches, range(count)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()


@pytest.mark.parametrize(
    ("make", "names", "shapes"),
    [
        (
            lambda: of_torchvision("resnet18"),
            "layer1 layer2 layer3 layer4",
            [(64, 16), (128, 8), (256, 4), (512, 2)],
        ),
        (
            lambda: of_torchvision("mobilenet_v2"),
            "features.4.conv.0 features.7.conv.0 features.14.conv.0 features",
            [(144, 16), (192, 8), (576, 4), (1280, 2)],
        ),
        (
            lambda: of_torchvision("efficientnet_b0"),
            "features.3.0.block.0 features.4.0.block.0 features.6.0.block.0 features",
            [(144, 16), (240, 8), (672, 4), (1280, 2)],
        ),
        (
            lambda: of_torchvision("convnext_tiny"),
            "features.1 features.3 features.5 features",
            [(96, 16), (192, 8), (384, 4), (768, 2)],
        ),
        (
            lambda: of_torchvision("vgg11"),
            "features",
            [(512, 2)],
        ),
        (
            lambda: of_timm("tf_efficientnet_lite0"),
            "blocks.2.0.bn1 blocks.3.0.bn1 blocks.5.0.bn1 bn2",
            [(144, 16), (240, 8), (672, 4), (1280, 2)],
        ),
        (  # a layer inside its blocks makes (B, H, W, C)
            lambda: of_timm("convnext_tiny"),
            "stages.0 stages.1 stages.2 stages",
            [(96, 16), (192, 8), (384, 4), (768, 2)],
        ),
    ],
    ids=[
        "ResNet",
        "MobileNet",
        "EfficientNet",
        "ConvNeXt",
        "VGG",
        "EfficientNet-Lite of timm",
        "ConvNeXt of timm",
    ],
)
def test_deltas_layers_are_the_last_of_each_resolution(
    make: Callable[[], nn.Module], names: str, shapes: list[tuple[int, int]]
) -> None:
    body, _ = split_classifier(make(), 64)
    with torch.no_grad():
        found = delta._layers(body, body.eval(), torch.zeros(1, 3, 64, 64))
        with delta._maps(body, found) as maps:
            body(torch.zeros(1, 3, 64, 64))
    assert found == names.split()
    assert [maps[name].shape[1:] for name in found] == [(c, side, side) for c, side in shapes]


@pytest.mark.parametrize("count", [1, 7, 45, 100])
@pytest.mark.parametrize("counted", [True, False])
def test_deltas_attention_is_measured_on_images_from_all_over(counted: bool, count: int) -> None:
    net = network(norm=False)
    x, y = images(4, count), labels(N, 4, count)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    method = DELTA(attention_images=10)
    method.prepare(net, method.phases[0])
    given = []
    handle = method._start.register_forward_hook(lambda _, args, __: given.append(args[0]))
    method.survey(net.eval(), Known(lambda: iter(batches), count) if counted else iter(batches))
    handle.remove()
    rows = np.linspace(0, count - 1, min(10, count)).round().astype(int)
    assert torch.equal(given[-1], x[rows])


def test_deltas_survey_holds_no_more_than_it_looks_at() -> None:
    """Memory is not to grow with the data set: of 40 batches few are alive at a time."""
    alive, most = 0, 0

    def died() -> None:
        nonlocal alive
        alive -= 1

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        nonlocal alive, most
        for number in range(40):
            array = images(number, 4).numpy().copy()  # what a tensor, or a view of it, holds
            weakref.finalize(array, died)
            alive += 1
            most = max(most, alive)
            batch = torch.from_numpy(array), labels(N, number, 4)
            del array
            yield batch
            del batch

    net = network(norm=False)
    method = DELTA(attention_images=20)
    method.prepare(net, method.phases[0])
    method.survey(net.eval(), Known(batches, 160))
    assert most <= 2 and alive == 0
    assert method._weights is not None


def test_cotunings_relation_and_loss_are_their_formulas() -> None:
    net, (x, y) = network(norm=False), target_batch()
    method = CoTuning(weight=0.7)
    method.prepare(net, method.phases[0])
    method.survey(net, [(x[:4], y[:4]), (x[4:], y[4:])])
    with torch.no_grad():
        said = net(x).source_logits.softmax(1)
    related = torch.stack(
        [said[y == t].mean(0) if (y == t).any() else torch.zeros(M) for t in range(N)]
    )
    assert method._related is not None
    torch.testing.assert_close(method._related, related)
    outputs = net(x)
    second = -(related[y] * outputs.source_logits.log_softmax(1)).sum(1).mean()
    expected = cross_entropy(outputs.target_logits, y) + 0.7 * second
    torch.testing.assert_close(method.loss(net, (x, y), step=0), expected)


# Real betons


def loader(kind: str, betons: Betons) -> Any:
    options: dict[str, Any] = {"crop": RandomCrop(36), "drop_last": True, "num_workers": 1}
    if kind == "target":
        return ImageLoader(betons.target_raw, batch_size=9, shuffle=True, **options)
    if kind == "auxiliary":
        return ImageLoader(
            betons.source_raw,
            batch_size=9,
            shuffle=True,
            classes=betons.pairing.source_classes,
            **options,
        )
    return XMixLoader(
        betons.target_raw,
        betons.source_raw,
        betons.pairing,
        batch_size=9,
        alpha=4.0,
        mix=kind == "mixed",
        **options,
    )


def endless(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches


@pytest.mark.parametrize(
    "method",
    [
        *(method() for name, method in METHODS.items() if name != "cotuning"),
        CoTuning(weight=0.2),  # by default the entropy of its soft labels is most of the loss
        XMixup("joint", "batch"),
        XMixup(source_labels=False),
    ],
    ids=repr,
)
def test_loss_falls_on_real_betons(method: Method, betons: Betons) -> None:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 24, 5, 3),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, 2),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    ]
    joint = any("joint" in phase.heads for phase in method.phases)
    net = TransferNetwork(nn.Sequential(*layers), nn.Linear(192, 4), nn.Linear(192, 6), joint=joint)
    for phase in method.phases:
        method.prepare(net, phase)
        if method.surveys:
            with ImageLoader(betons.target_raw, batch_size=9, crop=CenterCrop(36)) as batches:
                method.survey(net.eval(), batches)
            net.train()
        optimiser = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        losses = []
        with loader(phase.batches, betons) as batches:
            for number, batch in enumerate(islice(endless(batches), 60)):
                optimiser.zero_grad()
                step = method.backward(net, batch, step=number)
                optimiser.param_groups[0]["lr"] = 0.05 * step.lr_scale
                optimiser.step()
                losses.append(value(step.loss))
        first, last = np.mean(losses[:6]), np.mean(losses[-6:])
        assert last < 0.75 * first, f"{phase}: {first:.3f} to {last:.3f}"


def test_a_joint_head_says_both_in_training_and_the_target_in_evaluation() -> None:
    head, z = JointHead(12, 4, 6), torch.randn(5, 12)
    both = head(z)
    assert both.shape == (5, 10)
    with torch.no_grad():
        assert head(z).shape == (5, 10)  # the mode decides, not gradients
    assert torch.equal(head.eval()(z), both[:, :4])
    assert torch.equal(JointHead(12, 4, 6, bias=False).eval()(z * 0), torch.zeros(5, 4))
    again = JointHead(12, 4, 6)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(z), both)
    assert torch.equal(torch.compile(again, fullgraph=True, backend="eager")(z), both)
    assert repr(head) == "JointHead(features=12, num_target=4, num_source=6, bias=True)"
    for wrong in ((0, 4, 6), (12, 0, 6), (12, 4, 0), (12.0, 4, 6), (12, ["t0"], 6), (12, 4, None)):
        with pytest.raises(ValueError, match=r"is .*; it must be a whole number of at least 1"):
            JointHead(*wrong)


def test_a_joint_head_starts_from_a_classifier() -> None:
    old = torch.nn.Linear(12, 6, dtype=torch.float64)
    head = JointHead.from_linear(old, 4)
    assert head.weight.dtype == torch.float64 and head.num_source == 6
    assert torch.equal(head.weight[4:], old.weight) and torch.equal(head.bias[4:], old.bias)
    chosen = JointHead.from_linear(torch.nn.Linear(12, 6, bias=False), 4, rows=[5, 0])
    assert chosen.num_source == 2 and chosen.bias is None
    imagenet = torch.nn.Linear(12, 1000)
    named = JointHead.from_linear(imagenet, 4, class_names=["my own", "n01443537 goldfish"])
    assert torch.equal(named.weight[5], imagenet.weight[1])
    assert not torch.equal(named.weight[4], imagenet.weight[0])
    with pytest.raises(ValueError, match="from 0 to 5"):
        JointHead.from_linear(old, 4, rows=[6])


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "googlenet"])
def test_a_joint_head_replaces_the_classifier_wherever_it_is(name: str) -> None:
    """``fc``, ``classifier.3``, ``heads.head``, and one with others that are used in training."""
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, **options).double().train()
    modes = {name: module.training for name, module in network.named_modules()}
    old = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    head = JointHead.replace_classifier(network, 4, 6)
    assert old not in network.modules() and head in network.modules()
    assert (head.in_features, head.weight.dtype) == (old.in_features, torch.float64)
    assert {name: module.training for name, module in network.named_modules()} == modes
    images = torch.rand(2, 3, 224, 224, dtype=torch.float64)
    assert network(images).shape == (2, 10)
    assert network.eval()(images).shape == (2, 4)
    again = torchvision.models.get_model(name, **options)
    JointHead.replace_classifier(again, 4, 6)
    again.load_state_dict(network.state_dict())


class UnderTwoNames(nn.Module):
    """A classifier that is an attribute, and the end of a sequence, which is what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 10)
        self.net = nn.Sequential(nn.Flatten(), self.fc)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def test_a_classifier_is_replaced_under_all_its_names() -> None:
    network = UnderTwoNames()
    head = JointHead.replace_classifier(network, 4, 7, size=2)
    assert network.fc is network.net[1] is head
    assert network(torch.zeros(8, 3, 2, 2)).shape == (8, 11)
    backbone, classifier = split_classifier(UnderTwoNames(), size=2)
    assert backbone(torch.zeros(8, 3, 2, 2)).shape == (8, 12)
    assert classifier is not None


@pytest.mark.parametrize("bias", [True, False])
def test_a_joint_head_goes_on_with_a_classifier_of_the_target(bias: bool) -> None:
    """As one's own code would: a fine-tuned network is trained further, and evaluated as it was."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=bias)).eval()
    images = torch.randn(8, 3, 2, 2)
    before = network(images)
    head = JointHead.replace_classifier(network, 4, 6, size=(2, 2))
    assert torch.equal(network(images), before)
    JointHead.replace_classifier(network, 4, 9, size=2)  # another source
    assert torch.equal(network(images), before) and network[1] is not head
    plain = network[1].to_linear(network)
    assert network[1] is plain and type(plain) is nn.Linear and not plain.training
    assert torch.equal(network(images), before)
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    joint = JointHead.replace_classifier(other, 4, 6, size=2)
    best = deepcopy(other)  # as an averaged model is one
    with pytest.raises(ValueError, match="no part of the Sequential; a copy of a network has"):
        joint.to_linear(best)
    assert not torch.equal(other[1].weight[:4], network[1].weight)


def test_a_joint_head_is_scripted_and_traced() -> None:
    network, images = nn.Sequential(nn.Flatten(), JointHead(12, 4, 6)), torch.randn(8, 3, 2, 2)
    for mode in (True, False):
        network.train(mode)
        for made in (torch.jit.script(network), torch.jit.trace(network, images)):
            assert torch.equal(made(images), network(images))


def test_a_joint_head_replaces_no_other_layer() -> None:
    pool = [torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()]
    plain = torch.nn.Sequential(*pool, torch.nn.Linear(12, 5, bias=False))
    assert JointHead.replace_classifier(plain, 4, 6, size=32).bias is None
    assert type(plain[2]) is JointHead
    scaled = torch.nn.Sequential(*pool, torch.nn.Linear(12, 5), torch.nn.Softmax(1))
    with pytest.raises(ValueError, match=r"and 3 \(Softmax\) makes it; put a JointHead"):
        JointHead.replace_classifier(scaled, 4, 6)
    with pytest.raises(ValueError, match=r"and no layer inside it makes it; put a JointHead"):
        JointHead.replace_classifier(torch.nn.Flatten(), 4, 6)
    small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5))
    with pytest.raises(ValueError, match=r"224 x 224 pixels .* give"):
        JointHead.replace_classifier(small, 4, 6)
    assert [type(m) for m in small] == [torch.nn.Flatten, torch.nn.Linear]


@pytest.mark.parametrize("bias", [True, False])
def test_a_joint_head_ends_as_a_classifier_of_the_target(bias: bool) -> None:
    head, z = (
        JointHead(12, 4, 6, bias=bias, dtype=torch.float64).eval(),
        torch.randn(5, 12).double(),
    )
    plain = head.to_linear()
    assert type(plain) is torch.nn.Linear and torch.equal(plain(z), head(z))
    with torch.no_grad():
        plain.weight.zero_()
    assert head.weight.any()  # it is a copy


def test_a_joint_head_trains_as_two_heads_in_one_softmax() -> None:
    """With soft labels its loss is XMixup's of a joint head."""
    backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    target, source = torch.nn.Linear(12, 4), torch.nn.Linear(12, 6)
    network = TransferNetwork(backbone, target, source, joint=True)
    head = JointHead(12, 4, 6)
    with torch.no_grad():
        head.weight.copy_(torch.cat([target.weight, source.weight]))
        head.bias.copy_(torch.cat([target.bias, source.bias]))
    batch = MixedBatch(
        torch.randn(5, 3, 8, 8), torch.arange(5) % 4, torch.arange(5) % 6, torch.rand(5)
    )
    method = XMixup(heads="joint")
    method.prepare(network, *method.phases)
    ours = torch.nn.functional.cross_entropy(head(backbone(batch.images)), batch.soft_labels(4, 6))
    torch.testing.assert_close(ours, method.loss(network, batch, step=0))


def test_half_precision_is_inside_the_network() -> None:
    """Its outputs are float32, so that losses and gradients are computed outside autocast."""
    plain, half = network().float(), network().float()
    half.load_state_dict(plain.state_dict())
    half.autocast_dtype = torch.bfloat16
    seen: list[torch.dtype] = []
    half.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x = images(4, 1).float()
    exact, found = plain(x), half(x)
    assert seen == [torch.bfloat16]
    for one, other in zip(exact, found, strict=True):
        assert other.dtype == torch.float32 and not torch.equal(one, other)
        torch.testing.assert_close(other, one, rtol=0.05, atol=0.05)
    assert not torch.is_autocast_enabled("cpu")
