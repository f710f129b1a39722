"""L2-SP: stay close to the starting point (Li et al., ICML 2018, arXiv 1802.01483)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from xmix_data.methods.base import (
    Method,
    Network,
    Phase,
    cross_entropies,
    images_and_labels,
    not_negative,
)
from xmix_data.methods.network import TransferNetwork

__all__ = ["L2SP"]


@dataclass(eq=False)
class L2SP(Method):
    """Cross-entropy plus the penalty of the paper's Section 3, instead of weight decay.

    ``alpha / 2 * ||w - w0||^2 + beta / 2 * ||v||^2``: w are all parameters of the backbone
    (never its buffers) and w0 their values when the phase began; v are those of the head, which is
    new. The sum runs over single weights, so layers with more of them weigh more.

    Args:
        alpha: How strongly the backbone is held at its starting point; 0.01 in the paper.
        beta: How strongly the new head is held at 0; 0.01 in the paper.

    Raises:
        ValueError: A weight is negative; in `loss`: nothing was prepared.
    """

    name: ClassVar[str] = "l2sp"
    alpha: float = 0.01
    beta: float = 0.01
    weight_decay = 0.0  # the penalty takes its place

    def __post_init__(self) -> None:
        not_negative("alpha", self.alpha)
        not_negative("beta", self.beta)
        self._backbone: list[nn.Parameter] = []
        self._head: list[nn.Parameter] = []
        self._start = torch.empty(0)

    def prepare(self, network: TransferNetwork, phase: Phase) -> None:
        super().prepare(network, phase)
        self._backbone = list(network.backbone.parameters())
        inside = set(map(id, self._backbone))
        self._head = [p for p in network.parameters() if p.requires_grad and id(p) not in inside]
        self._start = _flat(self._backbone).detach().clone()

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        if not self._backbone:
            raise ValueError("no starting point is known; call prepare(network, phase) first")
        images, labels = images_and_labels(batch)
        loss = cross_entropies(network(images), "target", labels, step).mean()
        drift = (_flat(self._backbone) - self._start).square().sum()
        size = _flat(self._head).square().sum()
        return loss + self.alpha / 2 * drift + self.beta / 2 * size


def _flat(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """All weights in one vector: a handful of kernels, however many layers there are."""
    return torch.cat([p.reshape(-1) for p in parameters])
