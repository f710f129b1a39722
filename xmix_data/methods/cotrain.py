"""Co-Train: target and source side by side, unmixed, with a shared backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from xmix_data.batch import PairedBatch
from xmix_data.methods.base import Method, Network, Phase, batch_of, not_negative
from xmix_data.methods.network import Outputs

__all__ = ["CoTrain"]


@dataclass(eq=False)
class CoTrain(Method):
    """``target_weight * CE(target) + source_weight * CE(source)``, one head for each label set.

    A baseline of XMixup (arXiv 2007.10252) after the joint fine-tuning of Ge and Yu, CVPR 2017
    (arXiv 1702.08690). Costs about twice a step of plain fine-tuning: twice the images.

    Both go through the network in one pass (ours: the paper leaves it open). Batch normalisation
    then sees both domains together, in training as in the running averages that evaluation uses;
    in two passes each domain would be normalised by itself, and evaluation by their average. One
    pass is also what DDP takes, and common in domain adaptation.

    Args:
        target_weight, source_weight: Weights of the two losses; the original has 0.5 and 0.5,
            which is half the learning rate.

    Raises:
        ValueError: A weight is negative, or both are 0.
    """

    name: ClassVar[str] = "cotrain"
    target_weight: float = 1.0
    source_weight: float = 1.0

    def __post_init__(self) -> None:
        not_negative("target_weight", self.target_weight)
        not_negative("source_weight", self.source_weight)
        if self.target_weight == self.source_weight == 0:
            raise ValueError("target_weight and source_weight are both 0; give one at least")

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("paired", ("target", "source")),)

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        batch = batch_of(PairedBatch, batch)
        outputs = network(torch.cat([batch.target_images, batch.source_images]))
        target, source = paired_losses(self, outputs, batch, step)
        return self.target_weight * target.mean() + self.source_weight * source.mean()


def paired_losses(
    method: Method, outputs: Outputs, batch: PairedBatch, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the cross-entropy of each target image and of each source image, (B,) both.

    Args:
        method: The method, which knows how labels are smoothed.
        outputs: Outputs for the target images, then the source images, and maybe more.
        batch: The batch, which has these images' labels.
        step: As for `Method.loss`.
    """
    size = len(batch.target_labels)
    return (
        method.cross_entropies(outputs, "target", batch.target_labels, step, slice(0, size)),
        method.cross_entropies(outputs, "source", batch.source_labels, step, slice(size, 2 * size)),
    )
