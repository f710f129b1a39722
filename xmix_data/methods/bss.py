"""Batch Spectral Shrinkage (Chen et al., NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from xmix_data.methods.base import (
    Method,
    Network,
    images_and_labels,
    not_negative,
)

__all__ = ["BSS"]


@dataclass(eq=False)
class BSS(Method):
    """Cross-entropy plus ``eta`` times the sum of the ``k`` smallest squared singular values.

    Those of the (B, D) matrix of a batch's pooled features: the directions in which the images of
    a batch hardly differ transfer badly, and are suppressed. Singular values grow with the batch,
    so every batch should have the same size. The loss of features that are not finite is NaN.

    Args:
        eta: Weight of the penalty; 0.001 in the paper.
        k: How many singular values; 1 in the paper.

    Raises:
        ValueError: An option is impossible; in `loss`: a batch has fewer than k singular values.
    """

    name: ClassVar[str] = "bss"
    eta: float = 0.001
    k: int = 1

    def __post_init__(self) -> None:
        not_negative("eta", self.eta)
        if self.k < 1:
            raise ValueError(f"k is {self.k}; give at least 1 singular value to shrink")

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        images, labels = images_and_labels(batch)
        outputs = network(images)
        features = outputs.features
        if self.k > min(features.shape):
            raise ValueError(
                f"k is {self.k}, and features of shape {tuple(features.shape)} have "
                f"{min(features.shape)} singular values; lower k or take larger batches"
            )
        if features.dtype != torch.float64:
            features = features.float()  # there is no decomposition in half precision
        # Of what is not finite a decomposition raises, or even gives finite numbers. The sum of all
        # squared singular values, which is that of all entries, tells without making a GPU wait.
        finite = features.detach().square().sum().isfinite()
        values = torch.linalg.svdvals(torch.where(finite, features, 0.0))
        penalty = torch.where(finite, values[-self.k :].square().sum(), torch.nan)
        loss = self.cross_entropies(outputs, "target", labels, step).mean()
        return loss + self.eta * penalty
