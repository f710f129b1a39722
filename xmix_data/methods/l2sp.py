"""L2-SP: stay close to the starting point (Li et al., ICML 2018, arXiv 1802.01483)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from xmix_data.methods.base import (
    Average,
    Method,
    Network,
    Phase,
    Step,
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
        self._held: list[_Held] | None = None

    def prepare(self, network: TransferNetwork, phase: Phase) -> None:
        super().prepare(network, phase)
        backbone: list[torch.Tensor] = [p for p in network.backbone.parameters() if p.requires_grad]
        inside = set(map(id, network.backbone.parameters()))
        head: list[torch.Tensor] = [
            p for p in network.parameters() if p.requires_grad and id(p) not in inside
        ]
        start = [p.detach().clone() for p in backbone]
        terms: list[_Held] = [(self.alpha, backbone, start), (self.beta, head, None)]
        # No penalty of nothing: a frozen backbone has no parameter that learns, or it has none.
        self._held = [term for term in terms if term[1]]

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        held = self._prepared()
        loss = self._cross_entropy(network, batch, step)
        for weight, parameters, start in held:
            drift = parameters if start is None else _differences(parameters, start)
            loss = loss + weight / 2 * sum(d.square().sum() for d in drift)
        return loss

    def backward(
        self,
        network: Network,
        batch: Any,
        *,
        step: int,
        unlabelled: torch.Tensor | None = None,
        average: Average | None = None,
    ) -> Step:
        # The gradient of the penalty is known, and the same in all processes. Through autograd it
        # would cost as much as the network itself where images are small.
        held = self._prepared()
        loss = self._cross_entropy(network, batch, step)
        loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach()
        with torch.no_grad():
            for weight, parameters, start in held:
                drift = parameters if start is None else _differences(parameters, start)
                torch._foreach_add_([_gradient(p) for p in parameters], drift, alpha=weight)
                sizes = torch.stack(torch._foreach_norm(drift))
                total = total + weight / 2 * sizes.square().sum()
        return Step(total)

    def _prepared(self) -> list[_Held]:
        if self._held is None:
            raise ValueError("no starting point is known; call prepare(network, phase) first")
        return self._held

    def _cross_entropy(self, network: Network, batch: Any, step: int) -> torch.Tensor:
        images, labels = images_and_labels(batch)
        return self.cross_entropies(network(images), "target", labels, step).mean()


_Held = tuple[float, list[torch.Tensor], list[torch.Tensor] | None]
"""Term of the penalty: its weight, its parameters, and their starting point (``None``: 0)."""


def _differences(ones: list[torch.Tensor], others: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch._foreach_sub(ones, others))


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    if parameter.grad is None:  # the loss does not depend on it
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
