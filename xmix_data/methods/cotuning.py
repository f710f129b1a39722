"""Co-Tuning (You et al., NeurIPS 2020): the pre-trained classifier is trained further, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import log_softmax

from xmix_data.methods.base import (
    Method,
    Network,
    Phase,
    fitting_logits,
    head_logits,
    images_and_labels,
    not_negative,
)
from xmix_data.methods.network import TransferNetwork

__all__ = ["CoTuning"]


@dataclass(eq=False)
class CoTuning(Method):
    """Cross-entropy plus ``weight`` times that of the pre-trained classes, with soft labels.

    The whole pre-trained classifier stays on the backbone as the source head. A target image of
    class t is to be told as the pre-trained classes p(s | t): the mean of what the pre-trained
    network says of the training images of t (the paper's direct approach). No source image is
    needed. As in Transfer-Learning-Library, whose authors' group the paper is of, probabilities are
    not calibrated; there the backbone learns at a tenth of the heads' rate, and here all at one.

    Args:
        weight: Weight of the second loss; 2.3 in that library.

    Raises:
        ValueError: The weight is negative; in `loss`: `survey` has not been called.
    """

    name: ClassVar[str] = "cotuning"
    keeps_classifier: ClassVar[bool] = True
    surveys = True
    weight: float = 2.3

    def __post_init__(self) -> None:
        not_negative("weight", self.weight)
        self._related: torch.Tensor | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("target", ("target", "source")),)

    @torch.no_grad()
    def survey(
        self, network: TransferNetwork, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Measure p(s | t), an (n, m) matrix whose rows sum to 1."""
        sums: torch.Tensor | None = None
        for images, labels in batches:
            outputs = network(images)
            said = head_logits(outputs, "source").softmax(1)
            if sums is None:
                classes = fitting_logits(outputs, "target", labels, 0).shape[1]
                sums = said.new_zeros(classes, said.shape[1])
            sums.index_add_(0, labels, said)
        if sums is None:
            raise ValueError("the target has no images")
        # A class without training images is never asked for.
        self._related = sums / sums.sum(1, keepdim=True).clamp_min(1e-12)

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        if self._related is None:
            raise ValueError("no relation of classes is known; call survey(network, batches) first")
        images, labels = images_and_labels(batch)
        outputs = network(images)
        target = self.cross_entropies(outputs, "target", labels, step).mean()
        said = log_softmax(head_logits(outputs, "source"), 1)
        return target - self.weight * (self._related[labels] * said).sum(1).mean()
