"""The device stage: Triton's kernel, run by its interpreter, against plain torch operations."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from xmix_data import IMAGENET_MEAN, IMAGENET_STD
from xmix_data.backends import mixing
from xmix_data.normalise import scale_and_shift

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1), (3, 5, 7), (2, 33, 31), (5, 24, 40), (0, 4, 4)]


def case(shape: tuple[int, int, int], seed: int) -> dict[str, Any]:
    """Random crops (B, H, W, 3) and what happens to them."""
    random = torch.Generator().manual_seed(seed)
    target, source = torch.randint(0, 256, (2, *shape, 3), generator=random, dtype=torch.uint8)
    flips = torch.rand((2, shape[0]), generator=random) < 0.5
    lam = torch.rand(shape[0], generator=random)
    scale, shift = (
        torch.from_numpy(x).float() for x in scale_and_shift(IMAGENET_MEAN, IMAGENET_STD)
    )
    return {"crops": (target, source), "flips": flips, "lam": lam, "scaling": (scale, shift)}


def close(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal to a rounding step of the type, and laid out the same."""
    step = {torch.float32: 0.0, torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.uint8: 0}
    error = (ours.double() - expected.double()).abs()
    return (
        ours.dtype == expected.dtype
        and ours.stride() == expected.stride()
        and bool((error <= step[ours.dtype] * expected.double().abs() + 1e-6).all())
    )


def compare() -> None:
    """Every shape and type; runs in the process that Triton's interpreter is switched on in."""
    from xmix_data.backends import mixing_triton

    for seed, shape in enumerate(SHAPES):
        made = case(shape, seed)
        target, source = made["crops"]
        for dtype in DTYPES:
            both = (target, source, *made["flips"], made["lam"], *made["scaling"], dtype)
            assert close(mixing_triton.mix(*both), mixing.mix(*both)), (shape, dtype)
            one = (source, made["flips"][1].float(), *made["scaling"], dtype)
            assert close(mixing_triton.normalise(*one), mixing.normalise(*one)), (shape, dtype)
        as_decoded = (target, made["flips"][0], torch.ones(3), torch.zeros(3), torch.uint8)
        ours = mixing_triton.normalise(*as_decoded)
        assert close(ours, mixing.normalise(*as_decoded)), shape
        straight = ~made["flips"][0]
        assert torch.equal(ours[straight], target.permute(0, 3, 1, 2)[straight])


def test_tritons_kernel_makes_what_plain_operations_make() -> None:
    pytest.importorskip("triton", reason="Triton comes with torch on Linux")
    done = subprocess.run(
        [sys.executable, "-c", "import test_mixing; test_mixing.compare(); print('compared')"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "compared\n"


def test_plain_operations_follow_the_formula() -> None:
    """Eq. 4 in float64, image by image."""
    made = case((4, 6, 9), 7)
    (target, source), (scale, shift) = made["crops"], made["scaling"]
    mixed = mixing.mix(target, source, *made["flips"], made["lam"], scale, shift, torch.float32)
    for item in range(4):
        pixels = [
            (crops[item].flip(1) if flips[item] else crops[item]).double()
            for crops, flips in zip((target, source), made["flips"], strict=True)
        ]
        weight = made["lam"][item].double()
        expected = weight * pixels[0] + (1 - weight) * pixels[1]
        expected = (expected / 255 - torch.tensor(IMAGENET_MEAN).double()) / torch.tensor(
            IMAGENET_STD
        ).double()
        assert (mixed[item].permute(1, 2, 0) - expected).abs().max() < 1e-6


def test_where_the_kernel_cannot_run_plain_operations_do(caplog: Any) -> None:
    """There is no driver for Triton on a machine without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("Triton's kernel runs here")
    mixing.device_stage.cache_clear()
    module, reason = mixing.device_stage(torch.device("cpu"))
    assert module is mixing and reason
    assert len(caplog.messages) == 1 and "plain torch operations" in caplog.messages[0]
