"""What a training step receives: named tuples of tensors, already on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["MixedBatch", "PairedBatch"]


class MixedBatch(NamedTuple):
    """Target images mixed with images of their paired source classes (XMixup, Eqs. 3 and 4).

    ``images[i] = lam[i] * target[i] + (1 - lam[i]) * source[i]`` after normalisation.
    """

    images: torch.Tensor
    """(B, 3, H, W) in the loader's dtype, channels_last."""
    target_labels: torch.Tensor
    """(B,) int64, in 0 .. num_target_classes - 1."""
    source_labels: torch.Tensor
    """(B,) int64, in 0 .. num_source_classes - 1."""
    lam: torch.Tensor
    """(B,) float32 in [0, 1]: the weight of the target image."""

    def soft_labels(self, num_target: int, num_source: int) -> torch.Tensor:
        """Labels of a joint head: ``lam`` on the target class, ``1 - lam`` on the source class.

        Args:
            num_target: n, the number of target classes.
            num_source: m, the number of source classes.

        Returns:
            (B, n + m) float32, the target block first; every row sums to 1.

        Raises:
            ValueError: A label lies outside its block.
        """
        for name, labels, limit in (
            ("target", self.target_labels, num_target),
            ("source", self.source_labels, num_source),
        ):
            if labels.numel() and int(labels.max()) >= limit:
                raise ValueError(
                    f"{name} label {int(labels.max())} does not fit into {limit} {name} classes; "
                    f"pass the loader's num_{name}_classes"
                )
        rows = self.lam.new_zeros(len(self.lam), num_target + num_source)
        rows.scatter_(1, self.target_labels[:, None], self.lam[:, None])
        rows.scatter_(1, num_target + self.source_labels[:, None], 1 - self.lam[:, None])
        return rows


class PairedBatch(NamedTuple):
    """Target images and images of their paired source classes, unmixed (Co-Train, GradMix)."""

    target_images: torch.Tensor
    """(B, 3, H, W) in the loader's dtype, channels_last."""
    source_images: torch.Tensor
    """(B, 3, H, W) in the loader's dtype, channels_last."""
    target_labels: torch.Tensor
    """(B,) int64, in 0 .. num_target_classes - 1."""
    source_labels: torch.Tensor
    """(B,) int64, in 0 .. num_source_classes - 1."""
    source_domains: torch.Tensor
    """(B,) int64: which domain of the source list each source image comes from."""
    lam: torch.Tensor
    """(B,) float32 in [0, 1]: the weight that XMixup would give the target image."""
