"""Changes to bytes, to the numbers and parts of a format, to JSON trees and to arrays."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import struct
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache, partial
from random import Random
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Form(NamedTuple):
    """What is known of a file's structure."""

    places: Sequence[tuple[int, int]] = ()
    """Offset and size of each number."""
    parts: Sequence[tuple[int, int]] = ()
    """Start and stop of each part: rows, segments, images."""
    order: str = "little"


def mutated(random: Random, data: bytes, form: Form, other: bytes) -> bytes:
    """One to three mutations; ``other`` is a second file of the kind."""
    ways = [change_bits, change_run, cut, remove, insert, partial(splice, other=other)]
    if form.places:
        ways += [change_number] * 6 + [swap_numbers] * 3
    if form.parts:
        ways += [move_parts] * 4 + [change_in_part] * 3
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(ways)(random, changed, form)
    return bytes(changed)


def anywhere(random: Random, data: bytearray) -> int:
    return random.randrange(len(data)) if data else 0


def change_bits(random: Random, data: bytearray, form: Form) -> None:
    for _ in range(random.choice((1, 1, 2, 8))):
        if data:
            data[anywhere(random, data)] ^= 1 << random.randrange(8)


def change_run(random: Random, data: bytearray, form: Form) -> None:
    start, count = anywhere(random, data), random.choice((1, 2, 4, 8, 24, 100, 1000))
    stop = min(start + count, len(data))
    data[start:stop] = filling(random, stop - start)


def filling(random: Random, count: int) -> bytes:
    return random.choice((bytes(count), b"\xff" * count, random.randbytes(count)))


def cut(random: Random, data: bytearray, form: Form) -> None:
    ends = [start for start, _ in (*form.places, *form.parts)]
    del data[random.choice([anywhere(random, data), len(data) - 1, *ends[: len(data)]]) :]


def remove(random: Random, data: bytearray, form: Form) -> None:
    start = anywhere(random, data)
    del data[start : start + random.choice((1, 2, 3, 8, 24, 500))]


def insert(random: Random, data: bytearray, form: Form) -> None:
    start, count = anywhere(random, data), random.choice((1, 2, 3, 8, 24, 500))
    again = anywhere(random, data)
    data[start:start] = random.choice((filling(random, count), data[again : again + count]))


def splice(random: Random, data: bytearray, form: Form, *, other: bytes) -> None:
    at = anywhere(random, data)
    data[at:] = other[random.choice((at, random.randrange(len(other)))) :]


def change_number(random: Random, data: bytearray, form: Form) -> None:
    offset, size = random.choice(form.places)
    bits, order = 8 * size, form.order
    here = int.from_bytes(data[offset : offset + size], order)
    there = random.choice(form.places)[0]
    other = int.from_bytes(data[there : there + size], order)
    value = random.choice(
        (
            0,
            1,
            2,
            3,
            -1,
            -2,
            1 << (bits - 1),
            (1 << (bits - 1)) - 1,
            1 << (bits // 2),
            (1 << 16) - 1,
            (1 << 20) - 1,
            1 << 31,
            1 << 40,
            len(data),
            len(data) - 1,
            len(data) + 1,
            here + 1,
            here - 1,
            here * 2,
            here // 2,
            -here,
            other,
            random.getrandbits(bits),
            random.getrandbits(8),
            here ^ (1 << random.randrange(bits)),
        )
    )
    data[offset : offset + size] = (value % (1 << bits)).to_bytes(size, order)


def swap_numbers(random: Random, data: bytearray, form: Form) -> None:
    one, size = random.choice(form.places)
    other = random.choice([at for at, s in form.places if s == size])
    swap(data, (one, one + size), (other, other + size))


def swap(data: bytearray, one: tuple[int, int], other: tuple[int, int]) -> None:
    (a, b), (c, d) = sorted((one, other))
    if b <= c and d <= len(data):
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def move_parts(random: Random, data: bytearray, form: Form) -> None:
    """Swap two parts, write one over another, remove or repeat one."""
    (a, b), (c, d) = random.choice(form.parts), random.choice(form.parts)
    way = random.randrange(5)
    if way <= 1:
        swap(data, (a, b), (c, d))
    elif way == 2:
        data[a:b] = data[c:d]
    elif way == 3:
        del data[a:b]
    else:
        data[c:c] = data[a:b] * random.choice((1, 1, 2, 40))


def change_in_part(random: Random, data: bytearray, form: Form) -> None:
    start, stop = random.choice(form.parts)
    for _ in range(random.choice((1, 2, 8))):
        at = random.randrange(start, max(stop, start + 1))
        if at < len(data):
            data[at] = random.choice((0, 255, random.getrandbits(8), data[at] ^ 1))


class Verbatim(NamedTuple):
    """Text that stands in a JSON document as it is."""

    text: str


STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    1 << 31,
    1 << 63,
    1 << 64,
    10**30,
    10**400,
    1.5,
    -0.0,
    1e300,
    "",
    "x",
    "0",
    "t0",
    [],
    {},
    [[]],
    [None],
    {"": 0},
    "two\nlines",
    "\ud800",
    "\0",
    "a" * 100_000,
    Verbatim("NaN"),
    Verbatim("Infinity"),
    Verbatim("1e400"),
    Verbatim("1" * 5000),
    Verbatim("[" * 100_000 + "]" * 100_000),
    Verbatim('{"a":' * 100_000 + "0" + "}" * 100_000),
)


def mutated_json(random: Random, document: Any, other: bytes) -> bytes:
    """A document with one to three changes, of its tree or of its text."""
    if random.random() < 0.2:
        return mutated(random, json.dumps(document, indent=1).encode(), Form(), other)
    document = {"": copy.deepcopy(document)}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if any(document.values()):
            change_tree(random, document)
    strange: list[str] = []

    def known(value: Any) -> Any:
        if isinstance(value, Verbatim):
            strange.append(value.text)
            return f"verbatim {len(strange) - 1}"
        if isinstance(value, dict):
            return {key: known(entry) for key, entry in value.items()}
        return [known(entry) for entry in value] if isinstance(value, list) else value

    text = json.dumps(
        known(document)[""] if "" in document else {}, ensure_ascii=random.random() < 0.5
    )
    for number, verbatim in enumerate(strange):
        text = text.replace(f'"verbatim {number}"', verbatim)
    return text.encode("utf-8", "surrogatepass")


def change_tree(random: Random, document: Any) -> None:
    spots = list(places_in(document))
    # Deep entries are many: choose among levels, and then of a level.
    container, key = random.choice([s for s in spots if s[2] == random.choice(spots)[2]] or spots)[
        :2
    ]
    way, value = random.randrange(8), container[key]
    if way <= 2:
        container[key] = random.choice(STRANGE)
    elif way == 3:
        del container[key]
    elif way == 4:
        other, name, _ = random.choice(spots)
        if name in other if isinstance(other, dict) else name < len(other):
            container[key] = copy.deepcopy(other[name])
    elif way == 5 and isinstance(container, list):
        container.insert(random.randrange(len(container) + 1), copy.deepcopy(value))
    elif way == 5:
        container[f"{key}x"] = container.pop(key)
    elif way == 6 and isinstance(value, (int, float)) and not isinstance(value, bool):
        as_float = value * 1.0 if abs(value) < 1 << 1000 else value  # a float's limit
        container[key] = random.choice((value + 1, value - 1, -value, as_float, str(value)))
    elif way == 6 and isinstance(value, list):
        random.shuffle(value)
    else:
        container[key] = random.choice(([value], {"a": value}, str(value), {"": value}))


def places_in(tree: Any, level: int = 0) -> Iterator[tuple[Any, Any, int]]:
    """Container, key and level of every entry."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(entries):
        yield tree, key, level
        if isinstance(value, (dict, list)):
            yield from places_in(value, level + 1)


def size_of(data: bytes) -> tuple[int, int] | None:
    """Height and width in a stream's frame header."""
    for marker, start, stop in segments(data):
        if marker in FRAMES and stop - start >= 9:
            height, width = struct.unpack_from(">HH", data, start + 5)
            return int(height), int(width)
    return None


FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and stop of each segment of a JPEG stream; a scan's is the whole scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        stop = at + 2 + length
        if marker == 0xDA:
            while stop + 1 < len(data) and not (
                data[stop] == 0xFF and data[stop + 1] not in (0, *range(0xD0, 0xD8))
            ):
                stop += 1
        yield marker, at, min(stop, len(data))
        at = stop


@cache
def jpeg_form(data: bytes) -> Form:
    """Markers, lengths, sizes, sampling factors, table ids and counts, scans' numbers."""
    places, parts = [], []
    for marker, start, stop in segments(data):
        parts.append((start, stop))
        places += [(start + 1, 1), (start + 2, 2)]
        if marker in FRAMES:
            places += [(start + 4, 1), (start + 5, 2), (start + 7, 2), (start + 9, 1)] * 2
            places += [(at, 1) for at in range(start + 10, stop)] * 2
        elif marker == 0xC4:
            places += [(at, 1) for at in range(start + 4, min(start + 25, stop))]
        elif marker == 0xDB:
            places += [(start + 4, 1), (start + 5, 1), (start + 12, 1)]
        elif marker == 0xDA:
            header = range(
                start + 4, start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
            )
            places += [(at, 1) for at in header]
            middle = (start + stop) // 2
            parts += [(header.stop, stop), (header.stop, middle), (middle, stop)]
        elif marker == 0xDD:
            places += [(start + 4, 2)] * 4
    return Form(places, parts, "big")


def npy(descr: str, shape: Any, data: bytes, header: str | None = None) -> bytes:
    """A ``.npy`` file that says what it is told to."""
    text = header or f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", min(len(text), 65535)) + text.encode() + data


def mutated_npz(random: Random, data: bytes, zeros: bytes) -> bytes:
    """Of its bytes, its zip, its arrays' headers, or of arrays and their text; or ``zeros``."""
    way = random.randrange(8)
    if way <= 2:
        return mutated(random, data, zip_form(data), zeros[:3000])
    if way == 3 and random.random() < 0.1:
        return zeros
    with np.load(io.BytesIO(data)) as file:
        arrays = dict(file)
    members = {name: npy_of(array) for name, array in arrays.items()}
    name = random.choice(list(members))
    if way == 3:
        members[name] = strange_npy(random, arrays[name])
    elif way == 4:
        meta = mutated_json(random, json.loads(str(arrays["meta"])), b'{"format": 0}')
        with contextlib.suppress(UnicodeDecodeError, ValueError):
            members["meta"] = npy_of(np.array(meta.decode()))
    elif way == 5:
        members.pop(name)
        if random.random() < 0.5:
            members[name + "x"] = npy_of(arrays[name])
    elif way == 6:
        members[name] = npy_of(random.choice(list(arrays.values())))
    else:
        members[name] = npy_of(changed_array(random, arrays[name]))
    packed = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", method) as archive:
        for key, content in members.items():
            archive.writestr(f"{key}.npy", content)
    return packed.getvalue()


def npy_of(array: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()


def strange_npy(random: Random, array: npt.NDArray[Any]) -> bytes:
    """An array with a header that claims something else."""
    shape = random.choice(
        (
            (10**12, 6),
            (1 << 28,),
            (10**30,),
            (-1,),
            (0,),
            (),
            (3, 0),
            (1 << 32, 1 << 32),
            (1.5,),
            "3",
            (True,),
            (4, 6, 1),
            (1 << 62, 4),
            [3],
        )
    )
    descr = random.choice(
        (
            array.dtype.str,
            "<f4",
            ">f4",
            "<f8",
            "<f2",
            "<f16",
            "<i8",
            "<u8",
            "<i1",
            "|b1",
            "|O",
            "|S1000000000",
            "<U100000000",
            "<c8",
            "<M8[s]",
            "|V4",
            "what",
            "",
        )
    )
    header = random.choice((None, None, None, "(" * 3000, "{}", "[]", "{'descr': 3}", "1L", "\0"))
    shape = random.choice((shape, array.shape))
    return npy(descr, shape, array.tobytes()[: random.choice((None, 7))], header)


def changed_array(random: Random, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.ndim == 0:
        return random.choice((np.array([str(array)] * 2), np.array(b"bytes"), np.array(3.0)))
    numbers = np.array(array)
    value = random.choice((0, -1, 1 << 40, float("nan"), float("inf"), 1e300, -1e30, 1e-45))
    dtype = random.choice(("f2", "f4", "f8", ">f4", "i1", "i4", "i8", "u8", "c8", "?", "O", "U4"))
    way = random.randrange(7)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if way <= 1:
            numbers = numbers.astype("f8" if numbers.dtype.kind == "f" and way else numbers.dtype)
            with contextlib.suppress(ValueError, OverflowError):
                numbers.flat[random.randrange(numbers.size)] = value
        elif way == 2:
            numbers = numbers.astype(dtype)
        elif way == 3:
            numbers = numbers[: random.randrange(len(numbers))]
        elif way == 4:
            numbers = np.concatenate([numbers, numbers[:1]])
        elif way == 5:
            numbers = numbers[..., : random.randint(0, 3)]
        else:
            numbers = random.choice((numbers[None], numbers[..., None], numbers.reshape(-1)))
    return numbers


@cache
def zip_form(data: bytes) -> Form:
    """The numbers of a zip's local headers, directory and end, and of the arrays' headers."""
    layouts = {
        b"PK\x03\x04": (4, (2, 2, 2, 2, 2, 4, 4, 4, 2, 2)),
        b"PK\x01\x02": (4, (2, 2, 2, 2, 2, 2, 4, 4, 4, 2, 2, 2, 2, 2, 4, 4)),
        b"PK\x05\x06": (4, (2, 2, 2, 2, 4, 4, 2)),
        b"\x93NUMPY": (6, (1, 1, 2, 1, 1, 1, 1)),
    }
    places, starts = [], []
    for magic, (offset, sizes) in layouts.items():
        at = data.find(magic)
        while at >= 0:
            starts.append(at)
            places += [(at + offset + sum(sizes[:i]), size) for i, size in enumerate(sizes)]
            at = data.find(magic, at + 1)
    starts.sort()
    return Form(places, list(itertools.pairwise((*starts, len(data)))))
