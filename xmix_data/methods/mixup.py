"""Mixup inside the target domain (Zhang et al., ICLR 2018, arXiv 1710.09412)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from xmix_data.batch import MixedBatch
from xmix_data.methods.base import (
    Method,
    Network,
    fitting_logits,
    images_and_labels,
    positive,
)
from xmix_data.methods.xmixup import xmixup_loss
from xmix_data.options import MAX_SEED, whole_number
from xmix_data.ranks import get_rank

__all__ = ["Mixup"]


@dataclass(eq=False)
class Mixup(Method):
    """Target images mixed with each other: XMixup without a source (its ablation, Table 4).

    ``lam * x_i + (1 - lam) * x_j`` with lam ~ Beta(alpha, alpha), labels likewise. The partner j is
    the image before i in the batch, whose order is random already. As in the paper's formula, and
    in XMixup, each pair has its own lam; the paper's code draws one for a batch.

    Args:
        alpha: Both parameters of the Beta distribution.
        seed: Seed, 0 .. 2**64 - 1; ``None`` takes torch's, which `fit` sets from the recipe's for
            each step. Seed, step and process decide every lam, so that a resumed training goes on
            as if it had not stopped.

    Raises:
        ValueError: An option is impossible.
    """

    name: ClassVar[str] = "mixup"
    mixes: ClassVar[bool] = True
    alpha: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)
        if self.seed is not None:
            whole_number("seed", self.seed, 0, MAX_SEED)

    def loss(self, network: Network, batch: Any, *, step: int) -> torch.Tensor:
        images, labels = images_and_labels(batch)
        if not self.mixing:
            return self.cross_entropies(network(images), "target", labels, step).mean()
        lam = self._lam(len(images), step).to(images.dtype)
        if images.is_cuda:
            lam = lam.pin_memory().to(images.device, non_blocking=True)
        weight = lam[:, None, None, None]
        mixed = weight * images + (1 - weight) * images.roll(1, 0)
        logits = fitting_logits(network(mixed), "target", labels, step)
        pairs = MixedBatch(mixed, labels, labels.roll(1, 0), lam)
        return xmixup_loss(logits, logits, pairs, self.label_smoothing)

    def _lam(self, count: int, step: int) -> torch.Tensor:
        """Draw the lam of each pair of a batch, (count,) float64."""
        seed = torch.initial_seed() if self.seed is None else self.seed
        key = np.array([seed, step], np.uint64)
        counter = np.array([0, 0, 0, get_rank()], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key, counter=counter))
        return torch.from_numpy(random.beta(self.alpha, self.alpha, count))
