"""The way of a user's file: opened, verified, loaded for an epoch, and what that comes to."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from fuzz.conversion import of_conversion
from fuzz.findings import Finding, watched
from fuzz.memory import (
    Bytes,
    GuardedWorkspace,
    forget_peak,
    guarded,
    guarded_bytes,
    guards,
    status_mb,
)
from fuzz.mutations import Form, jpeg_form, mutated, mutated_json, mutated_npz, size_of
from fuzz.sound import STOCK_FIELDS, Backbone, Domain, Sample, features, lay_out, put, sound
from fuzz.streams import Sampling, any_stream
from xmix_data import (
    Beton,
    CenterCrop,
    ImageLoader,
    PairedClass,
    Pairing,
    RandomCrop,
    RandomResizedCrop,
    XMixLoader,
    beton,
    decode,
)
from xmix_data.backends.reference import _crop
from xmix_data.beton.layout import JPG, content_hash
from xmix_data.decode import dct_fractions
from xmix_data.errors import XMixError
from xmix_data.features import class_centroids
from xmix_data.jpeg import OK, decode_jpeg, jpeg_problem
from xmix_data.pairing import Centroids, pair_classes, pairs_table

UNCHANGED = 25
"""One case in so many is the sound file."""
GROWTH_MB, GROWTH_A_BYTE = 48, 64
"""Resident memory that a case may take: in all, and for each byte of its files."""
TOLERANCE = 1e-5


class Case(NamedTuple):
    """One mutated input."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


class Verdict(NamedTuple):
    """What came of a case."""

    outcome: str
    """``"right"``, ``"error"``, ``"outside"`` (right crops of an image that is damaged elsewhere,
    which `verify` names and Pillow refuses as a whole), ``"replaced"`` (batches came, with other
    images in the place of damaged ones) or ``"finding"``."""
    detail: str


NAMES = ("target.beton", "source.beton", "other.beton", "pairing", "paired", "centroid", ".npz")
"""One of them stands in every message: the file, or what of several files does not fit together."""


def clear(error: BaseException) -> str:
    """The outcome ``"error"``, if it is one line of an expected kind that names the file."""
    text = str(error)
    if not (
        isinstance(error, XMixError) or type(error) in (ValueError, FileNotFoundError)
    ) or not any(name in text for name in NAMES):
        at = traceback.extract_tb(error.__traceback__)[-1]
        cause = f" from {error.__cause__!r}"[:200] if error.__cause__ else ""
        raise Finding(
            f"{type(error).__name__}: {text[:300]}{cause} ({Path(at.filename).name}:{at.lineno})"
        ) from error
    if len(text.splitlines()) != 1:
        raise Finding(f"an error of several lines: {text[:300]!r}") from error
    return "error"


def an_epoch(make: Callable[[str], Any], backend: str) -> tuple[list[list[Any]], int]:
    """All batches of a loader, as arrays, and how many images were replaced."""
    with make(backend) as loader:
        batches = [[x.numpy().copy() for x in batch] for batch in loader]
        if len(batches) != len(loader):
            raise Finding(f"{len(batches)} batches of {len(loader)}")
        return batches, int(loader.stats()["replaced"])


def loaded(make: Callable[[str], Any], problem: str | None) -> str:
    """The outcome of an epoch, held against the reference; ``problem`` is what `verify` said."""
    try:
        with watched():
            batches, replaced = an_epoch(make, "host")
    except Finding:
        raise
    except Exception as error:
        return clear(error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, theirs_replaced = an_epoch(make, "reference")
    except Exception as error:
        if problem is not None:
            return "outside"
        raise Finding(f"delivered, and the reference refuses it: {error}") from error
    if replaced and problem is None:
        raise Finding(f"replaced {replaced} images that verify finds sound")
    if replaced or theirs_replaced:
        return "replaced"  # Pillow decodes on where libjpeg warns, and replaces others
    for batch, other in zip(batches, expected, strict=True):
        for ours, theirs in zip(batch, other, strict=True):
            exact = ours.dtype != np.float32
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                raise Finding(f"{ours.dtype} {ours.shape}, not {theirs.dtype} {theirs.shape}")
            if not (
                np.array_equal(ours, theirs)
                if exact
                else np.allclose(ours, theirs, rtol=0, atol=TOLERANCE)
            ):
                worst = np.abs(ours.astype(np.float64) - theirs).max()
                raise Finding(f"differs from the reference by {worst:.3g}; verify says {problem}")
    return "right"


def drawn_options(random: Random) -> dict[str, Any]:
    crop = random.choice(
        (
            RandomCrop(12),
            RandomCrop((9, 16)),
            CenterCrop(10),
            RandomCrop(1),
            RandomResizedCrop(11),
            RandomResizedCrop((6, 10)),
            RandomResizedCrop(2),
            RandomResizedCrop(17, (0.5, 1), (0.2, 5)),
        )
    )
    return {
        "crop": crop,
        "batch_size": random.choice((1, 3, 4, 50)),
        "drop_last": False,
        "flip": random.random() < 0.7,
        "on_error": random.choice(("raise", "raise", "raise", "replace")),
        "num_workers": random.randint(1, 3),
        "prefetch": random.randint(1, 3),
        "seed": random.getrandbits(16),
    }


def opened_and_loaded(
    random: Random, target: list[Path], source: list[Path], changed: Path, pairing: Any = None
) -> str:
    """The way of every file: open, verify, load."""
    problem = None
    try:
        with watched():
            made = Beton(changed)
            len(made), repr(made), made.image_size, made.encoding, made.fingerprint, made.shard
    except Finding:
        raise
    except Exception as error:
        return clear(error)
    try:
        with watched():
            made.verify()
    except Finding:
        raise
    except Exception as error:
        clear(error)
        problem = str(error)
    options = drawn_options(random)
    if random.random() < 0.25 and pairing is None:
        options |= {"shuffle": random.random() < 0.5, "dtype": random_type(random)}
        betons = target if changed in target else source
        return loaded(lambda backend: ImageLoader(betons, backend=backend, **options), problem)
    options["mix"] = mix = random.random() < 0.5
    options["dtype"] = torch.float32 if mix else random_type(random)
    if pairing is None:
        try:
            pairing = by_place(Beton(target[0]).class_names, names_in(source))
        except Exception as error:
            return clear(error)
    return loaded(
        lambda backend: XMixLoader(target, source, pairing, backend=backend, **options), problem
    )


def random_type(random: Random) -> torch.dtype:
    return random.choice((torch.uint8, torch.uint8, torch.float32))


def names_in(source: Sequence[Path]) -> list[str]:
    return beton.open_domain(list(source)).class_names


def by_place(targets: Sequence[str], sources: Sequence[str]) -> Pairing:
    """The first target class with the first source class, and so on."""
    some = zip(targets[:50], itertools.cycle(sources[:50]), strict=False)
    return Pairing({t: [PairedClass(s, 0.5, 1)] for t, s in some})


def pick_betons(random: Random, folder: Path) -> tuple[Domain, Path, Path, Path]:
    """A domain to change and where it goes, and sound files: the target and the source."""
    encoding, other = random.choice(("jpg", "raw", "keep", "stock")), random.choice(("jpg", "raw"))
    target, source = folder / "target.beton", folder / "source.beton"
    if random.random() < 0.5:
        put(source, sound().sources[other])
        return sound().targets[encoding], target, target, source
    put(target, sound().targets[other])
    return sound().sources[encoding], source, target, source


def seal(random: Random, path: Path, domain: Domain) -> None:
    """Leave the manifest out, or as it was, or write one that fits to the changed beton."""
    put(path, domain._replace(data=path.read_bytes(), manifest=None))
    way = random.random()
    if way < 0.4 or domain.manifest is None:
        return
    manifest = dict(domain.manifest)
    if way < 0.9:
        with contextlib.suppress(Exception):
            made = Beton(path)
            names = manifest["class_names"]
            content = content_hash(made._index_digest(), made._data_digest())
            manifest |= {
                "byte_length": made.byte_length,
                "num_samples": made.num_samples,
                "class_counts": np.bincount(made.labels, minlength=len(names)).tolist(),
                "content_hash": content,
            }
    path.with_name(f"{path.name}.json").write_text(json.dumps(manifest))


def of_index(random: Random, folder: Path, change: bool) -> str:
    """Header, fields, metadata and allocation table of betons."""
    domain, path, target, source = pick_betons(random, folder)
    put(path, domain)
    if change:
        other = random.choice([*sound().targets.values(), *sound().sources.values()]).data
        path.write_bytes(mutated(random, domain.data, domain.form, other))
        seal(random, path, domain)
    return opened_and_loaded(random, [target], [source], path)


def of_data(random: Random, folder: Path, change: bool) -> str:
    """Stored images: in their places, or laid out anew with streams of other lengths and sizes."""
    domain, path, target, source = pick_betons(random, folder)
    put(path, domain)
    if change and random.random() < 0.4:
        changed = bytearray(domain.data)
        for _ in range(random.choice((1, 1, 3))):
            start, stop = random.choice(domain.images.parts)
            data = mutated(random, domain.data[start:stop], Form(), domain.data)[: stop - start]
            changed[start : start + len(data)] = data
        path.write_bytes(changed)
        seal(random, path, domain)
    elif change:
        samples = list(domain.samples)
        for index in random.sample(range(len(samples)), random.choice((1, 1, 1, 2, len(samples)))):
            if samples[index].mode == JPG:
                samples[index] = changed_sample(random, samples[index])
        path.write_bytes(lay_out(samples, random.choice(((2, 1), STOCK_FIELDS)), random))
        seal(random, path, domain)
    return opened_and_loaded(random, [target], [source], path)


def changed_sample(random: Random, sample: Sample) -> Sample:
    other = random.choice(sound().streams)
    data = mutated(random, sample.data, jpeg_form(sample.data), other) or b"\xff"
    size = (sample.height, sample.width)
    if random.random() < 0.8:
        size = size_of(data) or size
    return Sample(sample.label, sample.mode, max(1, size[0]), max(1, size[1]), data)


def of_manifest(random: Random, folder: Path, change: bool) -> str:
    """The JSON beside a beton, of one or of a set of shards."""
    if random.random() < 0.3:
        target = put(folder / "target.beton", sound().targets["raw"])
        paths = [folder / "source.beton", folder / "other.beton"]
        for path, domain in zip(paths, sound().shards, strict=True):
            put(path, domain)
        path, targets, sources = random.choice(paths), [target], paths
    else:
        target = put(folder / "target.beton", sound().targets[random.choice(("jpg", "raw"))])
        source = put(folder / "source.beton", sound().sources[random.choice(("jpg", "raw"))])
        path, targets, sources = random.choice((target, source)), [target], [source]
    manifest = path.with_name(f"{path.name}.json")
    if change:
        other = json.dumps(sound().sources["keep"].manifest).encode()
        manifest.write_bytes(mutated_json(random, json.loads(manifest.read_text()), other))
    outcome = opened_and_loaded(random, targets, sources, path)
    if outcome == "right":
        document = json.loads(manifest.read_text("utf-8", "surrogateescape"))
        names = document["class_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Finding(f"class names are {str(names)[:100]}")
        if Beton(path).class_names != names:
            raise Finding("class names are not those of the manifest")
    return outcome


def of_pairing(random: Random, folder: Path, change: bool) -> str:
    """Pairings of whole classes and of parts, shared ones, and over two sources."""
    name = random.choice(list(sound().pairings))
    target = put(folder / "target.beton", sound().targets["raw"])
    source = put(folder / "source.beton", sound().sources["raw"])
    path, document = folder / "pairing.json", sound().pairings[name]
    other = json.dumps(random.choice(list(sound().pairings.values()))).encode()
    path.write_bytes(
        mutated_json(random, document, other) if change else json.dumps(document).encode()
    )
    try:
        with watched():
            pairing = Pairing.load(path)
            repr(pairing), list(pairs_table(pairing)), pairing.mean_cosine, pairing.source_classes
    except Finding:
        raise
    except Exception as error:
        return clear(error)
    sources = [source]
    if name == "both":
        sources.append(put(folder / "other.beton", sound().targets["raw"]))
    outcome = opened_and_loaded(random, [target], sources, target, path)
    if outcome == "right":
        entries = json.loads(path.read_text("utf-8", "surrogateescape"))["pairs"]
        names = {e["target"]: [s["name"] for s in e["sources"]] for e in entries}
        if names != {t: [p.name for p in of_one] for t, of_one in pairing.pairs.items()}:
            raise Finding("the classes are not those of the file")
    return outcome


def of_centroids(random: Random, folder: Path, change: bool) -> str:
    """Saved centroids, to be paired."""
    name = random.choice(list(sound().centroids))
    path, data = folder / "centroids.npz", sound().centroids[name]
    path.write_bytes(mutated_npz(random, data, sound().zeros) if change else data)
    try:
        with watched():
            made = Centroids.load(path)
    except Finding:
        raise
    except Exception as error:
        return clear(error)
    with np.load(path) as arrays:
        meta = json.loads(str(arrays["meta"]))
        if meta["class_names"] != made.class_names:
            raise Finding(f"class names are {made.class_names}")
        for key in ("values", "counts"):
            if not np.array_equal(arrays[key], getattr(made, key), equal_nan=key == "values"):
                raise Finding(f"{key} are not those of the file")
    (folder / "sound.npz").write_bytes(
        sound().centroids["source" if name == "target" else "target"]
    )
    other = Centroids.load(folder / "sound.npz")
    try:
        with watched():
            pairs = pair_classes(*((made, other) if name == "target" else (other, made)))
            pairs.save(folder / "pairing.json")
            if Pairing.load(folder / "pairing.json") != pairs:
                raise Finding("the pairing is not what was saved")
    except Finding:
        raise
    except Exception as error:
        if not any(word in str(error) for word in ("class", "dimensions")):
            clear(error)
        if type(error) is not ValueError:
            raise
        return "error"
    return "right"


def of_cache(random: Random, folder: Path, change: bool) -> str:
    """Finished features, and sums to go on with."""
    state = random.choice(("finished", "unfinished"))
    name, data = sound().cached[state]
    target = put(folder / "target.beton", sound().targets["raw"])
    (folder / "cache").mkdir()
    path = folder / "cache" / name
    path.write_bytes(mutated_npz(random, data, sound().zeros) if change else data)
    before = path.read_bytes()
    try:
        with watched():
            made = features(target, folder / "cache")
    except Finding:
        raise
    except Exception as error:
        return clear(error)
    expected = whole_features()
    if made.counts.tolist() != expected.counts.tolist() or made.class_names != expected.class_names:
        raise Finding(f"counts {made.counts.tolist()} of {made.class_names}")
    if not np.array_equal(made.values, expected.values):
        # Other numbers with a checksum that fits cannot be told from right ones; they must be used.
        key = "values" if state == "finished" else "sums"
        with np.load(io.BytesIO(before)) as arrays, np.load(io.BytesIO(data)) as sound_arrays:
            if np.array_equal(arrays[key], sound_arrays[key]):
                raise Finding("the features are others")
    return "right"


@cache
def whole_features() -> Centroids:
    with tempfile.TemporaryDirectory() as folder:
        target = put(Path(folder) / "target.beton", sound().targets["raw"])
        return class_centroids(target, Backbone(), batch_size=3, num_workers=1)


def of_jpeg(random: Random, folder: Path, change: bool) -> str:
    """Bare streams through the check and through the kernels, at any fraction of their size."""
    data = random.choice(sound().streams)
    size = size_of(data) or (1, 1)
    if change:
        data = mutated(random, data, jpeg_form(data), random.choice(sound().streams))
        if random.random() < 0.8:
            size = size_of(data) or size
    height, width = max(1, size[0]), max(1, size[1])
    bytes_ = guarded_bytes(data, front=random.random() < 0.2)
    with watched():
        problem = jpeg_problem(bytes_, height, width)
    if problem is not None and len(problem.splitlines()) != 1:
        raise Finding(f"the problem is {problem!r}")
    outcomes = []
    for _ in range(3):
        outcomes.append(of_window(random, data, bytes_, height, width, problem))
    for outcome in ("outside", "right"):
        if outcome in outcomes:
            return outcome
    return "error"


def fractional(sampling: Sampling) -> bool:
    """Whether a component is to be enlarged by no whole number: libjpeg refuses that."""
    return any(max(way) % factor for way in zip(*sampling, strict=True) for factor in way)


def of_sampling(random: Random, folder: Path, change: bool) -> str:
    """Streams of any sampling: whole at each fraction, and windows as the kernels cut them."""
    data, sampling = any_stream(random)
    while not change and fractional(sampling):
        data, sampling = any_stream(random)
    height, width = size_of(data) or (1, 1)
    bytes_ = guarded_bytes(data, front=random.random() < 0.2)
    with watched():
        problem = jpeg_problem(bytes_, height, width)
    if fractional(sampling) != (problem is not None):
        raise Finding(f"sampling {sampling}: {problem}")
    outcomes = {of_window(random, data, bytes_, height, width, problem) for _ in range(8)}
    if problem is not None:
        return "error"
    for shrink in (1, 2, 4, 8):
        image = opened_by_pillow(data)
        if min(height, width) >= shrink:
            image.draft("RGB", (width // shrink, height // shrink))
            if not np.array_equal(decode_jpeg(data, shrink), np.asarray(image.convert("RGB"))):
                raise Finding(f"sampling {sampling}, at 1/{shrink}: not as Pillow decodes it")
    if outcomes != {"right"}:
        raise Finding(f"sampling {sampling}: windows are {outcomes}")
    return "right"


def of_window(
    random: Random, data: bytes, bytes_: Bytes, height: int, width: int, problem: str | None
) -> str:
    box_h, box_w = random.randint(1, height), random.randint(1, width)
    if random.random() < 0.3:
        box_h, box_w = height, width
    if box_h * box_w > 1 << 22:  # what is meant is another size than the stream's: soon refused
        box_h, box_w = min(box_h, 2048), min(box_w, 2048)
    box = np.array(
        [[random.randint(0, height - box_h), random.randint(0, width - box_w), box_h, box_w]],
        np.int32,
    )
    shape = (box_h, box_w)
    if random.random() < 0.6:
        divisor = random.choice((2, 4, 8, 16, 40))
        shape = (max(1, min(box_h // divisor, 300)), max(1, min(box_w // divisor, 300)))
    flip, status = random.random() < 0.5, np.zeros(1, np.uint8)
    table = decode.image_table(
        np.array([bytes_.ctypes.data], np.uint64),
        np.array([len(data)], np.uint64),
        np.array([JPG], np.uint8),
        np.array([height], np.uint16),
        np.array([width], np.uint16),
        box,
        np.array([flip]),
        shape,
    )
    fraction = int(dct_fractions(box, shape)[0])
    window = (box_h // fraction + 2) * (-(-width // fraction) + 2)
    resizes = shape != (box_h, box_w)
    work = GuardedWorkspace(window, box_h // fraction + 2, width, shape, resizes=resizes)
    out = guarded(shape[0] * shape[1] * 3)
    decode.crop_images(0, 1, table, *shape, work.target, out.ctypes.data, status)
    if status[0] != OK:
        if problem is None:
            raise Finding(f"sound as a whole, and its window {box.tolist()} is not")
        return "error"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = opened_by_pillow(data)
            if fraction > 1:
                image.draft("RGB", (width // fraction, height // fraction))
            expected = _crop(image.convert("RGB"), box[0].tolist(), fraction, flip, shape)
    except Exception as error:
        if problem is not None:
            return "outside"
        raise Finding(f"delivered, and Pillow refuses it: {error}") from error
    worst = np.abs(out.reshape(*shape, 3).astype(int) - expected).max()
    if worst:
        raise Finding(f"differs from Pillow by {worst}; as a whole: {problem}")
    return "right"


def opened_by_pillow(data: bytes) -> Image.Image:
    """Without the markers TEM, which may stand anywhere between segments: libjpeg passes over them,
    and Pillow does not know them."""
    try:
        return Image.open(io.BytesIO(data), formats=["JPEG"])
    except OSError:
        return Image.open(io.BytesIO(data.replace(b"\xff\x01", b"")), formats=["JPEG"])


KINDS: dict[str, Callable[[Random, Path, bool], str]] = {
    "index": of_index,
    "data": of_data,
    "manifest": of_manifest,
    "pairing": of_pairing,
    "centroids": of_centroids,
    "feature cache": of_cache,
    "jpeg": of_jpeg,
    "sampling": of_sampling,
    "conversion": of_conversion,
}


def unchanged(case: Case) -> bool:
    """Whether a case is a sound file."""
    return case.number % UNCHANGED == 0


def judge(case: Case, seed: int, folder: Path, growth_mb: float | None = GROWTH_MB) -> Verdict:
    """Run one case in this process; ``growth_mb`` is ``None`` where memory is not looked at."""
    random, change = Random(f"{seed} {case}"), not unchanged(case)
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    before = status_mb("VmRSS")
    forget_peak()
    try:
        with guards():
            outcome = KINDS[case.kind](random, folder, change)
        if not change and outcome != "right":
            raise Finding(f"the sound file is {outcome}")
        if growth_mb is not None:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            grown = status_mb("VmHWM") - before
            if grown > growth_mb + GROWTH_A_BYTE * size / 2**20:
                raise Finding(f"took {grown:.0f} MB for files of {size / 2**20:.2f} MB")
    except Finding as finding:
        return Verdict("finding", str(finding))
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict("finding", f"{error!r:.300} ({Path(at.filename).name}:{at.lineno})")
    return Verdict(outcome, "")
