"""JPEG streams with any sampling factors, which no encoder at hand writes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from random import Random

import numpy as np

Sampling = tuple[tuple[int, int], ...]
"""Factors across and down of each component."""

MOST_BLOCKS = 10
"""Most blocks that an MCU may have."""

_DC_LENGTHS = (0, 1, 5, 1, 1, 1, 1, 1, 1, *[0] * 7)
_AC_SYMBOLS = (0x00, 0x01, 0x02, 0x03, 0x04, 0x13, 0xF0)
"""End of the block; a number of 1 to 4 bits; one of 3 bits behind a zero; sixteen zeros."""
_AC_BITS = 3


def any_sampling(random: Random) -> Sampling:
    """Factors that the format allows; often those that cameras write, and grey."""
    if random.random() < 0.3:
        usual = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1))
        return random.choice(
            (
                ((random.randint(1, 4), random.randint(1, 4)),),
                *((first, (1, 1), (1, 1)) for first in usual),
            )
        )
    while True:
        first, *chroma = ((random.randint(1, 4), random.randint(1, 4)) for _ in range(3))
        if random.random() < 0.6:
            chroma = [(1, 1), (1, 1)]
        if sum(across * down for across, down in (first, *chroma)) <= MOST_BLOCKS:
            return (first, *chroma)


class _Bits:
    """Entropy-coded bits."""

    def __init__(self) -> None:
        self._value, self._count, self._data = 0, 0, bytearray()

    def put(self, value: int, count: int) -> None:
        self._value = self._value << count | value
        self._count += count
        while self._count >= 8:
            self._count -= 8
            byte = self._value >> self._count & 0xFF
            self._data += b"\xff\0" if byte == 0xFF else bytes([byte])
        self._value &= (1 << self._count) - 1

    def put_number(self, value: int) -> None:
        """The bits behind a Huffman code."""
        size = abs(value).bit_length()
        self.put(value if value >= 0 else value + (1 << size) - 1, size)

    def end(self) -> bytes:
        self.put((1 << -self._count % 8) - 1, -self._count % 8)
        return bytes(self._data)


def _dc_codes() -> dict[int, tuple[int, int]]:
    codes, code, size = {}, 0, 0
    for length, count in enumerate(_DC_LENGTHS, 1):
        for _ in range(count):
            codes[size], code, size = (code, length), code + 1, size + 1
        code <<= 1
    return codes


_DC = _dc_codes()


def _put_dc(bits: _Bits, difference: int) -> None:
    bits.put(*_DC[abs(difference).bit_length()])
    bits.put_number(difference)


def _put_ac(bits: _Bits, numbers: Sequence[int]) -> None:
    for number in numbers:
        bits.put(_AC_SYMBOLS.index(abs(number).bit_length()), _AC_BITS)
        bits.put_number(number)
    bits.put(0, _AC_BITS)


def any_stream(random: Random) -> tuple[bytes, Sampling]:
    """A sound JPEG stream of any size and sampling."""
    sampling = any_sampling(random)
    sides = (1, 8, 17, 64, 150) if random.random() < 0.95 else (300, 500)
    height, width = (random.randint(1, random.choice(sides)) for _ in range(2))
    return stream_of(random, sampling, height, width), sampling


def stream_of(random: Random, sampling: Sampling, height: int, width: int) -> bytes:
    """A sound JPEG stream of noise: in one scan, in one a component, or progressive; with or
    without restart markers."""
    across, down = max(h for h, _ in sampling), max(v for _, v in sampling)
    columns, rows = -(-width // (8 * across)), -(-height // (8 * down))
    noise = np.random.default_rng(random.getrandbits(32))
    dc = [noise.integers(-90, 91, (rows * v, columns * h)).tolist() for h, v in sampling]
    ac = [
        noise.choice([-9, -4, -1, 2, 3, 7, 12], (rows * v, columns * h, 3)).tolist()
        for h, v in sampling
    ]

    def interleaved() -> Iterator[Iterator[tuple[int, int, int]]]:
        """Component, row and column of the blocks of each MCU."""
        for row in range(rows):
            for column in range(columns):
                yield (
                    (c, row * v + y, column * h + x)
                    for c, (h, v) in enumerate(sampling)
                    for y in range(v)
                    for x in range(h)
                )

    def alone(c: int) -> Iterator[Iterator[tuple[int, int, int]]]:
        h, v = sampling[c]
        for row in range(of_blocks(height, v, down)):
            for column in range(of_blocks(width, h, across)):
                yield iter(((c, row, column),))

    interval = random.choice((0, 0, 1, 3, columns))

    def scan(components: Sequence[int], first: int, last: int) -> bytes:
        units = interleaved() if len(components) > 1 else alone(components[0])
        data, bits, before = bytearray(), _Bits(), [0] * len(sampling)
        for number, unit in enumerate(units):
            if interval and number and number % interval == 0:
                data += bits.end() + bytes([0xFF, 0xD0 + (number // interval - 1) % 8])
                bits, before = _Bits(), [0] * len(sampling)
            for c, row, column in unit:
                if first == 0:
                    _put_dc(bits, dc[c][row][column] - before[c])
                    before[c] = dc[c][row][column]
                if last > 0:
                    _put_ac(bits, ac[c][row][column])
        parts = b"".join(bytes([c + 1, 0]) for c in components)
        head = bytes([len(components)]) + parts + bytes([first, last, 0])
        return segment(0xDA, head) + bytes(data) + bits.end()

    everything = tuple(range(len(sampling)))
    frame, scans = random.choice(
        (
            (0xC0, [(everything, 0, 63)]),
            (0xC0, [(everything, 0, 63)]),
            (0xC0, [((c,), 0, 63) for c in everything]),
            (0xC2, [(everything, 0, 0), *(((c,), 1, 63) for c in everything)]),
        )
    )
    factors = b"".join(bytes([c + 1, h << 4 | v, 0]) for c, (h, v) in enumerate(sampling))
    body = (
        segment(0xDB, b"\0" + bytes([random.choice((4, 8, 16))] * 64))
        + segment(frame, struct.pack(">BHHB", 8, height, width, len(sampling)) + factors)
        + segment(0xC4, b"\0" + bytes(_DC_LENGTHS) + bytes(range(sum(_DC_LENGTHS))))
        + segment(0xC4, b"\x10\0\0\7" + bytes(13) + bytes(_AC_SYMBOLS))
        + (segment(0xDD, struct.pack(">H", interval)) if interval else b"")
    )
    return b"\xff\xd8" + body + b"".join(scan(*which) for which in scans) + b"\xff\xd9"


def of_blocks(side: int, factor: int, greatest: int) -> int:
    """Number of blocks that a component has along a side, but for those that fill an MCU."""
    samples = -(-side * factor // greatest)
    return -(-samples // 8)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
