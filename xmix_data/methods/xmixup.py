"""XMixup (arXiv 2007.10252): learn from target images mixed with their paired source class."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from xmix_data.batch import MixedBatch

__all__ = ["xmixup_loss"]


def xmixup_loss(
    target_logits: torch.Tensor, source_logits: torch.Tensor, batch: MixedBatch
) -> torch.Tensor:
    """Two-head loss of a mixed batch: ``mean(lam * CE(target) + (1 - lam) * CE(source))``.

    Eq. 4 mixes the labels as it mixes the images; with one head per label set, the mixed label's
    cross-entropy is this sum. (The paper leaves the heads open; two heads are our choice.)

    Args:
        target_logits: (B, n), floating point: the target head on ``batch.images``.
        source_logits: (B, m), floating point: the source head on ``batch.images``.
        batch: The mixed batch the logits come from.

    Returns:
        A scalar in the logits' dtype.

    Raises:
        ValueError: The logits' number of rows is not the batch's.
    """
    size = len(batch.lam)
    for name, logits in (("target_logits", target_logits), ("source_logits", source_logits)):
        if logits.ndim != 2 or len(logits) != size:
            raise ValueError(
                f"{name} has shape {tuple(logits.shape)}, expected ({size}, classes): "
                "one row for each image of the batch"
            )
    target = cross_entropy(target_logits, batch.target_labels, reduction="none")
    source = cross_entropy(source_logits, batch.source_labels, reduction="none")
    lam = batch.lam.to(target.dtype)
    return (lam * target + (1 - lam) * source).mean()
