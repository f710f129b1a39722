"""The device stage: mirror, normalise and mix uint8 crops.

Comes in: crops (B, H, W, 3) uint8 on any device. Goes out: images (B, 3, H, W), channels_last.
`mix` and `normalise` are plain torch operations; `device_stage` finds what is faster on a GPU.
"""

from __future__ import annotations

import logging
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch

__all__ = ["device_stage", "mix", "normalise"]


_log = logging.getLogger("xmix_data")


@cache
def device_stage(device: torch.device) -> tuple[Any, str | None]:
    """Find what mixes on a device: a module with ``mix`` and ``normalise``.

    Args:
        device: A CUDA device.

    Returns:
        `xmix_data.backends.mixing_triton` and ``None``, or this module and, in one line, why
            Triton's kernel cannot run.
    """
    try:
        from xmix_data.backends import mixing_triton

        _try(mixing_triton, device)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _log.warning("mixing by plain torch operations, Triton's kernel cannot run: %s", reason)
        return sys.modules[__name__], reason
    return mixing_triton, None


def _try(module: ModuleType, device: torch.device) -> None:
    """Compile and run both functions once, and compare them with the plain ones."""
    crops = torch.arange(192, device=device).reshape(2, 2, 16, 3).to(torch.uint8)
    place: dict[str, Any] = {"device": device, "dtype": torch.float32}
    flips, lam = torch.tensor([0.0, 1.0], **place), torch.tensor([0.25, 0.75], **place)
    scale, shift = torch.ones(3, **place), torch.zeros(3, **place)
    both = (crops, crops.flip(0), flips, 1 - flips, lam, scale, shift, torch.float32)
    alone = (crops, flips, scale, shift, torch.float32)
    # Triton launches on the current device.
    with torch.cuda.device(device if device.type == "cuda" else -1):
        torch.testing.assert_close(module.mix(*both), mix(*both))
        torch.testing.assert_close(module.normalise(*alone), normalise(*alone))


def normalise(
    crops: torch.Tensor,
    flips: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Mirror and normalise crops.

    Args:
        crops: (B, H, W, 3) uint8 crops.
        flips: (B,) true, or not 0, where an image is mirrored.
        scale, shift: (3,) float32, one a channel.
        dtype: Type of the result; for ``torch.uint8`` give scale 1 and shift 0.

    Returns:
        (B, 3, H, W) images in ``dtype``, channels_last.
    """
    images = torch.addcmul(shift, _mirrored(crops, flips).float(), scale)
    return images.to(dtype).permute(0, 3, 1, 2)


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
        target, source: (B, H, W, 3) uint8 crops.
        target_flips, source_flips: (B,) true, or not 0, where an image is mirrored.
        lam: (B,) float32, the weight of the target image.
        scale, shift: (3,) float32, one a channel.
        dtype: Type of the result, floating point.

    Returns:
        (B, 3, H, W) mixed images in ``dtype``, channels_last.
    """
    weight = lam[:, None, None, None]
    mixed = (weight * scale) * _mirrored(target, target_flips).float()
    mixed.addcmul_((1 - weight) * scale, _mirrored(source, source_flips).float())
    return mixed.add_(shift).to(dtype).permute(0, 3, 1, 2)


def _mirrored(crops: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    return torch.where(flips.bool()[:, None, None, None], crops.flip(2), crops)
