"""The host kernels and the device stage against Pillow and against each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import Betons, reversed_pairing
from PIL import Image

from xmix_data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Beton,
    BetonError,
    CenterCrop,
    ImageLoader,
    Pairing,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
    decode,
    write_beton,
)
from xmix_data.backends import mixing
from xmix_data.beton import manifest_path
from xmix_data.decode import dct_fractions, kernels
from xmix_data.jpeg import DAMAGED, OK
from xmix_data.normalise import scale_and_shift

HALVES = [torch.float16, torch.bfloat16]
UNTOUCHED: dict[str, Any] = {
    "image_size": None,
    "crop": "none",
    "num_workers": 0,
    "progress": False,
}
"""Images are stored in their own sizes."""


class Sized:
    """Images of given sizes, noise or smooth, in two classes in turn."""

    def __init__(self, sizes: Sequence[tuple[int, int]], prefix: str, smooth: bool = False) -> None:
        self.classes = [f"{prefix}0", f"{prefix}1"]
        self.targets = [index % 2 for index in range(len(sizes))]
        random = np.random.default_rng(len(sizes))
        self._pixels = []
        for height, width in sizes:
            shape = (5, 5, 3) if smooth else (height, width, 3)
            image = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
            if smooth:
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            self._pixels.append(np.asarray(image))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._pixels[index], self.targets[index]


class Noise(NamedTuple):
    """The same noise stored in both ways, and a pairing of it with itself."""

    raw: Beton
    jpg: Beton
    pairing: Pairing


NOISE = 9
"""Images in the betons of noise."""


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Noise:
    folder = tmp_path_factory.mktemp("noise")
    sizes = np.random.default_rng(0).integers(72, 120, (NOISE, 2)).tolist()
    raw, jpg = (
        write_beton(Sized(sizes, "n"), folder / f"{way}.beton", encoding=way, **UNTOUCHED)
        for way in ("raw", "jpg")
    )
    return Noise(raw, jpg, reversed_pairing(raw, raw))


def shapes() -> list[tuple[int, int]]:
    """Crops of every width from 1 to 70, and every height from 1 to 40."""
    return [(width * 7 % 40 + 1, width) for width in range(1, 71)]


def images_of(loader: ImageLoader | XMixLoader) -> torch.Tensor:
    """The first batch's images."""
    return next(iter(loader))[0]


def equal_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether 16-bit floats are the same, with the signs of their zeros."""
    return one.dtype == other.dtype and torch.equal(one.view(torch.int16), other.view(torch.int16))


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
    kernels._resample(pixels, width * 3, (int(box_h), int(box_w)), box, rows, out)

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
    expected, _ = next(iter(ImageLoader(betons.target_jpg, backend="reference", **options)))
    good = list(range(1, 27, 2))
    assert torch.equal(job.outs[0].permute(0, 3, 1, 2)[good], expected[good])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_device_stage_agrees_with_the_reference(betons: Betons, dtype: torch.dtype) -> None:
    """`mixing` is what a GPU runs; plain operations give the same on any device."""
    options: dict[str, Any] = {"batch_size": 12, "crop": RandomCrop(32), "backend": "reference"}
    domains = betons.target_raw, betons.source_raw, betons.pairing
    scale, shift = (
        torch.from_numpy(x).float() for x in scale_and_shift(IMAGENET_MEAN, IMAGENET_STD)
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
    as_it_is = torch.ones(3), torch.zeros(3)
    as_decoded = mixing.normalise(target, target_flips, *as_it_is, torch.uint8)
    assert torch.equal(as_decoded[~target_flips], crops.target_images[~target_flips])


@pytest.mark.slow
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
    source = Path(decode.__file__).parents[1]
    package.mkdir()
    subprocess.run(["cp", "-r", str(source), str(package / "xmix_data")], check=True)
    for cached in package.rglob("__pycache__"):
        subprocess.run(["rm", "-rf", str(cached)], check=True)
        cached.write_text("a file where numba wants a folder")
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "HOME": "/proc/nowhere",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": "/proc/nowhere",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled anew in every process") == 1
    images, _ = next(iter(ImageLoader(betons.target_raw, batch_size=4, crop=CenterCrop(8))))
    assert float(done.stdout) == pytest.approx(images.double().sum().item())


# Every shape of a crop


@pytest.mark.parametrize("encoding", ["raw", "jpg"])
@pytest.mark.parametrize("flip", [False, True])
def test_crops_of_every_row_length_are_pillows(noise: Noise, encoding: str, flip: bool) -> None:
    """Rows end within a vector, within a shuffle of 16 pixels, within a strip of 16 rows."""
    beton = getattr(noise, encoding)
    for shape in shapes():
        options: dict[str, Any] = {
            "batch_size": NOISE,
            "crop": RandomCrop(shape),
            "flip": flip,
            "seed": shape[1],
            "dtype": torch.uint8,
            "num_workers": 1,
        }
        ours, reference = (
            images_of(ImageLoader(beton, backend=backend, **options))
            for backend in ("host", "reference")
        )
        assert torch.equal(ours, reference), shape


@pytest.mark.parametrize("flip", [False, True])
def test_floats_of_every_row_length_are_those_of_the_pixels(noise: Noise, flip: bool) -> None:
    """float32 within its rounding; the 16-bit floats are the rounded float32 bit for bit."""
    for shape in shapes():
        beton = noise.jpg if shape[1] % 3 == 0 else noise.raw
        options: dict[str, Any] = {
            "batch_size": NOISE,
            "crop": RandomCrop(shape),
            "flip": flip,
            "seed": shape[1],
            "num_workers": 1,
        }
        exact = images_of(ImageLoader(beton, **options))
        reference = images_of(ImageLoader(beton, backend="reference", **options))
        assert (exact - reference).abs().max() < 1e-6, shape
        for dtype in HALVES:
            rounded = images_of(ImageLoader(beton, dtype=dtype, **options))
            assert equal_bits(rounded, exact.to(dtype)), (shape, dtype)


@pytest.mark.parametrize("first", range(3))
def test_mixtures_of_every_row_length_are_those_of_the_pixels(noise: Noise, first: int) -> None:
    target, source = [(noise.raw, noise.jpg), (noise.jpg, noise.raw), (noise.jpg, noise.jpg)][first]
    for shape in shapes()[first::3]:
        options: dict[str, Any] = {
            "batch_size": NOISE,
            "crop": RandomCrop(shape),
            "seed": shape[1],
            "num_workers": 1,
        }
        domains = target, source, noise.pairing
        exact = images_of(XMixLoader(*domains, **options))
        reference = images_of(XMixLoader(*domains, backend="reference", **options))
        assert (exact - reference).abs().max() < 1e-6, shape
        for dtype in HALVES:
            rounded = images_of(XMixLoader(*domains, dtype=dtype, **options))
            assert equal_bits(rounded, exact.to(dtype)), (shape, dtype)


@pytest.mark.parametrize(
    ("dtype", "mix"),
    [(torch.uint8, False)]
    + [(dtype, mix) for dtype in (torch.float32, *HALVES) for mix in (False, True)],
)
@pytest.mark.parametrize("shape", [(16, 32), (17, 11), (33, 16), (5, 1)])
def test_a_stripe_is_written_where_it_belongs_and_nowhere_else(
    noise: Noise, dtype: torch.dtype, mix: bool, shape: tuple[int, int]
) -> None:
    """At addresses of every alignment that an element may have."""
    options: dict[str, Any] = {
        "batch_size": NOISE,
        "crop": RandomCrop(shape),
        "dtype": dtype,
        "num_workers": 1,
    }
    loader = XMixLoader(noise.jpg, noise.raw, noise.pairing, mix=mix, **options)
    backend, (start, stop) = loader._backend, (2, 7)
    rows = loader._plan.epoch(0).rows(0, NOISE)
    expected = next(iter(loader))
    workspace = backend.workspace()
    for offset in range(0, 64, dtype.itemsize):
        job = backend.open(rows)
        size = job.outs[0].nbytes
        memory = [torch.full((size + 256,), 0xA5, dtype=torch.uint8) for _ in job.outs]
        starts = [-place.data_ptr() % 64 + 64 + offset for place in memory]
        job.outs = [
            place[first : first + size].view(dtype).view(out.shape)
            for place, first, out in zip(memory, starts, job.outs, strict=True)
        ]
        backend.work(job, workspace, start, stop)
        for place, first, out, images in zip(memory, starts, job.outs, expected, strict=False):
            made = slice(first + start * size // NOISE, first + stop * size // NOISE)
            assert torch.equal(out[start:stop].permute(0, 3, 1, 2), images[start:stop])
            assert (place[: made.start] == 0xA5).all()
            assert (place[made.stop :] == 0xA5).all()


# Rounding


def written(line: np.ndarray, kind: int) -> np.ndarray:
    """What the kernels write for a row of float32, as bits."""
    bits, out = np.empty(len(line), np.uint16), np.zeros(len(line) + 32, np.uint16)
    kernels._write(line, bits, kind, out.ctypes.data)
    assert not out[len(line) :].any()
    return out[: len(line)]


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_to_the_nearest_and_to_even(dtype: torch.dtype) -> None:
    """Every 16-bit float, every middle between two, and the float32 beside each of them."""
    kind = {torch.float16: decode.FLOAT16, torch.bfloat16: decode.BFLOAT16}[dtype]
    all_bits = torch.arange(1 << 15, dtype=torch.int16)
    floats = all_bits.view(dtype).double()
    floats = floats[floats.isfinite()].numpy()
    exact = np.concatenate([floats, (floats[1:] + floats[:-1]) / 2, [65519.99, 65520, 65536, 3e38]])
    line = exact.astype(np.float32)
    assert np.array_equal(line[:-4].astype(np.float64), exact[:-4])
    line = np.concatenate(
        [line, np.nextafter(line, np.float32(0)), np.nextafter(line, np.float32(np.inf))]
    )
    line = np.concatenate([line, -line, [np.float32(np.finfo(np.float32).max)]])
    line = line[np.isfinite(line)]
    rounded = torch.from_numpy(line).to(dtype)
    assert (rounded.isinf()).any()
    assert ((rounded != 0) & (rounded.abs() < torch.finfo(dtype).tiny)).any()
    expected = rounded.view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(written(line, kind), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_of_any_finite_float(dtype: torch.dtype) -> None:
    kind = {torch.float16: decode.FLOAT16, torch.bfloat16: decode.BFLOAT16}[dtype]
    bits = np.random.default_rng(0).integers(0, 1 << 32, 500_000, dtype=np.uint32)
    line = bits.view(np.float32)
    line = line[np.isfinite(line)]
    expected = torch.from_numpy(line).to(dtype).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(written(line, kind), expected)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0, 0.5, 1.0), (1e-5, 1e-5, 1e-5)),  # beyond what a float16 holds, on both sides
        ((0.0, 0.5, 1.0), (1.0, 1.0, 1.0)),  # zeros and negatives
        ((128 / 255, 127.99 / 255, 20.003 / 255), (1.0, 1.0, 1.0)),  # close to zero: denormal
        ((-1e4, -65000.0, -1e30), (1.0, 1e-3, 1.0)),
        ((0.5, 0.5, 0.5), (1e-30, 1e-36, 1e-12)),
    ],
)
@pytest.mark.parametrize("mix", [False, True])
def test_extreme_normalisation_is_rounded_alike(
    noise: Noise, mean: Any, std: Any, mix: bool
) -> None:
    options: dict[str, Any] = {
        "batch_size": NOISE,
        "crop": RandomCrop((60, 70)),
        "mean": mean,
        "std": std,
        "mix": mix,
    }
    domains = noise.raw, noise.raw, noise.pairing
    exact = images_of(XMixLoader(*domains, **options))
    assert exact.isfinite().all()
    reference = images_of(XMixLoader(*domains, backend="reference", **options))
    largest = reference.abs().amax((0, 2, 3), keepdim=True) + max(abs(x) for x in mean)
    assert ((exact - reference).abs() <= 1e-6 * largest).all()
    for dtype in HALVES:
        rounded = images_of(XMixLoader(*domains, dtype=dtype, **options))
        assert equal_bits(rounded, exact.to(dtype))


# Crops that are resized

SIZES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (2, 3),
    (5, 300),
    (300, 5),
    (8, 8),
    (17, 16),
    (640, 480),
    (333, 777),
    (900, 901),
    (511, 512),
    (16, 1000),
    (250, 250),
]


@pytest.mark.parametrize("encoding", ["raw", "jpg"])
def test_resized_crops_of_any_size_are_pillows(tmp_path: Path, encoding: str) -> None:
    """Tiny images are enlarged; windows of large ones are decoded at every fraction."""
    beton = write_beton(Sized(SIZES * 2, "n"), tmp_path / "x.beton", encoding=encoding, **UNTOUCHED)
    seen = set()
    for seed, size in enumerate([1, 2, 7, (3, 40), (33, 5), 20, 64, (70, 16), (200, 130)]):
        for ratio in ((3 / 4, 4 / 3), (0.1, 10.0)):
            options: dict[str, Any] = {
                "batch_size": len(beton),
                "crop": RandomResizedCrop(size, ratio=ratio),
                "flip": True,
                "seed": seed,
                "dtype": torch.uint8,
                "num_workers": 1,
            }
            ours, reference = (
                ImageLoader(beton, backend=backend, **options) for backend in ("host", "reference")
            )
            boxes = ours._plan.epoch(0).rows(0, len(beton)).target_crops.boxes
            seen.update(dct_fractions(boxes, ours._plan.crop.shape).tolist())
            assert torch.equal(images_of(ours), images_of(reference)), (size, ratio)
    assert seen == {1, 2, 4, 8}


def test_fractions_leave_twice_the_output() -> None:
    for shape in ((1, 1), (10, 10), (7, 30), (224, 224)):
        height, width = shape
        sides = [
            (factor * 2 * height + up, factor * 2 * width + across)
            for factor in (1, 2, 3, 4, 7, 8, 16)
            for up in (-1, 0, 5)
            for across in (-1, 0, 9)
        ]
        boxes = np.array([(3, 5, *side) for side in sides], np.int32)
        fractions = dct_fractions(boxes, shape)
        for (box_h, box_w), fraction in zip(sides, fractions.tolist(), strict=True):
            fits = [f for f in (2, 4, 8) if box_h >= f * 2 * height and box_w >= f * 2 * width]
            assert fraction == max(fits, default=1)
    assert len(dct_fractions(np.zeros((0, 4), np.int32), (5, 5))) == 0


def differences(one: Beton, other: Beton, size: int, seed: int) -> np.ndarray:
    """Mean grey levels between two betons' resized crops, where fractions are used."""
    options: dict[str, Any] = {
        "batch_size": len(one),
        "crop": RandomResizedCrop(size),
        "dtype": torch.uint8,
        "seed": seed,
    }
    loader = ImageLoader(one, **options)
    boxes = loader._plan.epoch(0).rows(0, len(one)).target_crops.boxes
    apart = images_of(loader).float() - images_of(ImageLoader(other, **options)).float()
    used = dct_fractions(boxes, (size, size)) > 1
    assert used.any()
    return apart.abs().mean((1, 2, 3)).numpy()[used]


def test_fractions_of_smooth_pictures_are_the_resized_pictures(tmp_path: Path) -> None:
    """No shift, no loss: what is left is JPEG's and rounding's."""
    images = Sized([(600, 500), (333, 412), (801, 640), (512, 512)] * 3, "n", smooth=True)
    raw, jpg = (
        write_beton(images, tmp_path / f"{way}.beton", encoding=way, quality=98, **UNTOUCHED)
        for way in ("raw", "jpg")
    )
    for size in (8, 32, 64):
        for seed in range(3):
            assert differences(jpg, raw, size, seed).max() < 1.0


def test_fractions_of_photographs_are_close_to_the_resized_photographs(
    photographs: Path, tmp_path: Path
) -> None:
    """The raw beton holds what the whole JPEGs decode to: only the fractions differ."""
    raw, jpg = (
        write_beton(photographs, tmp_path / f"{way}.beton", encoding=way, **UNTOUCHED)
        for way in ("raw", "keep")
    )
    for seed in range(2):
        assert differences(jpg, raw, 64, seed).max() <= 1.5
        assert differences(jpg, raw, 16, seed).mean() <= 1.5


# Damage


def damaged(beton: Beton, indices: Sequence[int], path: Path) -> Path:
    """A copy whose images of these indices end in zeros."""
    shutil.copy(manifest_path(beton.path), manifest_path(path))
    data = bytearray(beton.path.read_bytes())
    for index in indices:
        stop = int(beton.pointers[index]) + int(beton.sizes[index])
        data[stop - 60 : stop] = bytes(60)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("mix", [False, True])
def test_a_damaged_partner_spoils_no_other_pair(noise: Noise, tmp_path: Path, mix: bool) -> None:
    """Truncated below the window; one thread, one stripe, images left in the middle."""
    path = damaged(noise.jpg, [0, 1, 4], tmp_path / "damaged.beton")
    options: dict[str, Any] = {"batch_size": NOISE, "crop": RandomCrop((17, 20)), "mix": mix}
    for domains in ((path, noise.jpg), (noise.jpg, path), (path, path)):
        loader = XMixLoader(*domains, noise.pairing, num_workers=1, **options)
        rows = loader._plan.epoch(0).rows(0, NOISE)
        assert rows.source is not None
        job = loader._backend.open(rows)
        loader._backend.work(job, loader._backend.workspace(), 0, NOISE)
        good = torch.ones(NOISE, dtype=torch.bool)
        for beton, side, indices in zip(
            domains, job.sides, (rows.target, rows.source), strict=True
        ):
            bad = np.isin(indices, [0, 1, 4]) & (beton == path)
            good &= ~torch.from_numpy(bad)
            assert (side.status[bad] == DAMAGED).all()
            assert (side.status[~bad] == OK).all()
        statuses = np.maximum(*(side.status for side in job.sides))
        assert np.array_equal(statuses == OK, good.numpy())
        expected = next(iter(XMixLoader(noise.jpg, noise.jpg, noise.pairing, **options)))
        for out, images in zip(job.outs, expected, strict=False):
            assert torch.equal(out.permute(0, 3, 1, 2)[good], images[good])


def test_an_image_cut_off_below_the_crop_is_an_error(noise: Noise, tmp_path: Path) -> None:
    path = damaged(noise.jpg, [5], tmp_path / "damaged.beton")
    loader = ImageLoader(path, batch_size=1, crop=CenterCrop(1), num_workers=1)
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    with pytest.raises(BetonError, match=r"image 5 .*cannot be decoded without a warning"):
        next(iterator)


# Where the time went


@pytest.mark.parametrize("encoding", ["raw", "jpg"])
@pytest.mark.parametrize("crop", [RandomCrop(30), RandomResizedCrop(30)], ids=repr)
def test_stats_of_a_pass(noise: Noise, backend: str, encoding: str, crop: Any) -> None:
    beton = getattr(noise, encoding)
    loader = ImageLoader(beton, batch_size=4, crop=crop, backend=backend, num_workers=2)
    assert set(loader.stats()) == {
        "batches",
        "samples",
        "consumer_waited_s",
        "loader_waited_s",
        "decode_s",
        "copy_s",
        "bytes_read",
        "disk_waits",
        "replaced",
    }
    assert not any(loader.stats().values())
    for passes in (1, 2):
        list(loader)
        stats = loader.stats()
        assert (stats["batches"], stats["samples"]) == (3 * passes, NOISE * passes)
        assert stats["bytes_read"] == passes * int(beton.sizes.sum())
        assert (stats["decode_s"] > 0) == (encoding == "jpg")
        assert stats["copy_s"] > 0
        assert stats["consumer_waited_s"] > 0
        assert stats["loader_waited_s"] >= 0
        assert stats["disk_waits"] >= 0
        assert stats == loader.stats()


@pytest.mark.parametrize("mix", [False, True])
def test_stats_count_the_bytes_of_both_domains(noise: Noise, backend: str, mix: bool) -> None:
    loader = XMixLoader(
        noise.jpg,
        noise.raw,
        noise.pairing,
        batch_size=4,
        crop=RandomCrop(30),
        mix=mix,
        backend=backend,
    )
    list(loader)
    rows = loader._plan.epoch(0).rows(0, 8)  # the last image fills no batch
    stored = noise.jpg.sizes[rows.target].sum() + noise.raw.sizes[rows.source].sum()
    loader.close()
    stats = loader.stats()
    more = 0
    for epoch in (1, 2):  # three batches, at most, have been prefetched
        ahead = loader._plan.epoch(epoch).rows(0, 8)
        more += noise.jpg.sizes[ahead.target].sum() + noise.raw.sizes[ahead.source].sum()
    if backend == "reference":
        assert stats["bytes_read"] == int(stored)
    assert int(stored) <= stats["bytes_read"] <= int(stored + more)
    assert stats["decode_s"] > 0


def test_a_thread_is_decoding_or_copying_or_waiting(noise: Noise) -> None:
    """One thread's times are parts of the time that went by, and none is counted twice."""
    loader = ImageLoader(noise.jpg, batch_size=3, crop=RandomCrop(70), num_workers=1, prefetch=1)
    pause, started = 0.05, time.perf_counter()
    for _ in loader:
        time.sleep(pause)
    passed = time.perf_counter() - started
    stats = loader.stats()
    assert 0 < stats["loader_waited_s"] < passed
    assert stats["decode_s"] + stats["copy_s"] + stats["loader_waited_s"] <= passed
    assert stats["consumer_waited_s"] <= passed - 3 * pause
