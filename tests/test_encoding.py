"""One image as it is stored: every kind of input, every encoding, and damage."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from xmix_data import ImageError
from xmix_data.beton.encoding import StoredImage, encode_image
from xmix_data.beton.layout import JPG, RAW
from xmix_data.jpeg import decode_jpeg, jpeg_problem

Pixels = npt.NDArray[np.uint8]

JPEG_LOSS = 12
"""Grey levels that quality 95 without chroma subsampling may cost the smooth test picture."""


def picture(height: int, width: int) -> Pixels:
    """Smooth, and different in every corner."""
    y, x = np.mgrid[:height, :width]
    down, across = y * 255 // max(height - 1, 1), x * 255 // max(width - 1, 1)
    return np.stack([across, down, (across + down) // 2], -1).astype(np.uint8)


def jpeg(image: Image.Image | Pixels, **options: Any) -> bytes:
    return encoded(image, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def with_warning(pixels: Image.Image | Pixels) -> bytes:
    """A JPEG that Pillow reads and libjpeg calls corrupt: bytes too many before a restart."""
    data = jpeg(pixels, restart_marker_rows=1)
    place = data.index(b"\xff\xd0")
    return data[:place] + bytes(4) + data[place:]


def with_junk_in_the_header(pixels: Pixels) -> bytes:
    """A JPEG with bytes too many where they harm nothing: before a part of the header."""
    data = jpeg(pixels)
    place = data.index(b"\xff\xdb")
    return data[:place] + b"junk" + data[place:]


def encode(image: Any, encoding: str = "raw", **options: Any) -> StoredImage:
    settings = {"image_size": None, "crop": "none", "quality": 90, **options}
    return encode_image(image, encoding=encoding, **settings)


def stored_pixels(stored: StoredImage) -> Pixels:
    if stored.mode == RAW:
        return np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
    return np.asarray(Image.open(io.BytesIO(stored.data)).convert("RGB"))


def raw_pixels(image: Any, **options: Any) -> Pixels:
    stored = encode(image, "raw", **options)
    assert stored.mode == RAW
    return stored_pixels(stored)


def assert_close(one: Pixels, other: Pixels, tolerance: int = JPEG_LOSS) -> None:
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other).max() <= tolerance


def oriented(pixels: Pixels) -> dict[int, Pixels]:
    """What a viewer shows of stored pixels under each EXIF orientation."""
    turned = pixels.swapaxes(0, 1)
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: turned,
        6: turned[:, ::-1],
        7: turned[::-1, ::-1],
        8: turned[::-1],
    }


def orientation_tag(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG that Pillow itself cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


FORMATS_WITH_EXIF: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "MPO": {"quality": 95, "subsampling": 0},
    "PNG": {"lossless": True},
    "WEBP": {"lossless": True},
}
if features.check("avif"):
    FORMATS_WITH_EXIF["AVIF"] = {"quality": 95, "subsampling": "4:4:4"}

# What may come in


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("PPM", {}), ("TIFF", {})],
)
def test_lossless_files_keep_every_pixel(kind: str, options: dict[str, Any]) -> None:
    pixels = picture(21, 33)
    assert np.array_equal(raw_pixels(encoded(pixels, kind, **options)), pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_jpegs_are_read(options: dict[str, Any]) -> None:
    pixels = picture(21, 33)
    assert_close(raw_pixels(jpeg(pixels, **options)), pixels)


def test_lossy_webp_is_read() -> None:
    assert_close(raw_pixels(encoded(picture(40, 60), "WEBP", quality=95)), picture(40, 60), 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_greyscale_becomes_three_equal_channels(kind: str) -> None:
    grey = picture(20, 30)[..., 2]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = raw_pixels(encoded(grey, kind, **options))
    assert_close(found, np.repeat(grey[..., None], 3, -1))
    assert np.array_equal(found[..., 0], found[..., 1])
    assert np.array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped(kind: str) -> None:
    pixels = picture(20, 30)
    alpha = np.full((20, 30, 1), 128, np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(np.concatenate([pixels, alpha], -1), kind, **options)
    assert np.array_equal(raw_pixels(data), pixels)


def test_grey_with_alpha_palette_and_bilevel_images_are_read() -> None:
    grey = Image.fromarray(picture(20, 30)[..., 2])
    with_alpha = Image.merge("LA", [grey, grey])
    assert np.array_equal(
        raw_pixels(encoded(with_alpha, "PNG")), np.stack([np.asarray(grey)] * 3, -1)
    )
    colours = Image.fromarray(picture(20, 30)).quantize(16)
    expected = np.asarray(colours.convert("RGB"))
    assert np.array_equal(raw_pixels(encoded(colours, "PNG")), expected)
    assert np.array_equal(raw_pixels(encoded(colours, "PNG", transparency=3)), expected)
    bilevel = encoded(grey.convert("1", dither=Image.Dither.NONE), "PNG")
    assert set(np.unique(raw_pixels(bilevel)).tolist()) == {0, 255}


def test_sixteen_bit_grey_keeps_the_high_byte() -> None:
    values = (np.arange(20 * 30).reshape(20, 30) * 109).astype(np.uint16)
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1)
    for image in (
        encoded(Image.fromarray(values), "PNG"),
        encoded(Image.fromarray(values), "TIFF"),
    ):
        assert np.array_equal(raw_pixels(image), expected)
    assert np.array_equal(raw_pixels(values), expected)


@pytest.mark.parametrize("bits", [8, 9, 10, 11, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_grey_is_scaled_from_the_bits_that_its_camera_has(bits: int, dtype: str) -> None:
    greatest = (1 << bits) - 1
    values = np.linspace(0, greatest, 20 * 30).round().reshape(20, 30)
    shift = bits + bits % 2 - 8  # cameras have 8, 10, 12, 14 or 16
    expected = np.repeat((values.astype(int) >> shift).astype(np.uint8)[..., None], 3, -1)
    assert expected.max() >= 127
    image = Image.fromarray(values.astype(dtype))
    if dtype == ">u2":
        assert image.mode == "I;16B"
    else:
        assert np.array_equal(raw_pixels(encoded(image, "TIFF")), expected)
    if dtype == "<u2":
        assert np.array_equal(raw_pixels(encoded(image, "PNG")), expected)
        assert np.array_equal(raw_pixels(image), expected)
        assert np.array_equal(raw_pixels(values.astype(np.uint16)), expected)
        assert np.array_equal(raw_pixels(torch.from_numpy(values.astype(np.uint16))), expected)
    assert np.array_equal(raw_pixels(image), expected)


def test_a_negative_of_sixteen_bits_is_turned_into_a_positive() -> None:
    values = (np.arange(20 * 30).reshape(20, 30) * 109).astype(np.uint16)
    data = bytearray(encoded(Image.fromarray(values), "TIFF"))
    place = data.index(struct.pack("<HHIH", 0x0106, 3, 1, 1))
    data[place + 8] = 0  # PhotometricInterpretation: WhiteIsZero
    assert np.array_equal(raw_pixels(bytes(data))[..., 0], 255 - (values >> 8).astype(np.uint8))


def tiff(pixels: npt.NDArray[np.uint16]) -> bytes:
    """A TIFF of 16 bits a channel that Pillow itself cannot write."""
    height, width, channels = pixels.shape
    tags = [(0x100, width), (0x101, height), (0x102, 16), (0x103, 1), (0x106, 2), (0x111, 0)]
    tags += [(0x115, channels), (0x116, height), (0x117, pixels.nbytes)]
    bits_at = 8 + 2 + 12 * len(tags) + 4
    data = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, value in tags:
        if tag == 0x102:
            data += struct.pack("<HHII", tag, 3, channels, bits_at)
        else:
            data += struct.pack("<HHII", tag, 4, 1, value or bits_at + 2 * channels)
    return data + bytes(4) + struct.pack("<H", 16) * channels + pixels.astype("<u2").tobytes()


def ppm(pixels: npt.NDArray[np.uint16], greatest: int) -> bytes:
    height, width, _ = pixels.shape
    return b"P6 %d %d %d\n" % (width, height, greatest) + pixels.astype(">u2").tobytes()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_colours_of_a_stated_range_have_it(bits: int) -> None:
    values = np.linspace(0, (1 << bits) - 1, 4 * 5 * 3).reshape(4, 5, 3).astype(np.uint16)
    expected = (values >> (bits - 8)).astype(np.uint8)
    assert_close(raw_pixels(values), expected, 0)
    if bits > 8:
        assert_close(raw_pixels(ppm(values, (1 << bits) - 1)), expected, 1)
    if 8 < bits < 16:
        assert_close(raw_pixels(ppm(values // 8, (1 << bits) - 1)), expected // 8, 1)  # is dark
    if bits == 16:
        assert_close(raw_pixels(tiff(values)), expected, 0)


@pytest.mark.parametrize("shift", [2, 4, 6, 8])
def test_sixteen_bit_colour_that_would_become_black_is_refused(shift: int) -> None:
    narrow = np.linspace(0, 65_535 >> shift, 4 * 5 * 3).reshape(4, 5, 3).astype(np.uint16)
    for data in (tiff(narrow), ppm(narrow * 15 // 16, 65_535)):  # Pillow rounds PPM's up
        with pytest.raises(ImageError, match="use 14 bits at most have no fixed range; scale"):
            raw_pixels(data)
    values = np.linspace(0, 65_535 >> shift, 4 * 5 * 3).reshape(4, 5, 3).astype(">u2")
    alpha = np.full((4, 5, 1), 65_535, ">u2")
    for pixels, colour in ((values, 2), (np.concatenate([values, alpha], -1), 6)):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        with pytest.raises(ImageError, match="use 14 bits at most have no fixed range; scale"):
            raw_pixels(png(5, 4, 16, colour, rows))
    assert raw_pixels(values.astype(np.uint16)).max() == 255  # an array tells all its bits


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "La", "RGBA", "RGBa", "RGBX", "CMYK"])
def test_each_of_pillows_modes_is_what_pillow_shows(mode: str) -> None:
    grey = mode in ("1", "L", "LA", "La")
    pixels = picture(20, 30)
    rgb = Image.fromarray(pixels[..., 0]).convert("RGB") if grey else Image.fromarray(pixels)
    if mode in ("La", "RGBa"):
        image = rgb.convert(mode[:-1] + "A").convert(mode)
    else:
        image = rgb.convert(mode)
    expected = image.convert("LA" if mode == "La" else "RGB").convert("RGB")
    assert np.array_equal(raw_pixels(image), np.asarray(expected))
    if mode not in ("1", "P", "PA"):
        assert_close(raw_pixels(image), np.asarray(rgb), 2)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colours_become_rgb(mode: str) -> None:
    image = Image.fromarray(picture(20, 30)).convert(mode)
    assert np.array_equal(raw_pixels(image), np.asarray(image.convert("RGB")))


def test_lab_becomes_rgb_or_is_refused() -> None:
    from PIL import ImageCms

    rgb = Image.new("RGB", (8, 6), (200, 30, 60))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(rgb, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    try:
        assert_close(raw_pixels(lab), np.asarray(rgb), 2)
    except ImageError as error:  # a Pillow that does not convert it
        assert "LAB" in str(error)


def test_sixteen_bit_colour_keeps_the_high_byte() -> None:
    values = (np.arange(4 * 5 * 3).reshape(4, 5, 3) * 1092).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    expected = (values >> 8).astype(np.uint8)
    assert np.array_equal(raw_pixels(png(5, 4, 16, 2, rows)), expected)
    assert np.array_equal(raw_pixels(values.astype(np.uint16)), expected)


def test_cmyk_jpegs_get_their_colours() -> None:
    for cmyk, rgb in (((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 0), (0, 255, 255))):
        found = raw_pixels(jpeg(Image.new("CMYK", (16, 16), cmyk)))
        assert_close(found, np.broadcast_to(np.uint8(rgb), (16, 16, 3)), 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    pixels, exif = picture(20, 34), orientation_tag(orientation)
    expected = oriented(pixels)[orientation]
    assert np.array_equal(raw_pixels(encoded(pixels, "PNG", exif=exif)), expected)
    assert_close(raw_pixels(jpeg(pixels, exif=exif)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", ["none", "square"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_a_turned_tiff_is_turned_once(orientation: int, crop: str, compression: str) -> None:
    pixels = picture(20, 34)
    data = encoded(pixels, "TIFF", tiffinfo={0x0112: orientation}, compression=compression)
    for image_size in (None, 8):
        options = {"image_size": image_size, "crop": crop}
        expected = raw_pixels(np.ascontiguousarray(oriented(pixels)[orientation]), **options)
        assert np.array_equal(raw_pixels(data, **options), expected)
        assert np.array_equal(raw_pixels(Image.open(io.BytesIO(data)), **options), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_alike(orientation: int) -> None:
    pixels, exif = picture(16, 34), orientation_tag(orientation)
    expected = oriented(pixels)[orientation]
    for kind, options in FORMATS_WITH_EXIF.items():
        data = encoded(pixels, kind, exif=exif, **options)
        assert_close(raw_pixels(data), expected, 0 if "lossless" in options else JPEG_LOSS)


def entry(tag: int, kind: int, count: int, value: bytes, order: str) -> bytes:
    return struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_of_damaged_exif_the_orientation_is_taken(kind: str, order: str) -> None:
    def exif(*entries: bytes, extra: bytes = b"") -> bytes:
        magic = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
        return (
            b"Exif\0\0" + magic + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + extra
        )

    turned = entry(0x0112, 3, 1, struct.pack(f"{order}H", 6), order)
    wide = entry(0x0112, 4, 1, struct.pack(f"{order}I", 6), order)
    ratio = entry(0x011A, 10, 1, struct.pack(f"{order}I", 50), order)
    pixels = picture(20, 34)
    for block, expected in (
        (exif(turned, ratio, extra=bytes(4) + struct.pack(f"{order}ii", -1, 0)), 6),
        (exif(turned, entry(0x8769, 4, 1, b"\xff\xff\xff\x0f", order)), 6),
        (exif(turned), 6),  # without the end
        (exif(wide, turned), 6),
        (exif(entry(0x0112, 2, 3, b"6\0\0", order)), 1),  # an orientation in letters
        (exif(entry(0x0112, 7, 90, b"\xff\xff\0\0", order), ratio), 1),
        (b"Exif\0\0not a TIFF header", 1),
        (b"Exif\0\0II*\0", 1),
    ):
        options = {"lossless": True} if kind == "WEBP" else {}
        options |= {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
        data = encoded(pixels, kind, exif=block, **options)
        assert_close(raw_pixels(data), oriented(pixels)[expected])


def test_the_errors_of_libtiff_are_in_the_message_and_not_on_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = bytearray(encoded(picture(64, 64), "TIFF", compression="tiff_adobe_deflate"))
    data[40:60] = bytes(20)
    with pytest.raises(ImageError, match=r"unreadable or truncated image \(ZIPDecode: Decoding"):
        encode(bytes(data))
    lzw = bytearray(encoded(picture(64, 64), "TIFF", compression="tiff_lzw"))
    lzw[100:160] = b"\xff" * 60
    with pytest.raises(ImageError, match=r"truncated image \(Using code not yet in table\)"):
        encode(bytes(lzw))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(OSError):  # elsewhere libtiff says what it always said
        Image.open(io.BytesIO(bytes(data))).load()
    assert "ZIPDecode" in capfd.readouterr().err


def test_a_program_that_draws_is_not_run() -> None:
    with pytest.raises(ImageError, match="EPS is a program that draws; store"):
        encode(encoded(picture(8, 8), "EPS"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_jpeg_has_the_size_of_the_upright_image(orientation: int) -> None:
    upright = oriented(picture(301, 498))[orientation]
    for crop in ("none", "square"):
        options = {"image_size": 24, "crop": crop}
        rotated = raw_pixels(jpeg(picture(301, 498), exif=orientation_tag(orientation)), **options)
        assert_close(rotated, raw_pixels(upright, **options), 8)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_orientations_that_do_not_exist_are_ignored(orientation: int) -> None:
    data = encoded(picture(8, 12), "PNG", exif=orientation_tag(orientation))
    assert np.array_equal(raw_pixels(data), picture(8, 12))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("encoding", ["jpg", "raw", "keep"])
@pytest.mark.parametrize("crop", ["square", "none"])
def test_tiny_images_are_stored_at_the_full_size(
    shape: tuple[int, int], encoding: str, crop: str
) -> None:
    for image in (picture(*shape), encoded(picture(*shape), "PNG"), jpeg(picture(*shape))):
        stored = encode(image, encoding, image_size=16, crop=crop)
        assert min(stored.height, stored.width) == 16
        assert stored_pixels(stored).shape == (stored.height, stored.width, 3)


def test_pil_images_arrays_and_tensors_are_one() -> None:
    pixels = picture(10, 14)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (
        pixels,
        Image.fromarray(pixels),
        tensor,
        tensor.contiguous(),
        pixels[:, ::-1][:, ::-1],
    ):
        assert np.array_equal(raw_pixels(image), pixels)
    with_alpha = np.concatenate([pixels, pixels[..., :1]], -1)
    assert np.array_equal(raw_pixels(with_alpha), pixels)


def test_grey_arrays_and_tensors_are_one() -> None:
    grey = picture(10, 14)[..., 2]
    expected = np.repeat(grey[..., None], 3, -1)
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(raw_pixels(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((4, 4), bool),
        torch.zeros(3, 4, 4),
        torch.zeros(5, 5, 3, dtype=torch.uint8),
        "picture.png",
        None,
    ],
)
def test_what_holds_no_pixels_in_a_known_layout_is_described(image: Any) -> None:
    with pytest.raises(ImageError, match=r"of type \w+, dtype .*, shape .* cannot be stored; give"):
        encode(image)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0, 3)])
@pytest.mark.parametrize("encoding", ["jpg", "raw", "keep"])
def test_images_without_pixels_are_refused(shape: tuple[int, ...], encoding: str) -> None:
    for options in ({}, {"image_size": 8}, {"crop": "square"}):
        with pytest.raises(ImageError, match="the image has no pixels"):
            encode(np.zeros(shape, np.uint8), encoding, **options)


def test_pixels_without_a_fixed_range_are_refused() -> None:
    with pytest.raises(ImageError, match="floating point pixels have no fixed range; convert"):
        encode(Image.new("F", (4, 4)))
    for value in (-1, 70_000):
        with pytest.raises(ImageError, match=r"integer pixels from .* have no fixed range"):
            encode(Image.new("I", (4, 4), value))


def test_an_image_of_the_caller_is_left_as_it_is() -> None:
    image = Image.open(io.BytesIO(jpeg(picture(400, 400))))
    small = encode(image, image_size=16)
    assert image.size == (400, 400)
    assert_close(raw_pixels(image), picture(400, 400))
    assert encode(image, image_size=16) == small


# Size and crop


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 60), st.booleans())
def test_the_size_without_a_crop_is_that_of_torchvision_s_resize(
    height: int, width: int, size: int, turned: bool
) -> None:
    from torchvision.transforms.functional import resize

    image = Image.new("RGB", (width, height))
    upright = image.transpose(Image.Transpose.ROTATE_90) if turned else image
    expected = resize(upright, size).size
    for given_image in (upright, jpeg(image, exif=orientation_tag(6 if turned else 1))):
        stored = encode(given_image, image_size=size)
        assert (stored.width, stored.height) == expected


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (60, 61), (60, 60)])
def test_the_square_is_the_centre(shape: tuple[int, int]) -> None:
    pixels = picture(*shape)
    top, left = (shape[0] - 60) // 2, (shape[1] - 60) // 2
    expected = pixels[top : top + 60, left : left + 60]
    assert np.array_equal(raw_pixels(pixels, crop="square"), expected)
    assert np.array_equal(raw_pixels(pixels, crop="square", image_size=60), expected)


def test_a_resized_square_is_the_centre_resized() -> None:
    pixels = picture(60, 100)
    for size in (30, 90):
        centre = Image.fromarray(pixels[:, 20:80]).resize((size,) * 2, Image.Resampling.BILINEAR)
        found = raw_pixels(pixels, crop="square", image_size=size)
        assert_close(found, np.asarray(centre), 3)  # it sees the pixels beyond the centre's edge


def test_no_crop_and_no_size_keep_all_pixels() -> None:
    assert np.array_equal(raw_pixels(picture(17, 90)), picture(17, 90))


@pytest.mark.parametrize("shape", [(600, 900), (1023, 517)])
@pytest.mark.parametrize("crop", ["square", "none"])
def test_a_large_jpeg_is_reduced_as_its_pixels_are(shape: tuple[int, int], crop: str) -> None:
    options = {"image_size": 40, "crop": crop}
    assert_close(
        raw_pixels(jpeg(picture(*shape)), **options), raw_pixels(picture(*shape), **options), 4
    )


def test_an_image_too_long_to_be_stored_is_refused_before_it_is_resized() -> None:
    image = np.zeros((1, 60_000, 3), np.uint8)  # at 30,000 rows, 160 TB
    with pytest.raises(
        ImageError, match=r"stored as \d+x30000, above the limit of 65500 a side; use"
    ):
        encode(image, "jpg", image_size=30_000)
    assert encode(image, "jpg", image_size=8, crop="square").width == 8


def test_the_limit_of_a_side_is_that_of_the_encoding() -> None:
    for encoding, limit in (("raw", 65_535), ("jpg", 65_500), ("keep", 65_500)):
        assert encode(np.zeros((1, limit, 3), np.uint8), encoding).width == limit
        with pytest.raises(ImageError, match=f"above the limit of {limit} a side"):
            encode(np.zeros((1, limit + 1, 3), np.uint8), encoding)


# What goes out


def test_raw_is_the_pixels() -> None:
    assert encode(picture(7, 9), "raw") == StoredImage(RAW, 7, 9, picture(7, 9).tobytes())


def test_jpg_is_a_baseline_jpeg_of_the_asked_quality() -> None:
    pixels = picture(64, 48)
    best, worst = encode(pixels, "jpg", quality=95), encode(pixels, "jpg", quality=5)
    for stored in (best, worst):
        opened = Image.open(io.BytesIO(stored.data))
        assert (opened.format, opened.mode, opened.size) == ("JPEG", "RGB", (48, 64))
        assert "progressive" not in opened.info
        assert jpeg_problem(stored.data, stored.height, stored.width) is None
    assert len(best.data) > len(worst.data)
    assert_close(stored_pixels(best), pixels)


def test_jpg_holds_pixels_only() -> None:
    text = PngInfo()
    text.add_text("comment", "x" * 100_000)  # more than a JPEG could hold
    exif = orientation_tag(3)
    upright = np.ascontiguousarray(picture(8, 8)[::-1, ::-1])
    for data in (encoded(upright, "PNG", pnginfo=text), encoded(picture(8, 8), "PNG", exif=exif)):
        assert encode(data, "jpg") == encode(upright, "jpg")


@pytest.mark.parametrize(
    "data",
    [
        jpeg(picture(32, 32)),
        jpeg(picture(32, 32), subsampling=2, quality=60),
        jpeg(picture(32, 32), comment=b"kept too"),
        jpeg(picture(32, 32), exif=orientation_tag(1)),
        jpeg(picture(32, 32), restart_marker_rows=1),
        jpeg(picture(32, 32)[..., 0]),
        jpeg(picture(32, 32), keep_rgb=True),
    ],
    ids=["4:4:4", "4:2:0", "comment", "upright", "restarts", "grey", "rgb"],
)
def test_keep_keeps_the_bytes_of_a_jpeg_that_needs_no_change(data: bytes) -> None:
    expected = StoredImage(JPG, 32, 32, data, kept=True)
    assert encode(data, "keep") == expected
    assert encode(data, "keep", image_size=32) == expected
    assert encode(data, "keep", image_size=32, crop="square") == expected


def test_keep_keeps_an_uncropped_jpeg_whose_shorter_edge_fits() -> None:
    data = jpeg(picture(32, 57))
    assert encode(data, "keep", image_size=32).data == data
    assert encode(data, "keep", image_size=32, crop="square").data != data


@pytest.mark.parametrize(
    "data",
    [
        jpeg(picture(32, 32), progressive=True),
        jpeg(Image.fromarray(picture(32, 32)).convert("CMYK")),
        jpeg(picture(32, 32), exif=orientation_tag(3)),
        jpeg(picture(40, 40)),
        jpeg(picture(32, 34)),
        encoded(picture(32, 32), "PNG"),
        with_junk_in_the_header(picture(32, 32)),
    ],
    ids=["progressive", "cmyk", "rotated", "larger", "oblong", "png", "junk in the header"],
)
def test_keep_encodes_anew_what_a_stock_decoder_would_not_read_alike(data: bytes) -> None:
    options = {"image_size": 32, "crop": "square"}
    stored = encode(data, "keep", **options)
    assert stored == encode(data, "jpg", **options)
    assert stored.data != data
    assert jpeg_problem(stored.data, 32, 32) is None


def test_jpg_encodes_anew_even_a_jpeg_that_needs_no_change() -> None:
    data = jpeg(picture(32, 32))
    assert encode(data, "jpg").data != data


@pytest.mark.parametrize("encoding", ["jpg", "raw", "keep"])
def test_the_same_image_gives_the_same_bytes(encoding: str) -> None:
    data = jpeg(picture(90, 70))
    options = {"image_size": 24, "crop": "square"}
    assert encode(data, encoding, **options) == encode(data, encoding, **options)


# Damage


@pytest.mark.parametrize("encoding", ["jpg", "raw", "keep"])
def test_junk_in_the_header_is_no_damage(encoding: str) -> None:
    data, sound = with_junk_in_the_header(picture(32, 32)), jpeg(picture(32, 32))
    assert encode(data, encoding) == encode(sound, "raw" if encoding == "raw" else "jpg")


@pytest.mark.parametrize("encoding", ["jpg", "raw", "keep"])
@pytest.mark.parametrize("size", [None, 32, 16, 8, 4])
def test_a_jpeg_that_decodes_with_a_warning_is_refused(encoding: str, size: int | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for pixels in (noise, noise[..., 0], Image.fromarray(noise).convert("CMYK")):
        data = with_warning(pixels)
        with pytest.raises(ImageError, match=r"4 extraneous bytes before marker 0xd\d\)"):
            encode(data, encoding, image_size=size)


def test_an_image_that_was_only_opened_is_checked_as_a_file_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "1.jpg"
    path.write_bytes(with_warning(noise))
    for image in (Image.open(path), Image.open(io.BytesIO(path.read_bytes()))):
        with pytest.raises(ImageError, match="4 extraneous bytes"):
            encode(image)
    path.write_bytes(jpeg(noise, exif=orientation_tag(6)))
    opened, decoded = Image.open(path), Image.open(path)
    decoded.load()
    for options in ({}, {"image_size": 8}):
        assert encode(opened, **options) == encode(decoded, **options)
    assert np.array_equal(np.asarray(opened), np.asarray(decoded))  # it can be read afterwards
    drafted = Image.open(path)
    drafted.draft("L", (16, 16))
    assert raw_pixels(drafted).shape == (16, 16, 3)  # as the caller wants it


def test_the_scans_of_a_jpeg_are_decoded_at_every_fraction_as_by_pillow() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 2}, {"keep_rgb": True}):
        data = jpeg(picture(97, 130), **options)
        for shrink in (1, 2, 4, 8):
            image = Image.open(io.BytesIO(data))
            image.draft(None, (130 // shrink, 97 // shrink))
            assert np.array_equal(decode_jpeg(data, shrink), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("encoding", ["jpg", "raw", "keep"])
def test_a_truncated_image_is_an_error_wherever_it_ends(kind: str, encoding: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        with pytest.raises(ImageError, match=r"unreadable or truncated image|not an image in a"):
            encode(data[: int(len(data) * share)], encoding)


def test_a_truncated_progressive_jpeg_is_an_error() -> None:
    data = jpeg(picture(64, 64), progressive=True)
    with pytest.raises(ImageError, match="unreadable or truncated image"):
        encode(data[: len(data) // 2], "jpg")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"not an image at all", bytes(1000)])
def test_bytes_that_are_no_image_are_an_error(data: bytes) -> None:
    with pytest.raises(ImageError, match="not an image in a format that Pillow reads"):
        encode(data)


def test_an_image_of_absurd_size_is_refused_unread() -> None:
    bomb = png(60_000, 60_000, 8, 2, bytes(100))
    with pytest.raises(ImageError, match=r"could be decompression bomb.*; resize it first"):
        encode(bomb)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF
@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [encoded(picture(12, 16), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")]
        + [jpeg(picture(12, 16), exif=orientation_tag(6), progressive=True)]
    ),
    st.data(),
)
def test_a_damaged_image_is_an_image_error_or_stored_sound(
    data: bytes, draw: st.DataObject
) -> None:
    damaged = bytearray(data)
    places = st.integers(0, len(data) - 1)
    for place, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        damaged[place] = value
    stop = draw.draw(st.one_of(st.just(len(data)), places))
    try:
        stored = encode(bytes(damaged[:stop]), "keep", image_size=8)
    except ImageError:
        return
    assert min(stored.height, stored.width) == 8
    assert jpeg_problem(stored.data, stored.height, stored.width) is None


def test_a_sound_jpeg_has_no_problem() -> None:
    data = jpeg(picture(20, 30))
    assert jpeg_problem(data, 20, 30) is None
    assert jpeg_problem(np.frombuffer(data, np.uint8), 20, 30) is None


def test_a_jpeg_of_another_size_is_a_problem() -> None:
    problem = jpeg_problem(jpeg(picture(20, 30)), 30, 20)
    assert problem == "the JPEG is 30x20, the index says 20x30"


def test_a_jpeg_that_decodes_with_a_warning_is_a_problem() -> None:
    assert "extraneous bytes" in str(jpeg_problem(with_warning(picture(32, 32)), 32, 32))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-2],
        lambda data: b"\0" + data,
        lambda data: data.replace(b"\xff\xdb", b"\xff\xdf", 1),
        lambda data: data.replace(b"\xff\xc0", b"\xff\xc4", 1),
        lambda data: b"",
        lambda data: bytes(len(data)),
    ],
    ids=["half", "no end", "shifted", "unknown marker", "no frame", "empty", "zeros"],
)
def test_a_damaged_jpeg_is_a_problem(damage: Any) -> None:
    data = jpeg(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    assert isinstance(jpeg_problem(damage(data), 20, 30), str)
    assert jpeg_problem(data, 20, 30) is None  # the decoder is as good as new
