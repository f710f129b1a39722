"""The host kernels and the device stage against Pillow and against each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Betons
from PIL import Image

from xmix_data import CenterCrop, ImageLoader, RandomCrop, XMixLoader, decode, mixing


@pytest.mark.parametrize("seed", range(30))
def test_resizing_is_pillows_bit_for_bit(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 120, 2)
    out_h, out_w = random.integers(1, 90, 2)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    box_h, box_w = random.integers(1, height + 1), random.integers(1, width + 1)
    top, left = random.integers(0, height - box_h + 1), random.integers(0, width - box_w + 1)

    out = np.empty((out_h, out_w * 3), np.uint8)
    rows = np.empty(height * out_w * 3, np.uint8)
    box = (0.0, 0.0, float(box_h), float(box_w))
    pixels = image.reshape(-1)[(top * width + left) * 3 :]
    decode._resample(pixels, width * 3, (int(box_h), int(box_w)), box, rows, out)

    expected = Image.fromarray(image).crop((left, top, left + box_w, top + box_h))
    expected = expected.resize((int(out_w), int(box_h)), Image.Resampling.BILINEAR)
    expected = expected.resize((int(out_w), int(out_h)), Image.Resampling.BILINEAR)
    assert np.array_equal(out.reshape(out_h, out_w, 3), np.asarray(expected))


def test_a_damaged_header_spoils_no_other_image(betons: Betons, tmp_path: Path) -> None:
    """One thread, one stripe: what comes after a damaged image is still decoded."""
    data = bytearray(betons.target_jpg.path.read_bytes())
    random = np.random.default_rng(0)
    damaged = list(range(0, 27, 2))
    for index in damaged:
        start = int(betons.target_jpg.pointers[index])
        for place in random.integers(2, 160, 40):
            data[start + place] = random.integers(256)
    path = tmp_path / "damaged.beton"
    path.write_bytes(data)
    options: dict[str, Any] = {"batch_size": 27, "crop": CenterCrop(40), "dtype": torch.uint8}
    loader = ImageLoader(path, num_workers=1, **options)
    backend = loader._backend
    job = backend.open(loader._plan.epoch(0).rows(0, 27))
    backend.work(job, backend.workspace(), 0, 27)
    assert np.flatnonzero(job.sides[0].status).tolist() == damaged
    expected, _ = next(iter(ImageLoader(betons.target_jpg, backend="torch", **options)))
    good = list(range(1, 27, 2))
    assert torch.equal(job.outs[0].permute(0, 3, 1, 2)[good], expected[good])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_device_stage_agrees_with_the_reference(betons: Betons, dtype: torch.dtype) -> None:
    """`mixing` is what a GPU runs; plain operations give the same on any device."""
    options: dict[str, Any] = {"batch_size": 12, "crop": RandomCrop(32), "backend": "torch"}
    domains = betons.target_raw, betons.source_raw, betons.pairing
    scale, shift = (
        torch.from_numpy(x).float()
        for x in mixing.scale_and_shift(mixing.IMAGENET_MEAN, mixing.IMAGENET_STD)
    )
    straight = {**options, "flip": False, "mix": False, "dtype": torch.uint8}
    crops = next(iter(XMixLoader(*domains, **straight)))
    expected = next(iter(XMixLoader(*domains, **options)))
    loader = XMixLoader(*domains, **options)
    rows = loader._plan.epoch(0).rows(0, 12)
    assert rows.source_crops is not None
    target_flips, source_flips = (
        torch.from_numpy(c.flips) for c in (rows.target_crops, rows.source_crops)
    )
    target, source = (x.permute(0, 2, 3, 1) for x in (crops.target_images, crops.source_images))
    lam = torch.from_numpy(rows.lam)
    mixed = mixing.mix(target, source, target_flips, source_flips, lam, scale, shift, dtype)
    assert mixed.dtype == dtype
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    step = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    error = (mixed.float() - expected.images).abs()
    assert (error <= step * expected.images.abs() + 1e-6).all()

    alone = mixing.normalise(target, target_flips, scale, shift, dtype)
    unmixed = next(iter(XMixLoader(*domains, **{**options, "mix": False})))
    error = (alone.float() - unmixed.target_images).abs()
    assert (error <= step * unmixed.target_images.abs() + 1e-6).all()
    as_decoded = mixing.normalise(target, target_flips, scale, shift, torch.uint8)
    assert torch.equal(as_decoded[~target_flips], crops.target_images[~target_flips])


def test_kernels_run_where_no_cache_can_be_written(betons: Betons, tmp_path: Path) -> None:
    """One line says that they are compiled anew; the batches are right all the same."""
    code = (
        "import logging, sys; logging.basicConfig(level='WARNING', format='%(message)s')\n"
        "import numba.core.caching as caching\n"
        "from xmix_data import ImageLoader, CenterCrop\n"
        f"x, y = next(iter(ImageLoader({str(betons.target_raw.path)!r}, batch_size=4,\n"
        "                                crop=CenterCrop(8))))\n"
        "print(x.double().sum().item())\n"
    )
    package = tmp_path / "readonly"
    source = Path(decode.__file__).parent
    package.mkdir()
    subprocess.run(["cp", "-r", str(source), str(package / "xmix_data")], check=True)
    for cached in package.rglob("__pycache__"):
        subprocess.run(["rm", "-rf", str(cached)], check=True)
        cached.write_text("a file where numba wants a folder")
    environment = {**os.environ, "PYTHONPATH": str(package), "HOME": "/proc/nowhere",
                   "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": "/proc/nowhere"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled anew in every process") == 1
    images, _ = next(iter(ImageLoader(betons.target_raw, batch_size=4, crop=CenterCrop(8))))
    assert float(done.stdout) == pytest.approx(images.double().sum().item())
