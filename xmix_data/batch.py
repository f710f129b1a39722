"""What a training step receives: named tuples of tensors, already on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["MixedBatch", "PairedBatch"]


class MixedBatch(NamedTuple):
    """Target images mixed with images of their paired source classes (XMixup, Eqs. 3 and 4).

    ``images[i] = lam[i] * target[i] + (1 - lam[i]) * source[i]`` after normalisation.

    Examples:
        >>> loader = XMixLoader(
        ...     "target.beton", "source.beton", "pairing.json", batch_size=8, crop=RandomCrop(32)
        ... )
        >>> for name, tensor in next(iter(loader))._asdict().items():
        ...     print(name, tensor.dtype, tuple(tensor.shape))
        images torch.float32 (8, 3, 32, 32)
        target_labels torch.int64 (8,)
        source_labels torch.int64 (8,)
        lam torch.float32 (8,)
    """

    images: torch.Tensor
    """(B, 3, H, W) mixed images in the loader's dtype, channels_last."""
    target_labels: torch.Tensor
    """(B,) int64 class ids of the target images, in 0 .. num_target_classes - 1."""
    source_labels: torch.Tensor
    """(B,) int64 class ids of the source images, in 0 .. num_source_classes - 1."""
    lam: torch.Tensor
    """(B,) float32 in [0, 1]: weight λ of each target image."""

    def soft_labels(
        self, num_target: int, num_source: int, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        """Return labels of a joint head: ``lam`` on the target, ``1 - lam`` on the source class.

        Args:
            num_target: n, the number of target classes.
            num_source: m, the number of source classes.
            label_smoothing: ε in [0, 1): that share of each label is spread evenly over the classes
                of its own set, so that a row is λ ((1 - ε) e_t + ε / n) beside
                (1 - λ) ((1 - ε) e_s + ε / m).

        Returns:
            (B, n + m) float32, the target block first; every row sums to 1.

        Raises:
            ValueError: A label lies outside its block. On a GPU, where looking makes the host wait,
                its weight is NaN instead, and so is the loss.

        Examples:
            >>> images, lam = torch.zeros(2, 3, 32, 32), torch.tensor([0.75, 0.5])
            >>> batch = MixedBatch(images, torch.tensor([0, 1]), torch.tensor([2, 0]), lam)
            >>> batch.soft_labels(num_target=2, num_source=3)
            tensor([[0.7500, 0.0000, 0.0000, 0.0000, 0.2500],
                    [0.0000, 0.5000, 0.5000, 0.0000, 0.0000]])
        """
        rows = self.lam.new_zeros(len(self.lam), num_target + num_source)
        for name, labels, weights, first, count in (
            ("target", self.target_labels, self.lam, 0, num_target),
            ("source", self.source_labels, 1 - self.lam, num_target, num_source),
        ):
            fits = (labels >= 0) & (labels < count)
            if labels.device.type == "cpu":
                if not bool(fits.all()):
                    raise ValueError(
                        f"{name} label {int(labels[~fits][0])} does not fit into {count} {name} "
                        f"classes; pass the loader's num_{name}_classes"
                    )
            else:  # a look would make the host wait for all that the device has to do
                weights = weights.masked_fill(~fits, torch.nan)
                labels = labels.clamp(0, count - 1)
            if label_smoothing:
                block = rows[:, first : first + count]
                block += label_smoothing / count * weights[:, None]
                weights = (1 - label_smoothing) * weights
            rows.scatter_add_(1, first + labels[:, None], weights[:, None])
        return rows


class PairedBatch(NamedTuple):
    """Target images and images of their paired source classes, unmixed (Co-Train, GradMix).

    Examples:
        >>> paths = "target.beton", "source.beton", "pairing.json"
        >>> loader = XMixLoader(*paths, batch_size=8, crop=RandomCrop(32), mix=False)
        >>> batch = next(iter(loader))
        >>> batch.target_images.shape, batch.source_images.shape
        (torch.Size([8, 3, 32, 32]), torch.Size([8, 3, 32, 32]))
    """

    target_images: torch.Tensor
    """(B, 3, H, W) target images in the loader's dtype, channels_last."""
    source_images: torch.Tensor
    """(B, 3, H, W) source images in the loader's dtype, channels_last."""
    target_labels: torch.Tensor
    """(B,) int64 class ids of the target images, in 0 .. num_target_classes - 1."""
    source_labels: torch.Tensor
    """(B,) int64 class ids of the source images, in 0 .. num_source_classes - 1."""
    source_domains: torch.Tensor
    """(B,) int64: domain, in the list of sources, that each source image comes from."""
    lam: torch.Tensor
    """(B,) float32 in [0, 1]: weight λ that XMixup would give each target image."""
