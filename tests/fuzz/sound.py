"""Sound files of every kind, from generated pictures; the same in every process."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from fuzz.mutations import Form, npy, size_of
from xmix_data import Beton, write_beton
from xmix_data.beton import layout, pages
from xmix_data.beton.layout import JPG
from xmix_data.features import class_centroids
from xmix_data.pairing import Centroids, pair_classes

Bytes = npt.NDArray[np.uint8]


class Sample(NamedTuple):
    """One stored image."""

    label: int
    mode: int
    height: int
    width: int
    data: bytes


class Pictures:
    """A map-style dataset of generated pictures, as pixels or as JPEG streams."""

    def __init__(self, counts: Sequence[int], prefix: str, *, encoded: bool) -> None:
        self.classes = [f"{prefix}{i}" for i in range(len(counts))]
        self.targets = [label for label, count in enumerate(counts) for _ in range(count)]
        self._seed, self._encoded = len(prefix) + sum(counts), encoded

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        size = 20 + 7 * index % 23, 18 + 11 * index % 31
        if self._encoded:
            kind = list(SAMPLINGS)[index % len(SAMPLINGS)]
            return stream(kind, size, index, progressive=index % 4 == 3), self.targets[index]
        return picture(*size, self._seed + index), self.targets[index]


def picture(height: int, width: int, seed: int) -> Bytes:
    """Smooth colours with noise on some of the pixels."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(
        random.random((height, width, 1)) < 0.1, noise, np.asarray(coarse.resize((width, height)))
    )


SAMPLINGS: Mapping[str, tuple[dict[str, Any], tuple[int, int], int, tuple[int, int]]] = {
    "4:4:4": ({"subsampling": 0}, (8, 8), 0, (8, 8)),
    "4:2:2": ({"subsampling": 1}, (8, 16), 0, (8, 16)),
    "4:2:0": ({"subsampling": 2}, (16, 16), 0, (16, 16)),
    "rgb": ({"keep_rgb": True}, (8, 8), 0, (8, 8)),
    "grey": ({}, (8, 8), 0, (8, 8)),
    "4:4:0": ({"subsampling": 1}, (8, 16), 0x12, (16, 8)),
    "4:1:1": ({"subsampling": 2}, (16, 16), 0x41, (8, 32)),
}
"""How Pillow writes it and the size of its MCU; the first component's sampling factors that are
put instead, as blocks of one sampling are also those of a picture in another; that one's MCU."""


def stream(kind: str, size: tuple[int, int], seed: int, **options: Any) -> bytes:
    """A sound JPEG stream of about a size."""
    how, (from_h, from_w), sampling, (to_h, to_w) = SAMPLINGS[kind]
    height, width = size
    if sampling:
        height, width = -(-height // to_h) * from_h, -(-width // to_w) * from_w
        options = {**options, "progressive": False}
    pixels, file = picture(height, width, seed), io.BytesIO()
    Image.fromarray(pixels[..., 0] if kind == "grey" else pixels).save(
        file, "JPEG", **how, **options
    )
    data = bytearray(file.getvalue())
    if sampling:
        at = data.index(b"\xff\xc0")
        struct.pack_into(">HH", data, at + 5, height // from_h * to_h, width // from_w * to_w)
        data[at + 11] = sampling
    return bytes(data)


STOCK_FIELDS = (0, 1, 3, 2, 1, 4)
"""Float, int, bytes, image, int and array: what stock FFCV writes in any order."""


def lay_out(samples: Sequence[Sample], fields: Sequence[int], random: Random) -> bytes:
    """A beton as stock FFCV lays it out: further fields, samples and table in another order."""
    kinds = [layout.FIELD_METADATA[kind] for kind in fields]
    row = np.dtype([("", kind) for kind in kinds], align=True)
    rows, descriptors = np.zeros(len(samples), row), np.zeros(len(fields), layout.FIELD)
    descriptors["type_id"] = fields
    descriptors["name"][fields.index(1), :5] = list(b"label")  # of several int fields
    start = layout.HEADER.itemsize + descriptors.nbytes + rows.nbytes
    data, table = bytearray(), []
    image, label = f"f{fields.index(2)}", f"f{fields.index(1)}"
    for index in random.sample(range(len(samples)), len(samples)):
        sample = samples[index]
        pointer = start + len(data)
        rows[image][index] = (sample.mode, sample.width, sample.height, pointer)
        rows[label][index] = sample.label
        table.append((index, pointer, len(sample.data)))
        data += sample.data
        if 3 in fields:
            text = b"text" * (index + 1)
            rows[f"f{fields.index(3)}"][index] = (start + len(data), len(text))
            table.append((index, start + len(data), len(text)))
            data += text
    random.shuffle(table)
    data += bytes(-len(data) % 8)
    header = np.zeros(1, layout.HEADER)
    header[0] = (2, len(fields), 1 << 21, len(samples), start + len(data))
    return b"".join(
        (
            header.tobytes(),
            descriptors.tobytes(),
            rows.tobytes(),
            bytes(data),
            np.array(table, layout.ALLOCATION).tobytes(),
        )
    )


def numbers_of(dtype: np.dtype[Any], start: int, count: int) -> Iterator[tuple[int, int]]:
    """Offset and size of every number of an array of records."""
    for row in range(count):
        for field, offset, *_ in (dtype.fields or {}).values():
            at = start + row * dtype.itemsize + offset
            if field.fields:
                yield from numbers_of(field, at, 1)
            elif field.shape == ():
                yield at, field.itemsize


class Domain(NamedTuple):
    """A sound beton, as bytes."""

    data: bytes
    manifest: dict[str, Any] | None
    samples: list[Sample]
    form: Form
    """Of the index."""
    images: Form
    """Of the data."""


def known_domain(data: bytes, manifest: dict[str, Any] | None, fields: Sequence[int]) -> Domain:
    header = np.frombuffer(data, layout.HEADER, 1)[0]
    count, table_start = int(header["num_samples"]), int(header["alloc_table_ptr"])
    row = np.dtype([("", layout.FIELD_METADATA[kind]) for kind in fields], align=True)
    field, entry = layout.FIELD, layout.ALLOCATION
    rows_start = layout.HEADER.itemsize + len(fields) * field.itemsize
    entries = (len(data) - table_start) // entry.itemsize
    rows = np.frombuffer(data, row, count, rows_start)
    sizes = {int(p): int(s) for _, p, s in np.frombuffer(data, entry, entries, table_start)}
    image, label = rows[f"f{fields.index(2)}"], rows[f"f{fields.index(1)}"]
    samples, spans = [], []
    for (mode, width, height, pointer), of_class in zip(
        image.tolist(), label.tolist(), strict=True
    ):
        spans.append((pointer, pointer + sizes[pointer]))
        samples.append(Sample(of_class, mode, height, width, data[slice(*spans[-1])]))
    places = [
        *list(numbers_of(layout.HEADER, 0, 1)) * 6,
        *list(numbers_of(field, layout.HEADER.itemsize, len(fields))) * 3,
        *numbers_of(row, rows_start, count),
        *numbers_of(entry, table_start, entries),
    ]
    parts = [
        (start + i * kind.itemsize, start + (i + 1) * kind.itemsize)
        for start, kind, n in (
            (layout.HEADER.itemsize, field, len(fields)),
            (rows_start, row, count),
            (table_start, entry, entries),
        )
        for i in range(n)
    ]
    return Domain(data, manifest, samples, Form(places, parts), Form((), spans))


class Sound(NamedTuple):
    """All that is mutated, made once."""

    targets: dict[str, Domain]
    sources: dict[str, Domain]
    shards: list[Domain]
    """Of a source."""
    pairings: dict[str, dict[str, Any]]
    centroids: dict[str, bytes]
    cached: dict[str, tuple[str, bytes]]
    """Name and content of feature caches: finished and unfinished."""
    streams: list[bytes]
    zeros: bytes
    """64 MB, deflated, in an ``.npz``."""


@cache
def sound() -> Sound:
    """The sound files; the same in every process."""
    with tempfile.TemporaryDirectory() as scratch, mock.patch.object(pages, "MIN_PAGE_SIZE", 4096):
        folder = Path(scratch)
        targets, sources = domains(folder, [3, 2, 3], "t"), domains(folder, [2, 3, 2, 2], "s")
        shards = [
            written(Pictures([2, 3, 2, 2], "s", encoded=False), folder / f"{i}.beton", shard=(i, 2))
            for i in range(2)
        ]
        made = centroids(folder)
        pairings = {name: json.loads(text) for name, text in paired(folder, made).items()}
        cached = caches(folder, targets["raw"])
        files = {name: saved(each, folder) for name, each in made.items()}
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"progressive": True},
        {"restart_marker_blocks": 2},
        {"quality": 8, "optimize": True},
    )
    sizes = itertools.cycle([(33, 45), (64, 48), (17, 90), (120, 97), (8, 8), (1, 30), (250, 300)])
    streams = [
        stream(kind, size, seed, **way)
        for seed, ((kind, way), size) in enumerate(
            zip(itertools.product(SAMPLINGS, ways), sizes, strict=False)
        )
    ]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("values.npy", npy("<f4", (1 << 20, 16), bytes(64 << 20)))
    return Sound(targets, sources, shards, pairings, files, cached, streams, file.getvalue())


def written(images: Pictures, path: Path, encoding: str = "jpg", **options: Any) -> Domain:
    write_beton(
        images,
        path,
        image_size=None,
        crop="none",
        encoding=encoding,
        num_workers=0,
        progress=False,
        overwrite=True,
        **options,
    )
    manifest = json.loads(path.with_name(f"{path.name}.json").read_text())
    return known_domain(path.read_bytes(), manifest, (2, 1))


def domains(folder: Path, counts: Sequence[int], prefix: str) -> dict[str, Domain]:
    """By encoding, and one laid out as by stock FFCV, with raw and JPEG images of all kinds."""
    made = {
        encoding: written(
            Pictures(counts, prefix, encoded=encoding == "keep"),
            folder / f"{prefix}.beton",
            encoding,
        )
        for encoding in ("jpg", "raw", "keep")
    }
    streams = Pictures(counts, prefix, encoded=True)
    mixed = [made["raw"].samples[0]]
    for data, label in (streams[i] for i in range(1, len(streams))):
        mixed.append(Sample(label, JPG, *(size_of(data) or (0, 0)), data))
    stock = lay_out(mixed, STOCK_FIELDS, Random(prefix))
    return {**made, "stock": known_domain(stock, None, STOCK_FIELDS)}


def centroids(folder: Path) -> dict[str, Centroids]:
    random = np.random.default_rng(0)

    def made(name: str, counts: Sequence[int], prefix: str) -> Centroids:
        values = random.normal(size=(len(counts), 6)).astype(np.float32)
        hashes = [Beton(folder / f"{prefix}.beton").fingerprint]
        provenance = {"model": "none", "domains": [{"files": [name], "fingerprints": hashes}]}
        names = [f"{prefix}{i}" for i in range(len(counts))]
        return Centroids(values, np.array(counts), names, provenance)

    source = made("source.beton", [2, 3, 2, 2], "s")
    return {
        "target": made("target.beton", [3, 2, 3], "t"),
        "source": source,
        "both": Centroids.joined([source, made("target.beton", [3, 2, 3], "t")]),
    }


def saved(centroid: Centroids, folder: Path) -> bytes:
    centroid.save(folder / "centroids.npz")
    return (folder / "centroids.npz").read_bytes()


def paired(folder: Path, made: Mapping[str, Centroids]) -> dict[str, str]:
    """Pairings of every kind, as text: whole classes, parts of them, shared ones, two sources."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "greedy": ("source", {}),
        "parts": ("source", {"method": "random-images", "num_images": 6}),
        "shared": ("source", {"min_images": 4, "strict": True}),
        "both": ("both", {"rounds": 2}),
    }
    texts = {}
    for name, (source, options) in ways.items():
        pair_classes(made["target"], made[source], **options).save(folder / "pairing.json")
        texts[name] = (folder / "pairing.json").read_text()
    return texts


class Backbone(nn.Module):
    """Mean colours and a linear classifier; stops where it is told to."""

    def __init__(self, stops_at: int | None = None) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(2), nn.Linear(12, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.1)
        self.stops_at = stops_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stops_at is not None:
            self.stops_at -= 1
            if self.stops_at < 0:
                raise KeyboardInterrupt
        logits: torch.Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def features(path: Path, folder: Path, stops_at: int | None = None) -> Centroids:
    return class_centroids(path, Backbone(stops_at), batch_size=3, num_workers=1, cache=folder)


def caches(folder: Path, domain: Domain) -> dict[str, tuple[str, bytes]]:
    """A finished one, and one of an interrupted run."""
    path, made = put(folder / "target.beton", domain), {}
    for name, stops_at in (("finished", None), ("unfinished", 2)):
        cache_folder = folder / name
        with contextlib.suppress(KeyboardInterrupt):
            features(path, cache_folder, stops_at)
        (file,) = cache_folder.iterdir()
        made[name] = file.name, file.read_bytes()
    return made


def put(path: Path, domain: Domain) -> Path:
    """Write a beton and its manifest."""
    path.write_bytes(domain.data)
    manifest = path.with_name(f"{path.name}.json")
    manifest.unlink(missing_ok=True)
    if domain.manifest is not None:
        manifest.write_text(json.dumps(domain.manifest))
    return path
