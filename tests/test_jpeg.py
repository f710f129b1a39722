"""Windows of JPEG images against whole images by Pillow, and what damage must not do."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fuzz.streams import stream_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded
from PIL import Image

from xmix_data.jpeg import DAMAGED, OK, WRONG_SIZE, Decoder, decode_jpeg, jpeg_problem, library

Pixels = npt.NDArray[np.uint8]

GUARD = 64
"""Bytes before and behind the rows that must stay as they are."""
FILLING = 0xA5
FRAME_HEADERS = b"\xff\xc0", b"\xff\xc2"

KINDS = ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1", "1:4 down", "grey", "grey 2x2", "rgb"]
"""How chroma is stored; what Pillow cannot write comes of another sampling, see `jpeg`."""
WAYS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "rough": {"quality": 8, "optimize": True},
    "fine": {"quality": 100},
}


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth colours with noise on a third of the pixels."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = np.asarray(coarse.resize((width, height)))
    return np.where(random.random((height, width, 1)) < 0.3, noise, smooth)


def with_header(data: bytes, sampling: int, height: int, width: int) -> bytes:
    """The same blocks under another sampling of the first component, and another size."""
    place = max(data.find(marker) for marker in FRAME_HEADERS)
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    start, end = data[: place + 5], data[place + 12 :]
    return start + sides + data[place + 9 : place + 11] + bytes([sampling]) + end


def jpeg(kind: str, height: int, width: int, seed: int = 0, **options: Any) -> bytes:
    """A sound JPEG of a size.

    Six blocks make an MCU with 4:2:0 and with 4:1:1, four with 4:2:2 and with 4:4:0: the blocks
    of one, read as the other, are another picture, as valid.
    """
    if kind.startswith("grey"):
        data = encoded(picture(height, width, seed)[..., 0], **options)
        return data if kind == "grey" else with_header(data, 0x22, height, width)
    if kind == "rgb":
        return encoded(picture(height, width, seed), keep_rgb=True, **options)
    if kind in ("4:4:4", "4:2:2", "4:2:0"):
        subsampling = ["4:4:4", "4:2:2", "4:2:0"].index(kind)
        return encoded(picture(height, width, seed), subsampling=subsampling, **options)
    # (written as, its MCU, sampling factors, MCU)
    subsampling, (from_h, from_w), sampling, (to_h, to_w) = {
        "4:4:0": (1, (8, 16), 0x12, (16, 8)),
        "4:1:1": (2, (16, 16), 0x41, (8, 32)),
        "1:4 down": (2, (16, 16), 0x14, (32, 8)),
    }[kind]
    rows, columns = -(-height // to_h), -(-width // to_w)
    pixels = picture(rows * from_h, columns * from_w, seed)
    data = encoded(pixels, **{**options, "subsampling": subsampling, "progressive": False})
    return with_header(data, sampling, height, width)


def whole(data: bytes, shrink: int = 1) -> Pixels:
    """The image as Pillow decodes it, with `draft` at a fraction of its size."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    if shrink > 1:
        image.draft("RGB", (width // shrink, height // shrink))
    pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (-(-height // shrink), -(-width // shrink), 3)
    return pixels


def window(
    decoder: Decoder,
    data: bytes,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    shrink: int = 1,
    portion: int = 16,
) -> tuple[int, Pixels | None]:
    """Status and pixels of ``box`` (top, left, height, width), read ``portion`` rows at a time."""
    top, left, rows, columns = box
    stream, layout, functions = np.frombuffer(data, np.uint8), np.zeros(2, np.int64), library()
    status = functions.xmix_jpeg_open(
        decoder.handle,
        stream.ctypes.data,
        stream.size,
        *size,
        shrink,
        top,
        left,
        columns,
        layout.ctypes.data,
    )
    if status != OK:
        return status, None
    row_bytes, margin = layout.tolist()
    assert 0 <= margin <= row_bytes - 3 * columns
    assert row_bytes <= 3 * -(-size[1] // shrink)  # the room that the kernels have
    memory = np.full(rows * row_bytes + 2 * GUARD, FILLING, np.uint8)
    for y in range(0, rows, portion):
        to = memory.ctypes.data + GUARD + y * row_bytes
        status = functions.xmix_jpeg_read(decoder.handle, to, min(portion, rows - y))
        if status != OK:
            break
    if status == OK:
        status = functions.xmix_jpeg_close(decoder.handle)
    assert (memory[:GUARD] == FILLING).all()
    assert (memory[-GUARD:] == FILLING).all()
    pixels = memory[GUARD:-GUARD].reshape(rows, row_bytes)[:, margin : margin + 3 * columns]
    return status, pixels.reshape(rows, columns, 3)


def assert_window(
    decoder: Decoder,
    data: bytes,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    expected: Pixels,
    shrink: int = 1,
    portion: int = 16,
) -> None:
    """That a window decodes to the same window of the whole image."""
    top, left, rows, columns = box
    status, pixels = window(decoder, data, size, box, shrink, portion)
    assert status == OK, decoder.message()
    assert np.array_equal(pixels, expected[top : top + rows, left : left + columns]), box


def boxes_of(height: int, width: int, random: np.random.Generator) -> Iterator[Any]:
    """All, one pixel in every corner, windows at every border, and some in between."""
    yield 0, 0, height, width
    for rows, columns in [(1, 1), *random.integers(1, (height + 1, width + 1), (4, 2)).tolist()]:
        for top in (0, height - rows):
            for left in (0, width - columns):
                yield top, left, rows, columns
        top, left = random.integers(0, (height - rows + 1, width - columns + 1)).tolist()
        yield top, left, rows, columns


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder()


# Sound images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_a_window_is_that_of_the_whole_image(decoder: Decoder, kind: str, shrink: int) -> None:
    random = np.random.default_rng(shrink)
    for options in WAYS.values():
        for size in [(16, 16), (64, 48), *random.integers(16, 110, (3, 2)).tolist()]:
            data = jpeg(kind, *size, **options)
            expected = whole(data, shrink)
            for box in boxes_of(*expected.shape[:2], random):
                portion = int(random.choice([1, 5, 16, 1000]))
                assert_window(decoder, data, size, box, expected, shrink, portion)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (7, 9), (15, 17)])
def test_a_tiny_image_has_all_its_windows(
    decoder: Decoder, kind: str, size: tuple[int, int]
) -> None:
    data = jpeg(kind, *size)
    expected = whole(data)
    for box in boxes_of(*size, np.random.default_rng(0)):
        assert_window(decoder, data, size, box, expected)


@pytest.mark.parametrize("kind", ["4:2:0", "4:2:2", "4:1:1", "grey"])
@pytest.mark.parametrize("shrink", [1, 2])
def test_every_pixel_is_a_window(decoder: Decoder, kind: str, shrink: int) -> None:
    """Smooth upsampling takes from beside and below: no place may be the border it is not."""
    size = 35, 53
    data = jpeg(kind, *size)
    expected = whole(data, shrink)
    for top, left in np.ndindex(expected.shape[:2]):
        assert_window(decoder, data, size, (top, left, 1, 1), expected, shrink)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_and_every_column_is_a_window(decoder: Decoder, kind: str) -> None:
    size = 41, 67
    for options in ({}, {"progressive": True}):
        data = jpeg(kind, *size, **options)
        expected = whole(data)
        for top in range(size[0]):
            assert_window(decoder, data, size, (top, 0, 1, size[1]), expected)
        for left in range(size[1]):
            assert_window(decoder, data, size, (0, left, size[0], 1), expected)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(list(WAYS.values())),
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.sampled_from([1, 2, 4, 8]),
    st.data(),
)
def test_any_window_of_any_image(
    kind: str, options: dict[str, Any], size: tuple[int, int], shrink: int, draw: st.DataObject
) -> None:
    data = jpeg(kind, *size, seed=sum(size), **options)
    expected = whole(data, shrink)
    height, width = expected.shape[:2]
    rows, columns = (draw.draw(st.integers(1, side)) for side in (height, width))
    top = draw.draw(st.integers(0, height - rows))
    left = draw.draw(st.integers(0, width - columns))
    portion = draw.draw(st.integers(1, rows))
    box = (top, left, rows, columns)
    assert_window(Decoder(), data, size, box, expected, shrink, portion)


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_windows_of_a_large_image(decoder: Decoder, kind: str, options: dict[str, Any]) -> None:
    size = 501, 803
    data = jpeg(kind, *size, **options)
    for shrink in (1, 4):
        expected = whole(data, shrink)
        for box in boxes_of(*expected.shape[:2], np.random.default_rng(1)):
            assert_window(decoder, data, size, box, expected, shrink)


UNUSUAL = [
    ((2, 4), (1, 1), (1, 1)),
    ((4, 2), (1, 1), (1, 1)),
    ((1, 1), (2, 4), (1, 1)),
    ((1, 4), (4, 1), (1, 1)),
    ((1, 4), (1, 2), (1, 1)),
    ((2, 2), (2, 1), (1, 2)),
    ((4, 1), (1, 1), (2, 1)),
    ((3, 2), (1, 1), (1, 1)),
    ((3, 1), (3, 1), (1, 1)),
]
"""Sampling factors, across and down, of the three components."""


@pytest.mark.parametrize("sampling", UNUSUAL, ids=str)
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_windows_of_any_sampling_are_those_of_the_whole_image(
    decoder: Decoder, sampling: Any, shrink: int
) -> None:
    """libjpeg-turbo 2 reads memory that nobody wrote, where it cuts some of them out."""
    for seed in range(6):
        height, width = ((97, 130), (160, 64), (40, 200))[seed % 3]
        data = stream_of(Random(seed), sampling, height, width)
        expected = whole(data, shrink)
        for box in boxes_of(*expected.shape[:2], np.random.default_rng(seed)):
            assert_window(decoder, data, (height, width), box, expected, shrink)
        assert np.array_equal(decode_jpeg(data, shrink), expected)


def test_grey_comes_as_three_equal_channels(decoder: Decoder) -> None:
    _, pixels = window(decoder, jpeg("grey", 30, 40), (30, 40), (3, 5, 20, 30))
    assert pixels is not None
    assert (pixels == pixels[..., :1]).all()
    assert len(np.unique(pixels)) > 50


def test_bytes_behind_the_end_marker_are_no_damage(decoder: Decoder) -> None:
    size = 50, 40
    for options in WAYS.values():
        data = jpeg("4:2:0", *size, **options)
        expected = whole(data)
        for tail in (b"\0", b"\xff", b"\xff\xd8", b"\n", bytes(3000), b"tail" * 9, data, data[:99]):
            for box in ((0, 0, 2, 3), (49, 39, 1, 1), (0, 0, 50, 40), (20, 10, 9, 8)):
                assert_window(decoder, data + tail, size, box, expected)
            assert jpeg_problem(data + tail, *size) is None


def test_images_follow_each_other_in_one_decoder(decoder: Decoder) -> None:
    """Whatever came before, read to its end, left in the middle or only opened."""
    functions, layout, rows = library(), np.zeros(2, np.int64), np.empty(16 * 90 * 3, np.uint8)
    random = np.random.default_rng(0)
    images = [
        (jpeg(kind, *size, **options), size)
        for kind, size in zip(KINDS, random.integers(20, 90, (len(KINDS), 2)).tolist(), strict=True)
        for options in WAYS.values()
    ]
    for turn in random.integers(0, len(images), (200, 2)).tolist():
        (left, left_size), (data, size) = images[turn[0]], images[turn[1]]
        stream = np.frombuffer(left, np.uint8)
        status = functions.xmix_jpeg_open(
            decoder.handle,
            stream.ctypes.data,
            stream.size,
            *left_size,
            1,
            0,
            0,
            left_size[1],
            layout.ctypes.data,
        )
        assert status == OK
        if turn[0] % 3:
            assert functions.xmix_jpeg_read(decoder.handle, rows.ctypes.data, 16) == OK
        assert_window(decoder, data, size, (3, 4, 13, 14), whole(data))


# Damaged images


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "grey"])
@pytest.mark.parametrize("way", WAYS)
def test_a_truncated_stream_is_damaged_wherever_it_ends(
    decoder: Decoder, kind: str, way: str
) -> None:
    """Whatever the window: one far above the cut, too."""
    size = 64, 48
    data = jpeg(kind, *size, **WAYS[way])
    sound = whole(data)
    cuts = [*range(0, len(data) - 40, 13), *range(len(data) - 40, len(data))]
    for cut in cuts:
        for box in ((0, 0, 1, 1), (0, 0, *size), (0, 20, 30, 9)):
            status, _ = window(decoder, data[:cut], size, box)
            assert (status, bool(decoder.message())) == (DAMAGED, True), cut
        assert jpeg_problem(data[:cut], *size)
    assert_window(decoder, data, size, (0, 0, 1, 1), sound)


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_whose_end_was_never_written_is_damaged(decoder: Decoder, way: str) -> None:
    """The rest of the file is zeros, ones or another file's."""
    size = 64, 48
    data = jpeg("4:2:0", *size, **WAYS[way])
    for cut in range(700, len(data) - 1, 29):
        rest = len(data) - cut
        for filling in (bytes(rest), b"\xff" * rest, bytes(range(254)) * (rest // 254 + 1)):
            status, _ = window(decoder, data[:cut] + filling, size, (0, 0, 2, 3))
            assert status == DAMAGED, cut


def test_the_smallest_window_in_the_last_row_sees_the_end(decoder: Decoder) -> None:
    size = 64, 48
    data = jpeg("4:2:0", *size)
    status, _ = window(decoder, data[:-30] + b"\xff\xd9", size, (63, 0, 1, 1))
    assert status == DAMAGED
    assert decoder.message() == "Corrupt JPEG data: premature end of data segment"


def test_a_header_of_another_size_is_the_wrong_size(decoder: Decoder) -> None:
    for kind in KINDS:
        data = jpeg(kind, 20, 30)
        for size in ((30, 20), (20, 31), (19, 30), (1, 1), (65535, 65535)):
            status, _ = window(decoder, data, size, (0, 0, 1, 1))
            assert status == WRONG_SIZE
            assert decoder.message() == f"the JPEG is 30x20, the index says {size[1]}x{size[0]}"
        assert_window(decoder, data, (20, 30), (0, 0, 1, 1), whole(data))


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_cmyk_is_refused(decoder: Decoder, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, "CMYK").save(stream, "JPEG")
    data = stream.getvalue()
    if mode == "YCCK":
        place = data.index(b"Adobe") + 11
        data = data[:place] + b"\2" + data[place + 1 :]
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert window(decoder, data, (20, 30), (0, 0, 20, 30)) == (DAMAGED, None)
    assert decoder.message() == "Unsupported color conversion request"
    assert jpeg_problem(data, 20, 30) == "Unsupported color conversion request"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Empty input file"),
        (b"PNG and so on", "Not a JPEG file: starts with 0x50 0x4e"),
        (b"\xff\xd8", "JPEG datastream contains no image"),
        (b"\xff\xd8\xff\xd9", "JPEG datastream contains no image"),
        (b"\xff\xd8" * 9, "Invalid JPEG file structure: two SOI markers"),
    ],
)
def test_what_is_wrong_is_said_in_libjpegs_words(
    decoder: Decoder, data: bytes, message: str
) -> None:
    assert window(decoder, data, (20, 30), (0, 0, 1, 1)) == (DAMAGED, None)
    assert decoder.message() == jpeg_problem(data, 20, 30) == message


def test_the_first_warning_is_the_one_that_is_told(decoder: Decoder) -> None:
    """And it is forgotten with the next image."""
    size = 64, 64
    data = jpeg("4:4:4", *size, restart_marker_rows=1)
    place = data.index(b"\xff\xd0")
    damaged = data[: place - 40] + data[place:-2]
    assert window(decoder, data[:-2], size, (0, 0, *size))[0] == DAMAGED
    assert decoder.message() == "Premature end of JPEG file"
    assert window(decoder, damaged, size, (0, 0, *size))[0] == DAMAGED
    assert decoder.message() == "Corrupt JPEG data: premature end of data segment"
    assert jpeg_problem(damaged, *size) == decoder.message()
    assert_window(decoder, data, size, (0, 0, *size), whole(data))
    assert decoder.message() == ""


def test_what_should_not_be_between_the_last_row_and_the_end_is_seen(decoder: Decoder) -> None:
    """By windows that end with the image."""
    size = 64, 64
    data = jpeg("4:4:4", *size)
    for between in (bytes(40), data, data[2:-2]):
        damaged = data[:-2] + between + b"\xff\xd9"
        for box in ((63, 0, 1, 1), (0, 0, *size)):
            assert window(decoder, damaged, size, box)[0] == DAMAGED
        assert jpeg_problem(damaged, *size) == decoder.message() != ""


def test_damage_above_the_window_is_seen(decoder: Decoder) -> None:
    """Rows above are skipped, yet their stream is read."""
    size = 96, 64
    data = jpeg("4:2:0", *size, restart_marker_rows=1)
    place = data.index(b"\xff\xd0")
    for damaged in (data[:place] + bytes(4) + data[place:], data[: place - 40] + data[place:]):
        assert window(decoder, damaged, size, (80, 30, 4, 4))[0] == DAMAGED


def spoiled(data: bytes, changes: list[tuple[int, int]], cut: int | None) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(data)] = value
    return bytes(changed[:cut])


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    st.sampled_from([(kind, way) for kind in KINDS for way in WAYS]),
    st.lists(
        # Half of the changes hit the headers, many are markers or their lengths.
        st.tuples(
            st.one_of(st.integers(0, 700), st.integers(0, 20_000)),
            st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 0x11, 0x22, 0x41, 0x14, 0xFF])),
        ),
        max_size=8,
    ),
    st.one_of(st.none(), st.integers(0, 5000)),
    st.sampled_from([1, 2, 4, 8]),
    st.data(),
)
def test_damage_harms_nothing_but_its_image(
    image: tuple[str, str],
    changes: list[tuple[int, int]],
    cut: int | None,
    shrink: int,
    draw: st.DataObject,
) -> None:
    """A status, no byte outside the rows, a decoder as good as new; pixels where all is well."""
    kind, way = image
    size = 40, 52
    sound = jpeg(kind, *size, **WAYS[way])
    data = spoiled(sound, changes, cut)
    decoder = Decoder()
    height, width = (-(-side // shrink) for side in size)
    status, pixels = window(decoder, data, size, (0, 0, height, width), shrink)
    assert status in (OK, DAMAGED, WRONG_SIZE)
    assert (status == OK) == (decoder.message() == "")
    if shrink == 1:
        # It stops at the first problem, where the window's reader may go on to a worse one.
        assert (jpeg_problem(data, *size) is None) == (decoder.message() == "")

    rows, columns = (draw.draw(st.integers(1, side)) for side in (height, width))
    top = draw.draw(st.integers(0, height - rows))
    left = draw.draw(st.integers(0, width - columns))
    box = (top, left, rows, columns)
    if status == OK and pixels is not None:
        assert_window(decoder, data, size, box, pixels, shrink)
    else:
        window(decoder, data, size, box, shrink)
    assert_window(decoder, sound, size, box, whole(sound, shrink), shrink)


@pytest.mark.parametrize("sampling", [0x11, 0x13, 0x31, 0x24, 0x42, 0x44, 0x33, 0x00, 0x51, 0xFF])
def test_sampling_factors_that_no_encoder_writes_harm_nothing(
    decoder: Decoder, sampling: int
) -> None:
    """Of each component, in turn; their MCUs are not those that the stream has."""
    size = 70, 90
    sound = jpeg("4:2:0", *size)
    place = sound.index(b"\xff\xc0") + 11
    random = np.random.default_rng(sampling)
    for component in range(3):
        data = bytearray(sound)
        data[place + 3 * component] = sampling
        for shrink in (1, 2, 4, 8):
            height, width = (-(-side // shrink) for side in size)
            for box in boxes_of(height, width, random):
                status, _ = window(decoder, bytes(data), size, box, shrink)
                assert status in (OK, DAMAGED)
    assert_window(decoder, sound, size, (0, 0, *size), whole(sound))


# Threads and memory


def test_every_thread_has_a_decoder_of_its_own() -> None:
    size = 60, 70
    images = [jpeg(kind, *size, seed=i) for i, kind in enumerate(KINDS)]
    expected = [whole(data) for data in images]
    wrong: list[int] = []

    def decode(seed: int) -> None:
        random, decoder = np.random.default_rng(seed), Decoder()
        for _ in range(150):
            which = int(random.integers(len(images)))
            top, left = random.integers(0, (40, 50)).tolist()
            status, pixels = window(decoder, images[which], size, (top, left, 20, 20))
            right = np.array_equal(pixels, expected[which][top : top + 20, left : left + 20])
            damage = images[which][: int(random.integers(len(images[which])))]
            if status != OK or not right or jpeg_problem(damage, *size) is None:
                wrong.append(seed)
            if jpeg_problem(images[which], *size) is not None:
                wrong.append(seed)

    threads = [threading.Thread(target=decode, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_decoder_may_go_from_thread_to_thread(decoder: Decoder) -> None:
    size = 60, 70
    data = jpeg("4:2:0", *size)
    expected = whole(data)
    right: list[bool] = []

    def decode(top: int) -> None:
        window(decoder, data[:800], size, (0, 0, 5, 5))
        _, pixels = window(decoder, data, size, (top, 3, 20, 20))
        right.append(np.array_equal(pixels, expected[top : top + 20, 3:23]))

    for top in range(30):
        thread = threading.Thread(target=decode, args=(top,))
        thread.start()
        thread.join()
    assert right == [True] * 30


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_decoders_leave_no_memory_behind() -> None:
    size = 40, 52
    data = jpeg("4:2:0", *size)

    def use(count: int) -> None:
        for number in range(count):
            decoder = Decoder()
            if number % 4 == 0:  # the others are never used
                window(decoder, data[: 700 if number % 8 else None], size, (0, 0, 4, 4))

    use(1000)
    before = resident_mb()
    use(10_000)
    assert resident_mb() - before < 4


def test_damaged_images_leave_no_memory_behind(decoder: Decoder) -> None:
    size = 40, 52
    random = np.random.default_rng(0)
    images = []
    for number in range(200):
        sound = jpeg(KINDS[number % len(KINDS)], *size, **list(WAYS.values())[number % len(WAYS)])
        changes = random.integers(0, (len(sound), 256), (3, 2)).tolist()
        cut = int(random.integers(len(sound))) if number % 2 else None
        images.append(spoiled(sound, changes, cut))

    def decode(count: int) -> None:
        for number in range(count):
            window(decoder, images[number % len(images)], size, (4, 4, 20, 20))

    decode(1000)
    before = resident_mb()
    decode(20_000)
    assert resident_mb() - before < 4


# Whole streams


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_sound_stream_has_no_problem(kind: str, way: str) -> None:
    data = jpeg(kind, 33, 47, **WAYS[way])
    assert jpeg_problem(data, 33, 47) is None
    assert jpeg_problem(np.frombuffer(data, np.uint8), 33, 47) is None
    assert jpeg_problem(data, 47, 33) == "the JPEG is 47x33, the index says 33x47"


def test_a_problem_is_one_line() -> None:
    data = jpeg("4:2:0", 33, 47)
    random = np.random.default_rng(0)
    told = set()
    for _ in range(500):
        changes = random.integers(0, (len(data), 256), (2, 2)).tolist()
        problem = jpeg_problem(spoiled(data, changes, None), 33, 47)
        if problem is not None:
            assert problem.strip() == problem != ""
            assert len(problem.splitlines()) == 1
            told.add(problem)
    assert len(told) > 5
