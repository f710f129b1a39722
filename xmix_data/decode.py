"""The host kernels: stored bytes to cropped uint8 pixels, or straight to normalised, mixed floats.

Comes in: a row of an image table for each image (where its bytes are, its size, its box, whether
it is mirrored). Goes out: pixels at a caller's address, and a status per image. The kernels hold
no lock and start no thread; each worker thread of a backend calls them on a stripe of a batch with
a `Workspace` of its own.

A JPEG that is only cropped passes through in strips of a few rows, which never leave the
first-level cache between the decoder and the batch; the batch itself is written past the caches.
"""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xmix_data.augment import dct_fractions
from xmix_data.encoding import JPG, RAW
from xmix_data.jpeg import MOST_PIXELS_A_BYTE, OK, Decoder, library

__all__ = [
    "BFLOAT16",
    "BYTES",
    "FLOAT16",
    "FLOAT32",
    "ImageTable",
    "Workspace",
    "copy_crops",
    "crop_images",
    "decode_whole",
    "image_table",
    "made_elsewhere",
    "mix_images",
    "no_images",
    "normalise_images",
    "plain_jpegs",
    "point_at_crops",
    "read_ahead",
]

_log = logging.getLogger("xmix_data")

FLOAT32, FLOAT16, BFLOAT16 = range(3)
"""What normalised pixels are written as."""

ImageTable = npt.NDArray[np.int64]
"""(B, 11): the columns below, one row an image."""
_COLUMNS = 11
_ADDRESS, BYTES, _MODE, _HEIGHT, _WIDTH, _TOP, _LEFT, _BOX_H, _BOX_W, _FRACTION, _FLIP = range(
    _COLUMNS
)
_ELSEWHERE = 2
"""A mode of the table alone: another device makes the crop, at which place the address says."""

_FILTER_BITS = 22
"""Fixed-point bits of Pillow's resampling coefficients."""
_STRIP = 16
"""Rows that are decoded at a time: what libjpeg makes at once of an image with 4:2:0 chroma."""
_ALIGNED = 32
"""Bytes that are written past the caches at a time, at addresses that are multiples of it."""
_ROW_BYTES, _MARGIN, _DECODING, _CLOCK = range(4)
"""Numbers in a workspace: two of `_jpeg.c`'s layout, nanoseconds of decoding, a timespec."""

for _name in ("open", "read", "close"):
    # By address: loading the library into LLVM would show its libjpeg to all other libraries.
    llvmlite.binding.add_symbol(
        f"xmix_jpeg_{_name}", ctypes.cast(library()[f"xmix_jpeg_{_name}"], ctypes.c_void_p).value
    )
_i64 = types.int64
_jpeg_open: Any = types.ExternalFunction("xmix_jpeg_open", types.int32(*[_i64] * 10))
_jpeg_read: Any = types.ExternalFunction("xmix_jpeg_read", types.int32(*[_i64] * 3))
_jpeg_close: Any = types.ExternalFunction("xmix_jpeg_close", types.int32(_i64))
_memcpy: Any = types.ExternalFunction("memcpy", _i64(_i64, _i64, _i64))
_madvise: Any = types.ExternalFunction("madvise", types.int32(_i64, _i64, types.int32))
_clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, _i64))

_BASELINE, _EXTENDED, _CODES, _START, _END, _SCAN, _TABLES, _ADOBE = (
    0xC0,
    0xC1,
    0xC4,
    0xD8,
    0xD9,
    0xDA,
    0xDB,
    0xEE,
)
"""JPEG's markers: two kinds of frames, Huffman codes, start and end of the image, a scan,
quantisation tables, Adobe's colours."""
_RED = ord("R")
"""What RGB files call their first component."""
_WILLNEED = np.int32(3)
_CLOCK_MONOTONIC = 1
_PAGE = mmap.PAGESIZE


def image_table(
    addresses: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.uint64],
    modes: npt.NDArray[np.uint8],
    heights: npt.NDArray[np.uint16],
    widths: npt.NDArray[np.uint16],
    boxes: npt.NDArray[np.int32],
    flips: npt.NDArray[np.bool_],
    shape: tuple[int, int],
) -> ImageTable:
    """What the kernels read of a batch's images.

    Args:
        addresses, sizes, modes, heights, widths: (B,) each, as the beton's index has them.
        boxes: (B, 4): top, left, height, width.
        flips: (B,)
        shape: Height and width of the crops.
    """
    table = np.empty((len(addresses), _COLUMNS), np.int64)
    for column, values in (
        (_ADDRESS, addresses),
        (BYTES, sizes),
        (_MODE, modes),
        (_HEIGHT, heights),
        (_WIDTH, widths),
        (_FRACTION, dct_fractions(boxes, shape)),
        (_FLIP, flips),
    ):
        table[:, column] = values
    table[:, _TOP : _BOX_W + 1] = boxes
    return table


def no_images() -> ImageTable:
    """A table without rows, to compile kernels with."""
    return np.empty((0, _COLUMNS), np.int64)


def point_at_crops(
    images: ImageTable,
    items: npt.NDArray[np.int64],
    address: int | None,
    shape: tuple[int, int],
) -> None:
    """Say of some images that their crops are made, all but mirrored.

    Args:
        images: The table; changed.
        items: (K,) rows of it.
        address: Of (K, height, width, 3) uint8 on the host; ``None`` for crops on a device, which
            the host has nothing to do with.
        shape: Height and width of the crops.
    """
    height, width = shape
    places, size = np.arange(len(items)), height * width * 3
    images[items, _ADDRESS] = places if address is None else address + places * size
    images[items, _MODE] = _ELSEWHERE if address is None else RAW
    images[items, BYTES] = size
    images[items, _HEIGHT : _FRACTION + 1] = height, width, 0, 0, height, width, 1


def made_elsewhere(
    images: ImageTable,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which images' crops are on a device: rows of the table (K,), and their places there (K,)."""
    items = np.flatnonzero(images[:, _MODE] == _ELSEWHERE)
    return items, images[items, _ADDRESS]


def _kernel(function: Any) -> Any:
    """Compile on first use, kept on disk where a place for it can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError as error:
        if not getattr(_kernel, "said", False):
            _kernel.said = True  # type: ignore[attr-defined]
            _log.warning("kernels are compiled anew in every process: %s", error)
        return numba.njit(nogil=True)(function)


def _pointer_to_bytes(typing_context: Any, address: Any) -> Any:
    """An address as a pointer."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(_i64), codegen


def _copy_past_the_caches(typing_context: Any, to: Any, at: Any) -> Any:
    """Copy `_ALIGNED` bytes to an aligned address without reading its cache line first."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), _ALIGNED).as_pointer()
        target, source = (builder.inttoptr(x, kind) for x in arguments)
        store = builder.store(builder.load(source, align=1), target, align=_ALIGNED)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(_i64, _i64), codegen


_MIRRORED = 16
"""Pixels that are mirrored at a time."""


def _mirror_pixels(past_the_caches: bool) -> Any:
    """An intrinsic that copies `_MIRRORED` pixels of three bytes in reverse order."""

    def copy(typing_context: Any, to: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            count = 3 * _MIRRORED
            kind = ir.VectorType(ir.IntType(8), count)
            target, source = (builder.inttoptr(x, kind.as_pointer()) for x in arguments)
            pixels = builder.load(source, align=1)
            order = [count - 3 - x + 2 * (x % 3) for x in range(count)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), count), order)
            mirrored = builder.shuffle_vector(pixels, ir.Constant(kind, ir.Undefined), mask)
            store = builder.store(mirrored, target, align=_MIRRORED if past_the_caches else 1)
            if past_the_caches:
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
            return context.get_dummy_value()

        return types.void(_i64, _i64), codegen

    return intrinsic(copy)


_mirror_16: Any = _mirror_pixels(past_the_caches=False)
_stream_mirrored_16: Any = _mirror_pixels(past_the_caches=True)
_as_pointer: Any = intrinsic(_pointer_to_bytes)
_stream_32: Any = intrinsic(_copy_past_the_caches)
_carray: Any = numba.carray  # type: ignore[attr-defined]


@_kernel
def _bytes_at(address: int, count: int) -> Any:
    """An array over memory that somebody else owns."""
    return _carray(_as_pointer(address), (count,), np.uint8)


@_kernel
def _address(array: Any) -> Any:
    return np.int64(array.ctypes.data)


@_kernel
def _filter(
    inputs: int, outputs: int, offset: float, span: float, starts: Any, counts: Any, weights: Any
) -> None:
    """Pillow's antialiased bilinear filter: per output pixel, first input, number, weights.

    The outputs cover ``span`` of the inputs from ``offset`` on.
    """
    scale = span / outputs
    support = max(scale, 1.0)
    shrink = 1.0 / support
    values = np.empty(weights.shape[1], np.float64)
    for x in range(outputs):
        center = offset + (x + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), inputs)
        total = 0.0
        for i in range(last - first):
            values[i] = max(0.0, 1.0 - abs((i + first - center + 0.5) * shrink))
            total += values[i]
        for i in range(last - first):
            weights[x, i] = int(0.5 + values[i] / total * (1 << _FILTER_BITS))
        starts[x], counts[x] = first, last - first


@_kernel
def _taps(span: float, outputs: int) -> int:
    """The most inputs that one output pixel is made of."""
    return math.ceil(max(span / outputs, 1.0)) * 2 + 1


@_kernel
def _resample(pixels: Any, row_bytes: int, window: Any, box: Any, rows: Any, out: Any) -> None:
    """Resize ``box`` of a window to ``out`` (h, w*3), first along x, then along y.

    Rounds to uint8 after each pass: bit for bit what two resizes by Pillow give.

    Args:
        pixels: From the window's first pixel on.
        row_bytes: From one row to the next.
        window: Its height and width.
        box: top, left, height, width in the window; may lie between pixels.
        rows: Room for the window's rows, resized along x.
        out: The result.
    """
    window_h, window_w = window
    top, left, box_h, box_w = box
    out_h, length = out.shape[0], out.shape[1]
    out_w = length // 3
    half = np.int32(1 << (_FILTER_BITS - 1))

    # Enlarging takes at most two inputs an output, which are written out; more come in a loop.
    starts, counts = np.empty(out_w, np.int64), np.empty(out_w, np.int64)
    weights = np.empty((out_w, _taps(box_w, out_w)), np.int32)
    _filter(window_w, out_w, left, box_w, starts, counts, weights)
    for y in range(window_h):
        line = pixels[y * row_bytes :]
        row = rows[y * length : (y + 1) * length]
        for x in range(out_w):
            at = starts[x] * 3
            weight = weights[x, 0]
            red = half + line[at] * weight
            green = half + line[at + 1] * weight
            blue = half + line[at + 2] * weight
            if counts[x] > 1:
                weight = weights[x, 1]
                red += line[at + 3] * weight
                green += line[at + 4] * weight
                blue += line[at + 5] * weight
            for i in range(2, counts[x]):
                weight = weights[x, i]
                red += line[at + 3 * i] * weight
                green += line[at + 3 * i + 1] * weight
                blue += line[at + 3 * i + 2] * weight
            row[3 * x] = red >> _FILTER_BITS
            row[3 * x + 1] = green >> _FILTER_BITS
            row[3 * x + 2] = blue >> _FILTER_BITS

    starts, counts = np.empty(out_h, np.int64), np.empty(out_h, np.int64)
    weights = np.empty((out_h, _taps(box_h, out_h)), np.int32)
    _filter(window_h, out_h, top, box_h, starts, counts, weights)
    sums = np.empty(length, np.int32)
    for y in range(out_h):
        one, two = starts[y], starts[y] + min(1, counts[y] - 1)
        first, second = (
            rows[one * length : (one + 1) * length],
            rows[two * length : (two + 1) * length],
        )
        weight_1 = weights[y, 0]
        weight_2 = weights[y, 1] if counts[y] > 1 else np.int32(0)
        for x in range(length):
            sums[x] = half + np.int32(first[x]) * weight_1 + np.int32(second[x]) * weight_2
        for i in range(2, counts[y]):
            weight = weights[y, i]
            more = rows[(one + i) * length : (one + i + 1) * length]
            for x in range(length):
                sums[x] += np.int32(more[x]) * weight
        for x in range(length):
            out[y, x] = sums[x] >> _FILTER_BITS


@_kernel
def _open(image: Any, height: int, width: int, work: Any) -> tuple[int, bool, int, int]:
    """Begin an image: (status, whether its rows are still to be decoded, address, bytes a row)."""
    decoder, strip, _, window, rows, resized, state = work
    top, left, box_h, box_w = image[_TOP], image[_LEFT], image[_BOX_H], image[_BOX_W]
    resizes = box_h != height or box_w != width
    if image[_MODE] == RAW:
        row_bytes = image[_WIDTH] * 3
        at = image[_ADDRESS] + top * row_bytes + left * 3
        if not resizes:
            return OK, False, at, row_bytes
        pixels = _bytes_at(at, (box_h - 1) * row_bytes + box_w * 3)
        box = (0.0, 0.0, float(box_h), float(box_w))
        _resample(pixels, row_bytes, (box_h, box_w), box, rows, resized)
        return OK, False, _address(resized), width * 3

    shrink = image[_FRACTION]
    first_row, first_column = top // shrink, left // shrink
    window_h = -(-(top + box_h) // shrink) - first_row
    window_w = -(-(left + box_w) // shrink) - first_column
    started = _nanoseconds(state)
    status = _jpeg_open(
        decoder,
        image[_ADDRESS],
        image[BYTES],
        image[_HEIGHT],
        image[_WIDTH],
        shrink,
        first_row,
        first_column,
        window_w,
        _address(state),
    )
    row_bytes, margin = state[_ROW_BYTES], state[_MARGIN]
    if resizes and status == OK:
        status = _jpeg_read(decoder, _address(window), window_h)
        if status == OK:
            status = _jpeg_close(decoder)
    state[_DECODING] += _nanoseconds(state) - started
    if not resizes:
        return status, True, _address(strip) + margin, row_bytes
    if status == OK:
        box = (
            top / shrink - first_row,
            left / shrink - first_column,
            box_h / shrink,
            box_w / shrink,
        )
        _resample(window[margin:], row_bytes, (window_h, window_w), box, rows, resized)
    return status, False, _address(resized), width * 3


@_kernel
def _nanoseconds(state: Any) -> Any:
    _clock_gettime(np.int32(_CLOCK_MONOTONIC), _address(state[_CLOCK:]))
    return state[_CLOCK] * 1_000_000_000 + state[_CLOCK + 1]


@_kernel
def _strip(
    streams: bool, at: int, row_bytes: int, y: int, count: int, flip: int, length: int, work: Any
) -> tuple[int, int, int]:
    """The next ``count`` rows, decoded and mirrored if need be: (status, address, bytes a row)."""
    decoder, decoded, mirrored, _, _, _, state = work
    status = OK
    if streams:
        started = _nanoseconds(state)
        status = _jpeg_read(decoder, _address(decoded), count)
        state[_DECODING] += _nanoseconds(state) - started
    else:
        at += y * row_bytes
    if flip == 0:
        return status, at, row_bytes
    for row in range(count):
        _mirror(_address(mirrored) + row * length, at + row * row_bytes, length, False)
    return status, _address(mirrored), length


@_kernel
def _close(status: int, streams: bool, work: Any) -> Any:
    return _jpeg_close(work[0]) if streams and status == OK else status


@_kernel
def read_ahead(addresses: Any, sizes: Any) -> None:
    """Ask the system to have these bytes in memory soon, without waiting for them.

    Args:
        addresses, sizes: (B,) uint64, of mapped files.
    """
    for item in range(len(addresses)):
        start = np.int64(addresses[item]) // _PAGE * _PAGE
        _madvise(start, np.int64(addresses[item]) + np.int64(sizes[item]) - start, _WILLNEED)


@_kernel
def _stream(to: int, at: int, count: int) -> None:
    """Copy bytes that this core will not read again."""
    done = 0
    if to % _ALIGNED == 0:
        done = count - count % _ALIGNED
        for x in range(0, done, _ALIGNED):
            _stream_32(to + x, at + x)
    if done < count:
        _memcpy(to + done, at + done, count - done)


@_kernel
def _mirror(to: int, at: int, count: int, stream: bool) -> None:
    """Copy a row of ``count`` bytes, mirrored pixel by pixel; past the caches if ``stream``."""
    block = 3 * _MIRRORED
    done = count - count % block
    if stream and to % _MIRRORED == 0:
        for x in range(0, done, block):
            _stream_mirrored_16(to + x, at + count - block - x)
    else:
        for x in range(0, done, block):
            _mirror_16(to + x, at + count - block - x)
    row, mirrored = _bytes_at(to, count), _bytes_at(at, count)
    for x in range(done, count, 3):
        for channel in range(3):
            row[x + channel] = mirrored[count - 3 - x + channel]


@_kernel
def crop_images(
    start: int, stop: int, images: Any, height: int, width: int, work: Any, out: int, status: Any
) -> None:
    """Cut, resize and mirror images ``start .. stop - 1`` of a batch, as decoded.

    Args:
        start, stop: The stripe of the batch.
        images: An `ImageTable`.
        height, width: Of the crops.
        work: One of a `Workspace`'s two sets of buffers.
        out: Address of (B, height, width, 3) uint8.
        status: (B,) uint8: `OK`, `DAMAGED` or `WRONG_SIZE`; only `OK` images are whole.
    """
    count = width * 3
    for item in range(start, stop):
        image = images[item]
        if image[_MODE] == _ELSEWHERE:
            status[item] = OK
            continue
        state, streams, at, row_bytes = _open(image, height, width, work)
        to = out + item * height * count
        y = 0
        while y < height and state == OK:
            rows = min(_STRIP, height - y)
            state, strip, strip_bytes = _strip(streams, at, row_bytes, y, rows, 0, count, work)
            for row in range(rows):
                if image[_FLIP]:
                    _mirror(to + row * count, strip + row * strip_bytes, count, True)
                else:
                    _stream(to + row * count, strip + row * strip_bytes, count)
            to += rows * count
            y += rows
        status[item] = _close(state, streams, work)


@_kernel
def plain_jpegs(images: Any, plain: Any) -> None:
    """Find the JPEGs that every decoder takes for the same image, by their headers and last bytes.

    Whole, of the size in the index, with one scan and tables of their own, grey or YCbCr. It costs
    a microsecond an image; what is damaged between header and end is not seen.

    Args:
        images: An `ImageTable`.
        plain: (B,) bool, the result.
    """
    for item in range(len(images)):
        image = images[item]
        plain[item] = image[_MODE] == JPG and _is_plain(
            _bytes_at(image[_ADDRESS], image[BYTES]), image[_HEIGHT], image[_WIDTH]
        )


@_kernel
def _is_plain(data: Any, height: int, width: int) -> bool:
    size = len(data)
    if size < 4 or data[0] != 0xFF or data[1] != 0xD8 or data[size - 2] != 0xFF:
        return False
    if data[size - 1] != 0xD9 or height * width > MOST_PIXELS_A_BYTE * size:
        return False
    components, quantised, coded = 0, False, False
    at = 2
    while at + 4 <= size and data[at] == 0xFF:
        marker, length = data[at + 1], np.int64(data[at + 2]) << 8 | data[at + 3]
        if length < 2 or at + 2 + length > size:
            return False
        if marker == _SCAN:
            return quantised and coded and components > 0 and data[at + 4] == components
        if marker in (_BASELINE, _EXTENDED):
            if components > 0 or length < 11 or data[at + 4] != 8:
                return False
            components = data[at + 9]
            if (
                np.int64(data[at + 5]) << 8 | data[at + 6] != height
                or np.int64(data[at + 7]) << 8 | data[at + 8] != width
                or not (components == 1 or (components == 3 and data[at + 10] != _RED))
            ):
                return False
        elif marker == _ADOBE and length >= 14 and data[at + 15] != 1:
            return False  # its colours are no YCbCr
        elif marker == _TABLES:
            quantised = True
        elif marker == _CODES:
            coded = True
        elif 0xC0 <= marker <= 0xCF or marker in (_START, _END):
            return False  # progressive, lossless, arithmetic; or another image inside
        at += 2 + length
    return False


@_kernel
def decode_whole(start: int, stop: int, images: Any, work: Any) -> None:
    """Decode whole images into the window's buffer, one over the other: what a benchmark calls
    the decode limit. Arguments as of `crop_images`."""
    decoder, _, _, window, _, _, state = work
    for item in range(start, stop):
        image = images[item]
        height, width = image[_HEIGHT], image[_WIDTH]
        _jpeg_open(
            decoder, image[_ADDRESS], image[BYTES], height, width, 1, 0, 0, width, _address(state)
        )
        _jpeg_read(decoder, _address(window), height)
        _jpeg_close(decoder)


@_kernel
def copy_crops(start: int, stop: int, images: Any, height: int, width: int, out: int) -> None:
    """Copy the rows of raw crops, and nothing else: what a benchmark calls the copy limit.

    Arguments as of `crop_images`."""
    count = width * 3
    for item in range(start, stop):
        image = images[item]
        row_bytes = image[_WIDTH] * 3
        at = image[_ADDRESS] + image[_TOP] * row_bytes + image[_LEFT] * 3
        for row in range(height):
            _memcpy(out + (item * height + row) * count, at + row * row_bytes, count)


@_kernel
def _write(line: Any, bits: Any, kind: int, to: int) -> None:
    """Write a row of float32 as ``kind``, rounded to nearest, ties to even."""
    if kind == FLOAT32:
        _stream(to, _address(line), len(line) * 4)
        return
    whole = line.view(np.uint32)
    if kind == BFLOAT16:
        for x in range(len(line)):
            odd = (whole[x] >> np.uint32(16)) & np.uint32(1)
            bits[x] = (whole[x] + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    else:
        for x in range(len(line)):
            bits[x] = _half(line[x], whole[x])
    _stream(to, _address(bits), len(line) * 2)


@_kernel
def _half(value: float, whole: int) -> Any:
    """The bits of a float16, from a finite float32 and its bits."""
    sign = (whole >> np.uint32(16)) & np.uint32(0x8000)
    size = whole & np.uint32(0x7FFFFFFF)
    odd = (size >> np.uint32(13)) & np.uint32(1)
    normal = (size - np.uint32(112 << 23) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    # Below 2**-14 a float16 counts in steps of 2**-24, as do float32's bits around 2**-1.
    small = np.uint32(np.rint(abs(value) * np.float32(2.0**24)))
    bits = small if size < np.uint32(113 << 23) else normal
    return np.uint16(sign | min(bits, np.uint32(0x7C00)))


@_kernel
def normalise_images(
    start: int,
    stop: int,
    images: Any,
    height: int,
    width: int,
    work: Any,
    scale: Any,
    shift: Any,
    kind: int,
    out: int,
    status: Any,
) -> None:
    """As `crop_images`, and normalise: ``out = scale * pixel + shift``.

    Args:
        start, stop, images, height, width, work, status: As in `crop_images`.
        scale, shift: (3,) float64, one a channel.
        kind: `FLOAT32`, `FLOAT16` or `BFLOAT16`.
        out: Address of (B, height, width, 3) of that kind.
    """
    count = width * 3
    values, bits = np.empty(count, np.float32), np.empty(count, np.uint16)
    scales, shifts = np.empty(count, np.float32), np.empty(count, np.float32)
    for x in range(count):
        scales[x], shifts[x] = scale[x % 3], shift[x % 3]
    out_bytes = count * (4 if kind == FLOAT32 else 2)
    for item in range(start, stop):
        image = images[item]
        state, streams, at, row_bytes = _open(image, height, width, work)
        to = out + item * height * out_bytes
        y = 0
        while y < height and state == OK:
            rows = min(_STRIP, height - y)
            state, strip, strip_bytes = _strip(
                streams, at, row_bytes, y, rows, image[_FLIP], count, work
            )
            for row in range(rows):
                pixels = _bytes_at(strip + row * strip_bytes, count)
                for x in range(count):
                    values[x] = scales[x] * np.float32(pixels[x]) + shifts[x]
                _write(values, bits, kind, to + row * out_bytes)
            to += rows * out_bytes
            y += rows
        status[item] = _close(state, streams, work)


@_kernel
def mix_images(
    start: int,
    stop: int,
    targets: Any,
    sources: Any,
    lam: Any,
    height: int,
    width: int,
    target_work: Any,
    source_work: Any,
    scale: Any,
    shift: Any,
    kind: int,
    out: int,
    target_status: Any,
    source_status: Any,
) -> None:
    """Decode, cut, mirror, normalise and mix both images of each pair in one go (Eq. 4).

    ``out = scale * (lam * target + (1 - lam) * source) + shift``: neither image leaves the cache.

    Args:
        start, stop, height, width: As in `crop_images`.
        targets, target_work, target_status: As in `crop_images`, likewise sources.
        lam: (B,) float32, the weight of the target image.
        scale, shift, kind, out: As in `normalise_images`.
    """
    count = width * 3
    values, bits = np.empty(count, np.float32), np.empty(count, np.uint16)
    target_scales, source_scales = np.empty(count, np.float32), np.empty(count, np.float32)
    shifts = np.empty(count, np.float32)
    for x in range(count):
        shifts[x] = shift[x % 3]
    out_bytes = count * (4 if kind == FLOAT32 else 2)
    for item in range(start, stop):
        target, source = targets[item], sources[item]
        weight = np.float64(lam[item])
        for x in range(count):
            target_scales[x] = weight * scale[x % 3]
            source_scales[x] = (1.0 - weight) * scale[x % 3]
        t_state, t_streams, t_at, t_row_bytes = _open(target, height, width, target_work)
        s_state, s_streams, s_at, s_row_bytes = _open(source, height, width, source_work)
        to = out + item * height * out_bytes
        y = 0
        while y < height and t_state == OK and s_state == OK:
            rows = min(_STRIP, height - y)
            t_state, t_strip, t_bytes = _strip(
                t_streams, t_at, t_row_bytes, y, rows, target[_FLIP], count, target_work
            )
            s_state, s_strip, s_bytes = _strip(
                s_streams, s_at, s_row_bytes, y, rows, source[_FLIP], count, source_work
            )
            for row in range(rows):
                t = _bytes_at(t_strip + row * t_bytes, count)
                s = _bytes_at(s_strip + row * s_bytes, count)
                for x in range(count):
                    values[x] = (
                        target_scales[x] * np.float32(t[x])
                        + source_scales[x] * np.float32(s[x])
                        + shifts[x]
                    )
                _write(values, bits, kind, to + row * out_bytes)
            to += rows * out_bytes
            y += rows
        target_status[item] = _close(t_state, t_streams, target_work)
        source_status[item] = _close(s_state, s_streams, source_work)


class Workspace:
    """What one thread needs beside the batch: decoders and buffers for two images.

    Args:
        largest: The largest stored image, in pixels.
        tallest, widest: The largest stored height and width, in pixels.
        shape: Height and width of the crops.
        resizes: Whether crops are resized.
    """

    def __init__(
        self, largest: int, tallest: int, widest: int, shape: tuple[int, int], *, resizes: bool
    ) -> None:
        height, width = shape
        self._decoders = Decoder(), Decoder()
        self.target, self.source = (
            (
                decoder.handle,
                np.empty(_STRIP * widest * 3, np.uint8),
                np.empty(_STRIP * width * 3, np.uint8),
                np.empty(largest * 3 if resizes else 0, np.uint8),
                np.empty(tallest * width * 3 if resizes else 0, np.uint8),
                np.empty((height, width * 3), np.uint8),
                np.zeros(_CLOCK + 2, np.int64),
            )
            for decoder in self._decoders
        )

    @property
    def decoding_s(self) -> float:
        """Seconds that JPEG decoding took so far."""
        return float(self.target[-1][_DECODING] + self.source[-1][_DECODING]) / 1e9
