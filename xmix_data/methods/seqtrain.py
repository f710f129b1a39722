"""Seq-Train: first the auxiliary source images, then the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from xmix_data.methods.base import Method, Network, Phase, images_and_labels
from xmix_data.methods.network import TransferNetwork

__all__ = ["SeqTrain"]


@dataclass(eq=False)
class SeqTrain(Method):
    """Training on the pairing's source images, then fine-tuning on the target.

    A baseline of XMixup (arXiv 2007.10252); training on chosen source classes before the target
    is Cui et al., CVPR 2018 (arXiv 1806.06193). As in XMixup's comparison, the auxiliary images
    are those of its own pairing.

    Args:
        auxiliary_iterations: Number of steps of the first phase; ``None`` leaves it to the training
            loop.

    Raises:
        ValueError: ``auxiliary_iterations`` is below 1; in `loss`: nothing was prepared.
    """

    name: ClassVar[str] = "seqtrain"
    auxiliary_iterations: int | None = None

    def __post_init__(self) -> None:
        if self.auxiliary_iterations is not None and self.auxiliary_iterations < 1:
            raise ValueError(
                f"auxiliary_iterations is {self.auxiliary_iterations}; it must be at least 1"
            )
        self._head = ""

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("auxiliary", ("source",), self.auxiliary_iterations),
            Phase("target", ("target",)),
        )

    def prepare(self, network: TransferNetwork, phase: Phase) -> None:
        super().prepare(network, phase)
        (self._head,) = phase.heads

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        if not self._head:
            raise ValueError("no phase has begun; call prepare(network, phase) first")
        images, labels = images_and_labels(batch)
        return self.cross_entropies(network(images), self._head, labels, step).mean()
