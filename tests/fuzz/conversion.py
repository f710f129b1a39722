"""What a conversion is given: image files of every format and mode, sound and damaged."""

from __future__ import annotations

import io
import itertools
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from fuzz.findings import Finding, watched
from fuzz.mutations import Form, jpeg_form, mutated
from fuzz.sound import picture
from xmix_data.beton.encoding import StoredImage, encode_image
from xmix_data.beton.layout import RAW
from xmix_data.beton.pixels import silent_pillow
from xmix_data.errors import ImageError
from xmix_data.jpeg import jpeg_problem

MOST_PIXELS = 1 << 20
"""What Pillow is told to take for a bomb: otherwise a changed size is a gigabyte."""
DEEP = ("I", "F", "I;16", "I;16B", "I;16L")
"""Pillow's modes of more than 8 bits, for which the library has rules of its own."""

FORMATS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "JPEG": [
        *(("RGB", {"subsampling": n, "progressive": n == 1}) for n in range(3)),
        ("RGB", {"restart_marker_rows": 1}),
        ("L", {}),
        ("CMYK", {}),
    ],
    "MPO": [("RGB", {})],
    "PNG": [(mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")],
    "WEBP": [("RGB", {"lossless": True}), ("RGBA", {"lossless": True}), ("RGB", {"quality": 60})],
    "TIFF": [
        *itertools.product(
            ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
            ({}, {"compression": "tiff_lzw"}),
        ),
        ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "jpeg"}),
        ("L", {"compression": "packbits"}),
        ("1", {"compression": "group4"}),
    ],
    "GIF": [("P", {}), ("L", {})],
    "BMP": [("RGB", {}), ("L", {}), ("P", {})],
    "PPM": [("RGB", {}), ("L", {}), ("I;16", {})],
    "AVIF": [("RGB", {"quality": 60}), ("RGBA", {"quality": 60})] if features.check("avif") else [],
    "JPEG2000": [("RGB", {}), ("L", {})] if features.check("jpg_2000") else [],
}
"""Modes and options that each format is written with."""


@cache
def files() -> list[tuple[str, bytes, tuple[int, int]]]:
    """Sound files: format, bytes, and where in them EXIF stands; the same in every process."""
    made = []
    for seed, (kind, mode, options) in enumerate(
        (kind, mode, options) for kind, ways in FORMATS.items() for mode, options in ways
    ):
        for turn in (None, 1 + seed % 8):
            image, file = in_mode(mode, seed), io.BytesIO()
            settings = dict(options)
            block = b""
            if turn is not None:
                block = exif_block(turn, ">" if seed % 2 else "<")
                if kind in ("JPEG", "MPO", "PNG", "WEBP", "AVIF"):
                    settings["exif"] = block
                elif kind == "TIFF":
                    settings["tiffinfo"] = {0x0112: turn}
                else:
                    continue
            image.save(file, kind, **settings)
            data = file.getvalue()
            at = data.find(block[6:]) if block else -1
            made.append((kind, data, (at, at + len(block) - 6) if at >= 0 else (0, 0)))
    return made


def in_mode(mode: str, seed: int) -> Image.Image:
    """A picture in a mode of Pillow's."""
    pixels = picture(20 + 7 * seed % 40, 18 + 11 * seed % 50, seed)
    image = Image.fromarray(pixels)
    if mode in ("I", "I;16"):
        values = pixels[..., 0].astype(np.int32) * (257, 16, 1, 64)[seed % 4]
        return Image.fromarray(values if mode == "I" else values.astype(np.uint16))
    if mode == "F":
        return Image.fromarray(pixels[..., 0].astype(np.float32))
    if mode in ("LAB",):
        return Image.frombytes("LAB", image.size, image.tobytes())
    return image.convert("RGBA").convert(mode) if mode == "LA" else image.convert(mode)


def exif_block(turn: int, order: str) -> bytes:
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112], exif[0x010F], exif[0x011A] = turn, "maker" * 9, 72.0
    exif.get_ifd(0x8769).update({0x9003: "2020:01:01 00:00:00", 0x829A: 0.25})
    return exif.tobytes()


def of_conversion(random: Random, folder: Path, change: bool) -> str:
    """An image file on its way into a beton: an `ImageError`, or the pixels that Pillow shows."""
    kind, data, exif = random.choice(files())
    if change:
        other = random.choice(files())[1]
        if exif != (0, 0) and random.random() < 0.5:  # in the block, which says nothing of pixels
            start, stop = exif
            block = mutated(random, data[start:stop], exif_form(data[start:stop]), other)
            data = data[:start] + block[: stop - start].ljust(stop - start, b"\0") + data[stop:]
        else:
            form = jpeg_form(data) if kind in ("JPEG", "MPO") else Form()
            data = mutated(random, data, form, other)
    encoding, crop = random.choice(("raw", "raw", "jpg", "keep")), random.choice(("none", "square"))
    size = random.choice((None, None, 1, 8, 30, 200))
    options = {"encoding": encoding, "image_size": size, "crop": crop, "quality": 90}
    with mock.patch.object(Image, "MAX_IMAGE_PIXELS", MOST_PIXELS):
        try:
            with watched(), silent_pillow():
                stored = encode_image(data, **options)
        except (Finding, AssertionError):
            raise
        except ImageError as error:
            if len(str(error).splitlines()) != 1:
                raise Finding(f"an error of several lines: {str(error)[:300]!r}") from error
            if not change and "no fixed range" not in str(error):
                raise Finding(f"a sound {kind} is refused: {error}") from error
            return "right" if not change else "error"
        check(stored, data, options)
    return "right"


def exif_form(block: bytes) -> Form:
    """Every two bytes may be a number."""
    return Form([(at, 2) for at in range(0, len(block) - 2, 2)], [], "little")


def check(stored: StoredImage, data: bytes, options: dict[str, Any]) -> None:
    """That a stored image is whole, and that its pixels are those that Pillow shows."""
    height, width, size = stored.height, stored.width, options["image_size"]
    if options["crop"] == "square" and height != width:
        raise Finding(f"stored as {width}x{height}, no square")
    if size is not None and min(height, width) != size:
        raise Finding(f"stored as {width}x{height}, not with an edge of {size}")
    if stored.kept != (stored.data == data) or (stored.kept and options["encoding"] != "keep"):
        raise Finding(f"kept is {stored.kept}")
    if stored.mode != RAW:
        problem = jpeg_problem(stored.data, height, width)
        if problem:
            raise Finding(f"what is stored does not decode: {problem}")
        return
    pixels = np.frombuffer(stored.data, np.uint8).reshape(height, width, 3)
    if size is None and options["crop"] == "none":
        shown = by_pillow(data)
        if shown is not None and not any(np.array_equal(pixels, turned) for turned in turns(shown)):
            raise Finding("other pixels than Pillow shows")


def by_pillow(data: bytes) -> npt.NDArray[np.uint8] | None:
    """The pixels as they are stored in the file; ``None`` where the library has another rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
        return None if image.mode in DEEP else np.asarray(image.convert("RGB"))


def turns(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """A picture in all eight orientations: of damaged EXIF Pillow and the library may differ."""
    both = pixels, pixels.swapaxes(0, 1)
    return [one[::down, ::across] for one in both for down in (1, -1) for across in (1, -1)]
