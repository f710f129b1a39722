"""The device stage as one Triton kernel: mirror, normalise and mix in a single pass over memory.

Comes in: crops (B, H, W, 3) uint8. Goes out: images (B, 3, H, W), channels_last. Plain torch
operations in `mixing` do the same in several passes; that is what this kernel is tested against.
Only imported where a GPU is used: Triton takes a second to load.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["mix", "normalise"]


_BLOCK = 1024
"""Number of results that one program of the kernel makes."""


@triton.jit
def _pixels(crops, flips, image, offsets, width, length, mask):  # type: ignore[no-untyped-def]
    """Read numbers of one image, each from where it lies in the crop, mirrored or not."""
    row_bytes = 3 * width
    x = offsets % row_bytes
    # Pixels change places from left to right, channels within a pixel do not.
    mirrored = offsets - x + row_bytes - 3 - x + 2 * (x % 3)
    flip = tl.load(flips + image) != 0
    at = tl.where(flip, mirrored, offsets)
    return tl.load(crops + image * length + at, mask=mask, other=0).to(tl.float32)


@triton.jit
def _of_channel(numbers, offsets):  # type: ignore[no-untyped-def]
    return tl.load(numbers + offsets % 3)


@triton.jit  # type: ignore[untyped-decorator]
def _mix(  # type: ignore[no-untyped-def]
    target,
    source,
    target_flips,
    source_flips,
    lam,
    scale,
    shift,
    out,
    width,
    length,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < length
    weight = tl.load(lam + image)
    channel_scale = _of_channel(scale, offsets)
    t = _pixels(target, target_flips, image, offsets, width, length, mask)
    s = _pixels(source, source_flips, image, offsets, width, length, mask)
    mixed = weight * channel_scale * t + (1 - weight) * channel_scale * s
    mixed += _of_channel(shift, offsets)
    tl.store(out + image * length + offsets, mixed.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(  # type: ignore[no-untyped-def]
    crops, flips, scale, shift, out, width, length, BLOCK: tl.constexpr
):
    image = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < length
    pixels = _pixels(crops, flips, image, offsets, width, length, mask)
    pixels = _of_channel(scale, offsets) * pixels + _of_channel(shift, offsets)
    tl.store(out + image * length + offsets, pixels.to(out.dtype.element_ty), mask=mask)


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
    """Mirror, normalise and mix pairs of crops, as `xmix_data.backends.mixing.mix` does.

    All tensors are contiguous and on one device.
    """
    return _launch(_mix, (target, source, target_flips, source_flips, lam, scale, shift), dtype)


def normalise(
    crops: torch.Tensor,
    flips: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Mirror and normalise crops, as `xmix_data.backends.mixing.normalise` does.

    All tensors are contiguous and on one device. For ``torch.uint8`` give scale 1 and shift 0.
    """
    return _launch(_normalise, (crops, flips, scale, shift), dtype)


def _launch(kernel: Any, tensors: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
    crops = tensors[0]
    count, height, width, _ = crops.shape
    out = torch.empty(crops.shape, dtype=dtype, device=crops.device)
    length = 3 * height * width
    if count:
        kernel[(count, triton.cdiv(length, _BLOCK))](*tensors, out, width, length, BLOCK=_BLOCK)
    return out.permute(0, 3, 1, 2)
