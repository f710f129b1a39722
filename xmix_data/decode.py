"""The host kernels: stored bytes to cropped uint8 pixels, or straight to normalised, mixed floats.

Comes in: for each image the address of its bytes, its mode, size, box and flip. Goes out: pixels
in a caller's array, and a status per image. The kernels hold no lock and start no thread; each
worker thread of a backend calls them on a stripe of a batch with a `Workspace` of its own.

JPEG is decoded by libjpeg-turbo's TurboJPEG, the library that libffcv itself uses, with the
accurate DCT, as Pillow does. (libffcv's own ``imdecode`` keeps a handle per
thread that is never freed, uses the fast DCT, and hides the return code of a header that
disagrees with the index.)
"""

from __future__ import annotations

import logging
import math
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xmix_data.encoding import RAW, Decompressor, libffcv_path, turbojpeg

__all__ = [
    "DAMAGED",
    "OK",
    "WRONG_SIZE",
    "Workspace",
    "crop_images",
    "mix_images",
    "normalise_images",
]

_log = logging.getLogger("xmix_data")

OK, DAMAGED, WRONG_SIZE = 0, 1, 2
"""Status of an image: decoded; not decodable without a warning; not of the size in the index."""

turbojpeg()  # reports a missing system library in one line, before LLVM would
llvmlite.binding.load_library_permanently(str(libffcv_path()))

_i32, _u64 = types.int32, types.uint64
_tj_header: Any = types.ExternalFunction(
    "tjDecompressHeader3", _i32(_u64, _u64, _u64, _u64, _u64, _u64, _u64)
)
_tj_decompress: Any = types.ExternalFunction(
    "tjDecompress2", _i32(_u64, _u64, _u64, _u64, _i32, _i32, _i32, _i32, _i32)
)
_memcpy: Any = types.ExternalFunction("memcpy", _u64(_u64, _u64, _u64))

_PIXEL_FORMAT_RGB = 0
_FILTER_BITS = 22
"""Fixed-point bits of Pillow's resampling coefficients."""


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

    return types.voidptr(_u64), codegen


def _copy_4_bytes(typing_context: Any, to: Any, at: Any) -> Any:
    """Copy four bytes between any two addresses, in one load and one store."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = [builder.inttoptr(x, ir.IntType(32).as_pointer()) for x in arguments]
        builder.store(builder.load(pointers[1], align=1), pointers[0], align=1)
        return context.get_dummy_value()

    return types.void(_u64, _u64), codegen


_as_pointer: Any = intrinsic(_pointer_to_bytes)
_copy_4: Any = intrinsic(_copy_4_bytes)
_carray: Any = numba.carray  # type: ignore[attr-defined]


@_kernel
def _bytes_at(address: int, count: int) -> Any:
    """An array over memory that somebody else owns."""
    return _carray(_as_pointer(address), (count,), np.uint8)


@_kernel
def _pixels(
    handle: int, address: int, size: int, mode: int, height: int, width: int, buffer: Any,
    header: Any,
) -> tuple[int, int]:  # fmt: skip
    """(status, address of H*W*3 pixels): raw ones where they lie, JPEG decoded to ``buffer``."""
    if mode == RAW:
        return OK, address
    decoded = np.uint64(buffer.ctypes.data)
    at = header.ctypes.data
    if _tj_header(handle, address, size, at, at + 4, at + 8, at + 12) != 0:
        # libjpeg-turbo 2 stays inside a bad header and refuses all later images, until a
        # decompression fails as well.
        _tj_decompress(handle, address, size, decoded, width, 0, height, _PIXEL_FORMAT_RGB, 0)
        return DAMAGED, decoded
    if header[0] != width or header[1] != height:
        return WRONG_SIZE, decoded
    if _tj_decompress(handle, address, size, decoded, width, 0, height, _PIXEL_FORMAT_RGB, 0) != 0:
        return DAMAGED, decoded
    return OK, decoded


@_kernel
def _filter(inputs: int, outputs: int, starts: Any, counts: Any, weights: Any) -> None:
    """Pillow's antialiased bilinear filter: per output pixel, first input, number, weights."""
    scale = inputs / outputs
    support = max(scale, 1.0)
    shrink = 1.0 / support
    values = np.empty(weights.shape[1], np.float64)
    for x in range(outputs):
        center = (x + 0.5) * scale
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
def _taps(inputs: int, outputs: int) -> int:
    """The most inputs that one output pixel is made of."""
    return math.ceil(max(inputs / outputs, 1.0)) * 2 + 1


@_kernel
def _resample(pixels: Any, row_bytes: int, box: Any, rows: Any, out: Any) -> None:
    """Resize ``box`` of an image to ``out`` (h, w*3), first along x, then along y.

    Rounds to uint8 after each pass: bit for bit what two resizes by Pillow give.
    """
    top, left, box_h, box_w = box[0], box[1], box[2], box[3]
    out_h, length = out.shape[0], out.shape[1]
    out_w = length // 3
    half = np.int32(1 << (_FILTER_BITS - 1))

    # Enlarging takes at most two inputs an output, which are written out; more come in a loop.
    starts, counts = np.empty(out_w, np.int64), np.empty(out_w, np.int64)
    weights = np.empty((out_w, _taps(box_w, out_w)), np.int32)
    _filter(box_w, out_w, starts, counts, weights)
    for y in range(box_h):
        line = pixels[(top + y) * row_bytes + left * 3 :]
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
    _filter(box_h, out_h, starts, counts, weights)
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
def _window(
    handle: int, item: int, images: Any, boxes: Any, shape: Any, work: Any
) -> tuple[int, int, int]:
    """One image, decoded and resized if need be: (status, address of its box, bytes a row)."""
    addresses, sizes, modes, heights, widths = images
    buffer, rows, resized, header = work
    height, width = np.int64(heights[item]), np.int64(widths[item])
    status, pixels = _pixels(
        handle, addresses[item], sizes[item], modes[item], height, width, buffer, header
    )
    top, left = np.int64(boxes[item, 0]), np.int64(boxes[item, 1])
    if status == OK and (boxes[item, 2] != shape[0] or boxes[item, 3] != shape[1]):
        _resample(_bytes_at(pixels, height * width * 3), width * 3, boxes[item], rows, resized)
        return status, np.uint64(resized.ctypes.data), shape[1] * 3
    return status, pixels + np.uint64((top * width + left) * 3), width * 3


@_kernel
def _copy_row(at: int, flip: bool, to: int, count: int) -> None:
    """Copy a row of ``count`` bytes, mirrored pixel by pixel if ``flip``."""
    if not flip:
        _memcpy(to, at, np.uint64(count))
        return
    # A pixel is three bytes; copying four is faster. The fourth is the next pixel's first, which
    # is written right after; so all but the first and the last pixel stay inside both rows.
    last = np.uint64(count - 3)
    row, mirrored = _bytes_at(to, count), _bytes_at(at, count)
    row[0], row[1], row[2] = mirrored[count - 3], mirrored[count - 2], mirrored[count - 1]
    for x in range(np.uint64(3), last, np.uint64(3)):
        _copy_4(to + x, at + last - x)
    if count > 3:
        row[count - 3], row[count - 2], row[count - 1] = mirrored[0], mirrored[1], mirrored[2]


@_kernel
def crop_images(
    handle: int, start: int, stop: int, images: Any, boxes: Any, flips: Any, work: Any, out: Any,
    status: Any,
) -> None:  # fmt: skip
    """Cut, resize and mirror images ``start .. stop - 1`` of a batch, as decoded.

    Args:
        handle: Of the thread's decompressor.
        start, stop: The stripe of the batch.
        images: `Images` of the batch.
        boxes: (B, 4) int32: top, left, height, width.
        flips: (B,) bool.
        work: One of a `Workspace`'s two sets of buffers.
        out: (B, H, W, 3) uint8.
        status: (B,) uint8: `OK`, `DAMAGED` or `WRONG_SIZE`; only `OK` images are written.
    """
    shape = (out.shape[1], out.shape[2])
    count = shape[1] * 3
    to = np.uint64(out.ctypes.data) + np.uint64(start * shape[0] * count)
    for item in range(start, stop):
        status[item], at, row_bytes = _window(handle, item, images, boxes, shape, work)
        for _ in range(shape[0]):
            if status[item] == OK:
                _copy_row(at, flips[item], to, count)
            at += np.uint64(row_bytes)
            to += np.uint64(count)


@_kernel
def _row(at: int, flip: bool, line: Any) -> Any:
    """A row of pixels: where it lies, or mirrored into ``line``."""
    if not flip:
        return _bytes_at(at, len(line))
    mirrored = np.uint64(line.ctypes.data)
    _copy_row(at, True, mirrored, len(line))
    return _bytes_at(mirrored, len(line))


@_kernel
def normalise_images(
    handle: int, start: int, stop: int, images: Any, boxes: Any, flips: Any, work: Any, scale: Any,
    shift: Any, out: Any, status: Any,
) -> None:  # fmt: skip
    """As `crop_images`, and normalise: ``out = scale * pixel + shift``.

    Args:
        handle, start, stop, images, boxes, flips, work, status: As in `crop_images`.
        scale, shift: (3,) float64, one a channel.
        out: (B, H, W, 3) float32.
    """
    shape = (out.shape[1], out.shape[2])
    count = shape[1] * 3
    line = np.empty(count, np.uint8)
    scales, shifts = np.empty(count, np.float32), np.empty(count, np.float32)
    for x in range(count):
        scales[x], shifts[x] = scale[x % 3], shift[x % 3]
    rows = out.reshape(out.shape[0] * shape[0], count)
    for item in range(start, stop):
        status[item], at, row_bytes = _window(handle, item, images, boxes, shape, work)
        if status[item] != OK:
            continue
        for y in range(shape[0]):
            pixels = _row(at + np.uint64(y * row_bytes), flips[item], line)
            row = rows[item * shape[0] + y]
            for x in range(count):
                row[x] = scales[x] * np.float32(pixels[x]) + shifts[x]


@_kernel
def mix_images(
    handle: int, start: int, stop: int,
    target: Any, target_boxes: Any, target_flips: Any, target_work: Any,
    source: Any, source_boxes: Any, source_flips: Any, source_work: Any,
    lam: Any, scale: Any, shift: Any, out: Any, target_status: Any, source_status: Any,
) -> None:  # fmt: skip
    """Decode, cut, mirror, normalise and mix both images of each pair in one go (Eq. 4).

    ``out = scale * (lam * target + (1 - lam) * source) + shift``: neither image leaves the cache.

    Args:
        handle, start, stop: As in `crop_images`.
        target, target_boxes, target_flips, target_work: As in `crop_images`, likewise source.
        lam: (B,) float32, the weight of the target image.
        scale, shift: (3,) float64, one a channel.
        out: (B, H, W, 3) float32.
        target_status, source_status: As in `crop_images`.
    """
    shape = (out.shape[1], out.shape[2])
    count = shape[1] * 3
    target_line, source_line = np.empty(count, np.uint8), np.empty(count, np.uint8)
    target_scales, source_scales = np.empty(count, np.float32), np.empty(count, np.float32)
    shifts = np.empty(count, np.float32)
    for x in range(count):
        shifts[x] = shift[x % 3]
    rows = out.reshape(out.shape[0] * shape[0], count)
    for item in range(start, stop):
        target_status[item], target_at, target_bytes = _window(
            handle, item, target, target_boxes, shape, target_work
        )
        source_status[item], source_at, source_bytes = _window(
            handle, item, source, source_boxes, shape, source_work
        )
        if target_status[item] != OK or source_status[item] != OK:
            continue
        weight = np.float64(lam[item])
        for x in range(count):
            target_scales[x] = weight * scale[x % 3]
            source_scales[x] = (1.0 - weight) * scale[x % 3]
        for y in range(shape[0]):
            t = _row(target_at + np.uint64(y * target_bytes), target_flips[item], target_line)
            s = _row(source_at + np.uint64(y * source_bytes), source_flips[item], source_line)
            row = rows[item * shape[0] + y]
            for x in range(count):
                row[x] = (
                    target_scales[x] * np.float32(t[x])
                    + source_scales[x] * np.float32(s[x])
                    + shifts[x]
                )


class Workspace:
    """What one thread needs beside the batch: a JPEG handle and buffers for two images.

    Args:
        largest: The largest stored image, in pixels.
        tallest: The largest stored height, in pixels.
        shape: Height and width of the crops.
    """

    def __init__(self, largest: int, tallest: int, shape: tuple[int, int]) -> None:
        height, width = shape
        self.decompressor = Decompressor()
        self.target, self.source = (
            (
                np.empty(largest * 3, np.uint8),
                np.empty(tallest * width * 3, np.uint8),
                np.empty((height, width * 3), np.uint8),
                np.zeros(4, np.int32),
            )
            for _ in range(2)
        )


Images = tuple[
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint8],
    npt.NDArray[np.uint16],
    npt.NDArray[np.uint16],
]
"""Addresses, byte sizes, modes, heights and widths (B,) of a batch's images."""
