"""Plain fine-tuning (L2): what every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from xmix_data.methods.base import Method, Network, images_and_labels

__all__ = ["FineTune"]


@dataclass(eq=False)
class FineTune(Method):
    """Cross-entropy on target images; the L2 penalty is the optimiser's weight decay."""

    name: ClassVar[str] = "finetune"

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        images, labels = images_and_labels(batch)
        return self.cross_entropies(network(images), "target", labels, step).mean()
