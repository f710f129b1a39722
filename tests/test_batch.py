"""Soft labels and the loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from xmix_data import MixedBatch, xmixup_loss
from xmix_data.backends.device import packed, unpacked

B, N, M = 6, 3, 5


def batch() -> MixedBatch:
    random = torch.Generator().manual_seed(0)
    return MixedBatch(
        torch.zeros(B, 3, 2, 2),
        torch.randint(N, (B,), generator=random),
        torch.randint(M, (B,), generator=random),
        torch.rand(B, generator=random),
    )


def test_loss_is_the_formula_summed_by_hand() -> None:
    target, source, mixed = torch.randn(B, N).double(), torch.randn(B, M).double(), batch()
    total = 0.0
    for i in range(B):
        lam = float(mixed.lam[i])
        total -= lam * float(log_softmax(target[i], 0)[mixed.target_labels[i]])
        total -= (1 - lam) * float(log_softmax(source[i], 0)[mixed.source_labels[i]])
    assert float(xmixup_loss(target, source, mixed)) == pytest.approx(total / B, rel=1e-12)


def test_joint_head_is_two_heads_plus_the_mass_of_each_block() -> None:
    """L_joint = L_two + mean(-λ log P(T) - (1 - λ) log P(S)), exactly."""
    target, source, mixed = torch.randn(B, N).double(), torch.randn(B, M).double(), batch()
    both = torch.cat([target, source], 1)
    labels = mixed.soft_labels(N, M).double()
    mass = log_softmax(both, 1).exp()
    p_target, p_source = mass[:, :N].sum(1), mass[:, N:].sum(1)
    lam = mixed.lam.double()
    extra = (-lam * p_target.log() - (1 - lam) * p_source.log()).mean()
    joint = cross_entropy(both, labels)
    assert float(joint) == pytest.approx(float(xmixup_loss(target, source, mixed) + extra), 1e-6)


def test_loss_reaches_both_heads() -> None:
    target, source = torch.zeros(B, N, requires_grad=True), torch.zeros(B, M, requires_grad=True)
    xmixup_loss(target, source, batch()).backward()
    assert target.grad is not None and target.grad.abs().sum() > 0
    assert source.grad is not None and source.grad.abs().sum() > 0


def test_soft_labels_reject_too_few_classes() -> None:
    mixed = batch()._replace(target_labels=torch.full((B,), 4))
    with pytest.raises(ValueError, match="target label 4 does not fit into 3 target classes"):
        mixed.soft_labels(N, M)


def test_tensors_laid_into_one_block_come_out_of_it() -> None:
    """What a batch has beside its images goes to a GPU in one copy, wherever each part begins."""
    tensors = [
        torch.arange(5),
        torch.rand(3),
        torch.tensor([True]),
        torch.rand(0, 4),
        torch.rand(2, 3).double(),
        torch.arange(7, dtype=torch.uint8),
        torch.rand(3, 3).half(),
    ]
    block = packed(tensors)
    found = unpacked(block.clone(), tensors)
    assert block.dtype == torch.uint8 and block.ndim == 1
    for one, other in zip(found, tensors, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_soft_labels_on_a_gpu_do_not_wait_for_it() -> None:
    """What does not fit is NaN, and so is a loss: the host would have to wait to raise."""
    mixed = MixedBatch(*(tensor.cuda() for tensor in batch()))
    torch.cuda.set_sync_debug_mode("error")
    try:
        labels = mixed.soft_labels(N, M)
        wrong = mixed._replace(target_labels=mixed.target_labels + N - 1).soft_labels(N, M)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(labels.cpu(), batch().soft_labels(N, M))
    assert torch.equal(wrong.isnan().any(1).cpu(), batch().target_labels > 0)


def test_loss_takes_a_batch_as_frameworks_hand_it_on() -> None:
    target, source, mixed = torch.randn(B, N), torch.randn(B, M), batch()
    expected = xmixup_loss(target, source, mixed)
    for form in (tuple(mixed), list(mixed), mixed._asdict()):
        assert torch.equal(xmixup_loss(target, source, form), expected)
    for wrong in (tuple(mixed)[:2], {"images": mixed.images}):
        with pytest.raises(ValueError, match="images, target_labels, source_labels, lam"):
            xmixup_loss(target, source, wrong)


def test_loss_compiles_as_one_graph() -> None:
    target, source, mixed = torch.randn(B, N), torch.randn(B, M), batch()
    compiled = torch.compile(xmixup_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(target, source, mixed), xmixup_loss(target, source, mixed))
    compiled = torch.compile(xmixup_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(target, source, tuple(mixed)), xmixup_loss(target, source, mixed)
    )


def test_loss_rejects_logits_of_another_batch() -> None:
    with pytest.raises(ValueError, match=r"source_logits has shape \(5, 5\), expected \(6"):
        xmixup_loss(torch.zeros(B, N), torch.zeros(B - 1, M), batch())


def test_loss_rejects_a_head_that_is_too_small() -> None:
    mixed = batch()._replace(source_labels=torch.full((B,), M))
    with pytest.raises(ValueError, match=f"source label {M} does not fit a source head of {M} out"):
        xmixup_loss(torch.zeros(B, N), torch.zeros(B, M), mixed)
