"""What normalised pixels are: mean, deviation, and the arithmetic of both.

Comes in: per-channel mean and standard deviation in 0..1 units. Goes out: scale and shift for
pixels in 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "scale_and_shift"]


IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of each channel in 0..1 units, red first, that torchvision's weights were trained with."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of each channel in 0..1 units, red first, of the same images."""


def scale_and_shift(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scale and shift, such that ``scale * pixel + shift = (pixel / 255 - mean) / std``.

    Args:
        mean, std: Mean and standard deviation of each of the three channels, in 0..1 units.

    Returns:
        scale (3,) and shift (3,), float64.
    """
    std_3 = np.asarray(std, np.float64)
    return 1 / (255 * std_3), -np.asarray(mean, np.float64) / std_3
