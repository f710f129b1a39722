"""The host kernels: stored bytes to cropped uint8 pixels, or straight to normalised, mixed floats.

Comes in: a row of an image table for each image (where its bytes are, its size, its box, whether
it is mirrored). Goes out: pixels at a caller's address, and a status per image. The kernels hold
no lock and start no thread; each worker thread of a backend calls them on a stripe of a batch with
a `Workspace` of its own.

A JPEG that is only cropped passes through in strips of a few rows, which never leave the
first-level cache between the decoder and the batch; the batch itself is written past the caches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xmix_data.beton.layout import RAW
from xmix_data.compiled import kernel
from xmix_data.decode.llvm import (
    ALIGNED,
    MIRRORED,
    address_of,
    bytes_at,
    clock_gettime,
    jpeg_close,
    jpeg_open,
    jpeg_read,
    memcpy,
    mirror_16,
    stream_32,
    stream_mirrored_16,
)
from xmix_data.decode.table import (
    ADDRESS,
    BOX_H,
    BOX_W,
    BYTES,
    ELSEWHERE,
    FLIP,
    FRACTION,
    HEIGHT,
    LEFT,
    MODE,
    TOP,
    WIDTH,
)
from xmix_data.jpeg import OK, Decoder

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "Workspace",
    "crop_images",
    "mix_images",
    "normalise_images",
]


FLOAT32, FLOAT16, BFLOAT16 = range(3)
"""Number formats in which normalised pixels are written."""

_FILTER_BITS = 22
"""Number of fixed-point bits of Pillow's resampling coefficients."""
_STRIP = 16
"""Number of rows decoded at a time: as many as libjpeg makes at once with 4:2:0 chroma."""

_ROW_BYTES, _MARGIN, _DECODING, _CLOCK = range(4)
"""Places of numbers in a workspace: two of `_jpeg.c`'s layout, decoding time in ns, a timespec."""

_CLOCK_MONOTONIC = 1


@kernel
def _filter(
    inputs: int, outputs: int, offset: float, span: float, starts: Any, counts: Any, weights: Any
) -> None:
    """Compute Pillow's antialiased bilinear filter.

    Each output pixel gets its first input, the number of its inputs, and their weights. The outputs
    cover ``span`` of the inputs from ``offset`` on.
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


@kernel
def _taps(span: float, outputs: int) -> int:
    """Return the most inputs that one output pixel is made of."""
    return math.ceil(max(span / outputs, 1.0)) * 2 + 1


@kernel
def _resample(pixels: Any, row_bytes: int, window: Any, box: Any, rows: Any, out: Any) -> None:
    """Resize ``box`` of a window to ``out`` (h, w*3), first along x, then along y.

    Rounds to uint8 after each pass: bit for bit what two resizes by Pillow give.

    Args:
        pixels: Bytes from the window's first pixel on.
        row_bytes: Number of bytes from one row to the next.
        window: Height and width of the window.
        box: Top, left, height, width in the window; may lie between pixels.
        rows: Room for the window's rows, resized along x.
        out: Room for the result.
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


@kernel
def _open(image: Any, height: int, width: int, work: Any) -> tuple[int, bool, int, int]:
    """Begin an image.

    Returns:
        Its status, whether its rows are still to be decoded, their address, and the bytes a row.
    """
    decoder, strip, _, window, rows, resized, state = work
    top, left, box_h, box_w = image[TOP], image[LEFT], image[BOX_H], image[BOX_W]
    resizes = box_h != height or box_w != width
    if image[MODE] == RAW:
        row_bytes = image[WIDTH] * 3
        at = image[ADDRESS] + top * row_bytes + left * 3
        if not resizes:
            return OK, False, at, row_bytes
        pixels = bytes_at(at, (box_h - 1) * row_bytes + box_w * 3)
        box = (0.0, 0.0, float(box_h), float(box_w))
        _resample(pixels, row_bytes, (box_h, box_w), box, rows, resized)
        return OK, False, address_of(resized), width * 3

    shrink = image[FRACTION]
    first_row, first_column = top // shrink, left // shrink
    window_h = -(-(top + box_h) // shrink) - first_row
    window_w = -(-(left + box_w) // shrink) - first_column
    started = _nanoseconds(state)
    status = jpeg_open(
        decoder,
        image[ADDRESS],
        image[BYTES],
        image[HEIGHT],
        image[WIDTH],
        shrink,
        first_row,
        first_column,
        window_w,
        address_of(state),
    )
    row_bytes, margin = state[_ROW_BYTES], state[_MARGIN]
    if resizes and status == OK:
        status = jpeg_read(decoder, address_of(window), window_h)
        if status == OK:
            status = jpeg_close(decoder)
    state[_DECODING] += _nanoseconds(state) - started
    if not resizes:
        return status, True, address_of(strip) + margin, row_bytes
    if status == OK:
        box = (
            top / shrink - first_row,
            left / shrink - first_column,
            box_h / shrink,
            box_w / shrink,
        )
        _resample(window[margin:], row_bytes, (window_h, window_w), box, rows, resized)
    return status, False, address_of(resized), width * 3


@kernel
def _nanoseconds(state: Any) -> Any:
    clock_gettime(np.int32(_CLOCK_MONOTONIC), address_of(state[_CLOCK:]))
    return state[_CLOCK] * 1_000_000_000 + state[_CLOCK + 1]


@kernel
def _strip(
    streams: bool, at: int, row_bytes: int, y: int, count: int, flip: int, length: int, work: Any
) -> tuple[int, int, int]:
    """Decode and mirror the next ``count`` rows, if need be.

    Returns:
        The status, the rows' address, and the bytes a row.
    """
    decoder, decoded, mirrored, _, _, _, state = work
    status = OK
    if streams:
        started = _nanoseconds(state)
        status = jpeg_read(decoder, address_of(decoded), count)
        state[_DECODING] += _nanoseconds(state) - started
    else:
        at += y * row_bytes
    if flip == 0:
        return status, at, row_bytes
    for row in range(count):
        _mirror(address_of(mirrored) + row * length, at + row * row_bytes, length, False)
    return status, address_of(mirrored), length


@kernel
def _close(status: int, streams: bool, work: Any) -> Any:
    return jpeg_close(work[0]) if streams and status == OK else status


@kernel
def _stream(to: int, at: int, count: int) -> None:
    """Copy bytes past the caches, as this core will not read them again."""
    done = 0
    if to % ALIGNED == 0:
        done = count - count % ALIGNED
        for x in range(0, done, ALIGNED):
            stream_32(to + x, at + x)
    if done < count:
        memcpy(to + done, at + done, count - done)


@kernel
def _mirror(to: int, at: int, count: int, stream: bool) -> None:
    """Copy a row of ``count`` bytes, mirrored pixel by pixel; past the caches if ``stream``."""
    block = 3 * MIRRORED
    done = count - count % block
    if stream and to % MIRRORED == 0:
        for x in range(0, done, block):
            stream_mirrored_16(to + x, at + count - block - x)
    else:
        for x in range(0, done, block):
            mirror_16(to + x, at + count - block - x)
    row, mirrored = bytes_at(to, count), bytes_at(at, count)
    for x in range(done, count, 3):
        for channel in range(3):
            row[x + channel] = mirrored[count - 3 - x + channel]


@kernel
def crop_images(
    start: int, stop: int, images: Any, height: int, width: int, work: Any, out: int, status: Any
) -> None:
    """Cut, resize and mirror images ``start .. stop - 1`` of a batch, as decoded.

    Args:
        start, stop: Stripe of the batch.
        images: An `ImageTable`.
        height, width: Sides of the crops in pixels.
        work: One of a `Workspace`'s two sets of buffers.
        out: Address of (B, height, width, 3) uint8.
        status: (B,) uint8: `OK`, `DAMAGED` or `WRONG_SIZE`; only `OK` images are whole.
    """
    count = width * 3
    for item in range(start, stop):
        image = images[item]
        if image[MODE] == ELSEWHERE:
            status[item] = OK
            continue
        state, streams, at, row_bytes = _open(image, height, width, work)
        to = out + item * height * count
        y = 0
        while y < height and state == OK:
            rows = min(_STRIP, height - y)
            state, strip, strip_bytes = _strip(streams, at, row_bytes, y, rows, 0, count, work)
            for row in range(rows):
                if image[FLIP]:
                    _mirror(to + row * count, strip + row * strip_bytes, count, True)
                else:
                    _stream(to + row * count, strip + row * strip_bytes, count)
            to += rows * count
            y += rows
        status[item] = _close(state, streams, work)


@kernel
def _write(line: Any, bits: Any, kind: int, to: int) -> None:
    """Write a row of float32 as ``kind``, rounded to nearest, ties to even."""
    if kind == FLOAT32:
        _stream(to, address_of(line), len(line) * 4)
        return
    whole = line.view(np.uint32)
    if kind == BFLOAT16:
        for x in range(len(line)):
            odd = (whole[x] >> np.uint32(16)) & np.uint32(1)
            bits[x] = (whole[x] + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    else:
        for x in range(len(line)):
            bits[x] = _half(line[x], whole[x])
    _stream(to, address_of(bits), len(line) * 2)


@kernel
def _half(value: float, whole: int) -> Any:
    """Return the bits of a float16, from a finite float32 and its bits."""
    sign = (whole >> np.uint32(16)) & np.uint32(0x8000)
    size = whole & np.uint32(0x7FFFFFFF)
    odd = (size >> np.uint32(13)) & np.uint32(1)
    normal = (size - np.uint32(112 << 23) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    # Below 2**-14 a float16 counts in steps of 2**-24, as do float32's bits around 2**-1.
    small = np.uint32(np.rint(abs(value) * np.float32(2.0**24)))
    bits = small if size < np.uint32(113 << 23) else normal
    return np.uint16(sign | min(bits, np.uint32(0x7C00)))


@kernel
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
    """Cut, resize, mirror and normalise images of a batch: ``out = scale * pixel + shift``.

    Args:
        start, stop, images, height, width, work, status: As in `crop_images`.
        scale, shift: (3,) float64, one a channel.
        kind: `FLOAT32`, `FLOAT16` or `BFLOAT16`.
        out: Address of (B, height, width, 3) numbers of that kind.
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
                streams, at, row_bytes, y, rows, image[FLIP], count, work
            )
            for row in range(rows):
                pixels = bytes_at(strip + row * strip_bytes, count)
                for x in range(count):
                    values[x] = scales[x] * np.float32(pixels[x]) + shifts[x]
                _write(values, bits, kind, to + row * out_bytes)
            to += rows * out_bytes
            y += rows
        status[item] = _close(state, streams, work)


@kernel
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
    """Decode, cut, mirror, normalise and mix both images of each pair in one pass (Eq. 4).

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
                t_streams, t_at, t_row_bytes, y, rows, target[FLIP], count, target_work
            )
            s_state, s_strip, s_bytes = _strip(
                s_streams, s_at, s_row_bytes, y, rows, source[FLIP], count, source_work
            )
            for row in range(rows):
                t = bytes_at(t_strip + row * t_bytes, count)
                s = bytes_at(s_strip + row * s_bytes, count)
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
    """Decoders and buffers for two images, which each thread has for itself.

    Args:
        largest: Number of pixels of the largest stored image.
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
