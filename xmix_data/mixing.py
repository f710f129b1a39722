"""The device stage: mirror, normalise and mix uint8 crops in plain torch operations.

Comes in: crops (B, H, W, 3) uint8 on any device. Goes out: images (B, 3, H, W), channels_last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "mix", "normalise", "scale_and_shift"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per-channel mean in 0..1 units, that torchvision's weights were trained with."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per-channel standard deviation in 0..1 units."""


def scale_and_shift(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """``(pixel / 255 - mean) / std`` as ``scale * pixel + shift``.

    Args:
        mean, std: Three numbers in 0..1 units.

    Returns:
        scale (3,), shift (3,).
    """
    std_3 = np.asarray(std, np.float64)
    return 1 / (255 * std_3), -np.asarray(mean, np.float64) / std_3


def normalise(
    crops: torch.Tensor,
    flips: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Mirror and normalise crops.

    Args:
        crops: (B, H, W, 3) uint8.
        flips: (B,) bool.
        scale, shift: (3,) float32.
        dtype: Of the result; ``torch.uint8`` leaves the pixels as they are.

    Returns:
        (B, 3, H, W), channels_last.
    """
    images = _mirrored(crops, flips)
    if dtype != torch.uint8:
        images = torch.addcmul(shift, images.float(), scale).to(dtype)
    return images.permute(0, 3, 1, 2)


def mix(
    target: torch.Tensor,
    source: torch.Tensor,
    target_flips: torch.Tensor,
    source_flips: torch.Tensor,
    lam: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Mirror, normalise and mix pairs of crops (Eq. 4).

    Args:
        target, source: (B, H, W, 3) uint8.
        target_flips, source_flips: (B,) bool.
        lam: (B,) float32, the weight of the target image.
        scale, shift: (3,) float32.
        dtype: Of the result, floating point.

    Returns:
        (B, 3, H, W), channels_last.
    """
    weight = lam[:, None, None, None]
    mixed = (weight * scale) * _mirrored(target, target_flips).float()
    mixed.addcmul_((1 - weight) * scale, _mirrored(source, source_flips).float())
    return mixed.add_(shift).to(dtype).permute(0, 3, 1, 2)


def _mirrored(crops: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    return torch.where(flips[:, None, None, None], crops.flip(2), crops)
