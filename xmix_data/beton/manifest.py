"""The manifest ``FILE.beton.json``: class names, counts, hashes and origin of a beton.

Comes in: what a conversion knows, or a file. Goes out: the file's bytes, or what it says; a
manifest that says something impossible is a `BetonError`. Its keys stand in docs/formats.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np

from xmix_data.errors import BetonError
from xmix_data.images import ImageSource
from xmix_data.names import first_repeated, same_forms
from xmix_data.remote import listed, name_of, path_or_url, with_name
from xmix_data.version import VERSION

__all__ = [
    "are_texts",
    "manifest_bytes",
    "manifest_path",
    "parse_manifest",
    "read_manifest",
    "shard_entry",
    "shard_name",
    "shards_of",
    "what_is_missing",
]


_NO_TEXT = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Pattern of the lone surrogates that JSON can name and no UTF-8 file can hold.

The other surrogates stand for bytes of file names that are not UTF-8.
"""

_FORMAT, _VERSION = "xmix_data.manifest", 1


@overload
def manifest_path(path: os.PathLike[str]) -> Path: ...
@overload
def manifest_path(path: str | os.PathLike[str]) -> Path | str: ...
def manifest_path(path: str | os.PathLike[str]) -> Path | str:
    """Return the path of a beton's manifest; its URL for the URL of a beton."""
    place = path_or_url(path)
    return with_name(place, f"{name_of(place)}.json")


def read_manifest(beton: Path, *, byte_length: int, num_samples: int) -> dict[str, Any] | None:
    """Read and check a beton's manifest; return ``None`` where the beton has none.

    That of a link lies beside it, or beside the file that it leads to.

    Args:
        beton: Path of the beton.
        byte_length, num_samples: Length and number of samples that the beton has.

    Raises:
        BetonError: The manifest is damaged, or describes another beton.
        OSError: The manifest cannot be read.
    """
    path = manifest_path(beton)
    if not path.exists():
        path = manifest_path(beton.resolve())
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); it belongs to {beton.name}, mend it"
        raise type(error)(error.errno, message) from error
    manifest = parse_manifest(data, str(path))
    length, samples = manifest["byte_length"], manifest["num_samples"]
    if (length, samples) != (byte_length, num_samples):
        raise BetonError(
            f"{path}: describes a beton of {samples!r} samples and {length!r} bytes, but "
            f"{beton.name} has {num_samples} and {byte_length}; {_REMEDY}"
        )
    return manifest


_REMEDY = "convert it again, or remove the manifest to load it without class names"


def parse_manifest(data: bytes, path: str) -> dict[str, Any]:
    """Read a manifest.

    Args:
        data: Its bytes.
        path: Its path or URL, for messages.

    Raises:
        BetonError: It is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads(data.decode("utf-8", "surrogateescape"))
        if manifest["format"] != _FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
        if manifest["version"] != _VERSION:
            raise ValueError(f"its version is {manifest['version']!r}, known is {_VERSION}")
        names, counts = manifest["class_names"], manifest["class_counts"]
        if not are_texts(names) or len(names) != len(counts):
            raise ValueError("class_names and class_counts do not fit together")
        manifest["class_names"] = same_forms(names)
        if first_repeated(manifest["class_names"]) is not None:
            raise ValueError("two classes have the same name")
        if not _is_count(manifest["byte_length"]) or not _is_count(manifest["num_samples"]):
            raise ValueError("byte_length or num_samples is no number")
        if not are_texts([manifest["content_hash"], manifest["encoding"]]):
            raise ValueError("content_hash or encoding is no text")
        _check_shard(manifest.get("shard"))
        _check_missing(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BetonError(f"{path}: damaged manifest ({reason}); {_REMEDY}") from error
    return manifest


def manifest_bytes(facts: Mapping[str, Any]) -> bytes:
    """Return the bytes of a manifest: what a conversion knows, with format and versions."""
    document = {"format": _FORMAT, "version": _VERSION, **facts, "versions": _versions()}
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="surrogateescape")


def what_is_missing(facts: Mapping[str, Any]) -> list[str]:
    """Say what of the source is not in a beton as it was, counted, a phrase each.

    Args:
        facts: A manifest; what an earlier version did not count is left out.
    """
    phrases = []
    if facts.get("skipped"):
        reasons = Counter(_kind(entry["reason"]) for entry in facts["skipped"])
        phrases.append(f"skipped {len(facts['skipped'])} unreadable images ({_counted(reasons)})")
    if facts.get("left_out"):
        suffixes = Counter({suffix or "no suffix": n for suffix, n in facts["left_out"].items()})
        phrases.append(f"left out {suffixes.total()} files ({_counted(suffixes)})")
    if facts.get("kept") is not None:
        anew = facts["num_samples"] - facts["kept"]
        phrases.append(f"{facts['kept']} images kept their bytes, {anew} were encoded anew")
    return phrases


def _counted(things: Counter[str]) -> str:
    return ", ".join(f"{count} {thing}" for thing, count in things.most_common())


def _kind(reason: str) -> str:
    """Shorten a reason to what images have in common: without numbers, names and details."""
    text = re.sub(r"^\[Errno \d+\] ", "", reason)
    return re.sub(r"\d+", "N", re.split(r"[(:;,]", text)[0].strip())


def are_texts(values: Any) -> bool:
    """Return whether it is a list of texts that a file can hold."""
    return isinstance(values, list) and all(
        isinstance(value, str) and not _NO_TEXT.search(value) for value in values
    )


def _check_shard(shard: Any) -> None:
    if shard is None:
        return
    index, count = shard["index"], shard["count"]
    if type(index) is not int or type(count) is not int or not 0 <= index < count:
        raise ValueError("it is a shard without a place in its set")
    if not isinstance(shard["set"], str):
        raise ValueError("it is a shard of no set")


def _check_missing(manifest: Mapping[str, Any]) -> None:
    for entry in manifest.get("skipped", []):
        if not are_texts([entry["path"], entry["reason"]]):
            raise ValueError("a skipped image has no path or reason")
    left_out = manifest.get("left_out", {})
    if not are_texts(list(left_out)) or not all(_is_count(n) for n in left_out.values()):
        raise ValueError("left_out does not count files by suffix")
    kept = manifest.get("kept")
    if kept is not None and not (_is_count(kept) and kept <= manifest["num_samples"]):
        raise ValueError("kept is no number of its images")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def shard_entry(
    source: ImageSource, shard: tuple[int, int], options: dict[str, Any]
) -> dict[str, Any]:
    """Return a manifest's entry of a shard; the shards of one conversion share the set's hash."""
    text = f"{source.fingerprint}\0{shard[1]}\0{sorted(options.items())}"
    return {
        "index": shard[0],
        "count": shard[1],
        "set": hashlib.sha256(text.encode()).hexdigest(),
    }


def shard_name(name: str, index: int, count: int) -> str:
    """Return the file name of a shard, as ``source-00003-of-00064.beton`` of ``source.beton``."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem if dot else suffix}-{index:05}-of-{count:05}" + (f".{suffix}" if dot else "")


def shards_of(path: str | os.PathLike[str]) -> dict[int, dict[int, Path | str]]:
    """Find the whole shards that lie where a beton could: by the set's number of shards, by index.

    Whole is a shard with its manifest, which is written last.

    Args:
        path: Path or URL of the set, as it was given to the conversion of each shard.
    """
    place = path_or_url(path)
    stem, dot, suffix = name_of(place).rpartition(".")
    number = r"-(\d{5,})-of-(\d{5,})"
    pattern = re.compile(
        re.escape(stem if dot else suffix) + number + re.escape(dot + suffix) * bool(dot)
    )
    found: dict[int, dict[int, Path | str]] = {}
    names = set(listed(place))
    for name in names:
        if (match := pattern.fullmatch(name)) and f"{name}.json" in names:
            found.setdefault(int(match[2]), {})[int(match[1])] = with_name(place, name)
    return {count: dict(sorted(shards.items())) for count, shards in sorted(found.items())}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from PIL import features

    return {
        "xmix_data": VERSION,
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": np.__version__,
        "pillow": version("pillow"),
        "libjpeg-turbo": str(features.version("libjpeg_turbo")),
    }
