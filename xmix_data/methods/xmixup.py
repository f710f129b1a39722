"""XMixup (arXiv 2007.10252): learn from target images mixed with their paired source class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from xmix_data.batch import MixedBatch, PairedBatch
from xmix_data.methods.base import (
    Method,
    Network,
    Phase,
    batch_of,
    check_head,
    fitting_logits,
    one_of,
)

__all__ = ["XMixup", "xmixup_loss"]


@dataclass(eq=False)
class XMixup(Method):
    """Mixed images, and the loss of both their labels (Eq. 4).

    Args:
        heads: ``"two"``: a head for each label set, see `xmixup_loss`. ``"joint"``: one softmax
            over both label sets, with lam on the target class and 1 - lam on the source class.
            (The paper leaves the heads open; two are our choice.)
        lam: ``"sample"``: each pair has its own, mixed by the loader. ``"batch"``: all pairs of a
            batch are mixed, on the device, with the lam of its first pair.
        source_labels: ``False`` drops the source term of the loss, and needs no source head: the
            paper's ablation "w/o Label" (Table 4).

    Raises:
        ValueError: An option is unknown, or a joint head is to do without source labels.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        >>> network = TransferNetwork(backbone, torch.nn.Linear(12, 4), torch.nn.Linear(12, 6))
        >>> method = XMixup()
        >>> method.prepare(network, *method.phases)
        >>> paths = "target.beton", "source.beton", "pairing.json"
        >>> loader = XMixLoader(*paths, batch_size=8, crop=RandomCrop(32))
        >>> for step, batch in enumerate(loader):
        ...     loss = method.backward(network, batch, step=step).loss  # and fills .grad
        >>> loss.shape, network.source_head.weight.grad.shape
        (torch.Size([]), torch.Size([6, 12]))
    """

    name: ClassVar[str] = "xmixup"
    mixes: ClassVar[bool] = True
    heads: str = "two"
    lam: str = "sample"
    source_labels: bool = True

    def __post_init__(self) -> None:
        one_of("heads", self.heads, ("two", "joint"))
        one_of("lam", self.lam, ("sample", "batch"))
        if self.heads == "joint" and not self.source_labels:
            raise ValueError("a joint head needs source labels; choose heads='two'")

    @property
    def phases(self) -> tuple[Phase, ...]:
        heads = ("joint",) if self.heads == "joint" else ("target", "source")
        batches = "mixed" if self.lam == "sample" else "paired"
        return (Phase(batches, heads if self.source_labels else ("target",)),)

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        if self.lam == "sample":
            mixed = batch_of(MixedBatch, batch)
        else:
            mixed = _mixed_alike(batch_of(PairedBatch, batch), self.mixing)
        outputs = network(mixed.images)
        if not self.source_labels:
            losses = self.cross_entropies(outputs, "target", mixed.target_labels, step)
            return (mixed.lam.to(losses.dtype) * losses).mean()
        target = fitting_logits(outputs, "target", mixed.target_labels, step)
        source = fitting_logits(outputs, "source", mixed.source_labels, step)
        if self.heads == "two":
            return xmixup_loss(target, source, mixed, self.label_smoothing)
        sizes = target.shape[1], source.shape[1]
        labels = mixed.soft_labels(*sizes, self.label_smoothing)
        return cross_entropy(torch.cat([target, source], 1), labels.to(target.dtype))


_FIELDS = ", ".join(MixedBatch._fields)


def _mixed_alike(batch: PairedBatch, mixing: bool) -> MixedBatch:
    """Mix all pairs with the lam of the first, or not at all."""
    lam = batch.lam[0] if mixing else torch.ones_like(batch.lam[0])
    weight = lam.to(batch.target_images.dtype)
    images = weight * batch.target_images + (1 - weight) * batch.source_images
    return MixedBatch(images, batch.target_labels, batch.source_labels, lam.expand(len(batch.lam)))


def xmixup_loss(
    target_logits: torch.Tensor,
    source_logits: torch.Tensor,
    batch: MixedBatch | Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Compute the two-head loss of a batch: ``mean(lam * CE(target) + (1 - lam) * CE(source))``.

    Eq. 4 mixes the labels as it mixes the images; with one head per label set, the mixed label's
    cross-entropy is this sum. (The paper leaves the heads open; two heads are our choice.)

    Args:
        target_logits: (B, n), floating point: the target head on ``batch.images``.
        source_logits: (B, m), floating point: the source head on ``batch.images``.
        batch: The mixed batch that the logits come from; also as a plain tuple of its fields, or as
            a dict of them (``labels="dict"``), which frameworks make of it.
        label_smoothing: Share, in [0, 1), of each label that is spread evenly over its label set.

    Returns:
        A scalar in the logits' dtype.

    Raises:
        ValueError: The batch has other fields, or the logits' number of rows is not the batch's;
            or, looked at on the CPU alone and not under `torch.compile`, a head has too few outputs
            for its labels.

    Examples:
        >>> images, lam = torch.zeros(2, 3, 32, 32), torch.tensor([0.75, 0.5])
        >>> batch = MixedBatch(images, torch.tensor([0, 1]), torch.tensor([2, 0]), lam)
        >>> target_logits, source_logits = torch.zeros(2, 4), torch.zeros(2, 6)
        >>> xmixup_loss(target_logits, source_logits, batch)
        tensor(1.5383)
    """
    if not isinstance(batch, MixedBatch):
        batch = _named(batch)
    size = len(batch.lam)
    for head, logits, labels in (
        ("target", target_logits, batch.target_labels),
        ("source", source_logits, batch.source_labels),
    ):
        if not isinstance(logits, torch.Tensor):
            raise ValueError(
                f"{head}_logits is a {type(logits).__name__}; give its tensor of logits, e.g. "
                "outputs.logits"
            )
        if logits.ndim != 2 or len(logits) != size:
            raise ValueError(
                f"{head}_logits has shape {tuple(logits.shape)}, expected ({size}, classes): "
                "one row for each image of the batch"
            )
        if labels.dtype != torch.int64 or labels.shape != (size,):
            raise ValueError(
                f"{head}_labels is {labels.dtype} of shape {tuple(labels.shape)}; expected "
                f"({size},) int64: give the batch's fields in the order {_FIELDS}"
            )
        if labels.device != logits.device:
            raise ValueError(
                f"the logits are on {logits.device} and the batch on {labels.device}; give the "
                f'loader device="{logits.device}"'
            )
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_head(head, logits, labels)
    target, source = (
        cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        for logits, labels in (
            (target_logits, batch.target_labels),
            (source_logits, batch.source_labels),
        )
    )
    lam = batch.lam.to(target.dtype)
    return (lam * target + (1 - lam) * source).mean()


def _named(batch: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]) -> MixedBatch:
    """Give a plain tuple's or a dict's tensors their names again."""
    try:
        if isinstance(batch, Mapping):
            return MixedBatch(*(batch[name] for name in MixedBatch._fields))
        if isinstance(batch, (tuple, list)):
            return MixedBatch(*batch)
        raise TypeError
    except (KeyError, TypeError):
        found = f"a {type(batch).__name__}"
        if isinstance(batch, Mapping):
            found = f"a dict of {', '.join(map(str, batch))}"
        elif isinstance(batch, Sequence):
            found += f" of {len(batch)}"
        raise ValueError(
            f'the batch is {found}; give what XMixLoader gives with mix=True, labels="pair" or '
            f'"dict" and no names: {_FIELDS}, in this order or by name'
        ) from None
