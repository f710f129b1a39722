"""A pairing's file: JSON that names classes, never ids (docs/formats.md).

Comes in: what a `Pairing` holds, or a file. Goes out: the file, or what it holds; a file that says
something impossible is a `ValueError` that names it.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmix_data.names import same_form
from xmix_data.options import MAX_SEED, whole_number
from xmix_data.pairing.paired import MATRIX_DECIMALS, PairedClass, Similarity, shown_classes
from xmix_data.remote import path_or_url, text_of, whole_file

__all__ = ["Contents", "read", "write"]


_FORMAT, _VERSION = "xmix_data.pairing", 1


class Contents(NamedTuple):
    """Contents of a pairing's file: the fields of a `Pairing`."""

    pairs: Mapping[str, Sequence[PairedClass]]
    options: Mapping[str, Any]
    target: Mapping[str, Any]
    source: Mapping[str, Any]
    similarity: Similarity | None


def write(path: str | os.PathLike[str], contents: Contents) -> None:
    """Write a pairing's file as JSON; it appears when whole.

    Raises:
        ValueError: `read` would not take it: one made by hand has impossible numbers, say.
        OSError: The file cannot be written, or not be uploaded.
    """
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "options": dict(contents.options),
        "target": dict(contents.target),
        "source": dict(contents.source),
        "pairs": [
            {"target": name, "sources": [_entry(p) for p in paired]}
            for name, paired in contents.pairs.items()
        ],
    }
    if contents.similarity is not None:
        document["similarity"] = _similarity_entry(contents.similarity)
    text = json.dumps(
        document,
        indent=1,
        ensure_ascii=False,
        allow_nan=False,
        default=operator.methodcaller("item"),  # numbers of NumPy, in a pairing made by hand
    )
    text += "\n"
    try:
        _parse(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: the pairing cannot be saved, as {error}; correct it") from error
    with whole_file(path_or_url(path)) as stream:
        stream.write(text.encode(errors="surrogateescape"))


def read(path: str | os.PathLike[str]) -> Contents:
    """Read a pairing's file.

    Raises:
        FileNotFoundError: No such file.
        OSError: It is a URL, and the store does not give it.
        ValueError: The file is damaged or of another kind; names what is wrong with it.
    """
    place = path_or_url(path)
    try:
        text = text_of(place)
    except FileNotFoundError as error:
        where = path if isinstance(place, Path) else error
        raise FileNotFoundError(f"{where}: no such pairing; make one with `xmix pair`") from None
    try:
        return _parse(json.loads(text))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path}: damaged pairing ({reason}); run `xmix pair` again") from error


def _parse(document: Any) -> Contents:
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"it is no document of format {_FORMAT!r}")
    if document["version"] != _VERSION:
        raise ValueError(f"its version is {document['version']!r}, known is {_VERSION}")
    options, target, source = (
        _parse_mapping(key, document[key]) for key in ("options", "target", "source")
    )
    whole_number("seed", options.get("seed", 0), 0, MAX_SEED)
    shared = options.get("strict", False)
    if not isinstance(shared, bool):
        raise ValueError(f"strict is {shared!r}, neither true nor false")
    pairs = _parse_pairs(document["pairs"], shared=shared)
    for provenance in (target, source):
        _check_domains(provenance)
    _check_sources(pairs, len(source.get("domains", ())))
    similarity = document.get("similarity")
    parsed = None if similarity is None else _parse_similarity(similarity, len(pairs))
    return Contents(pairs, options, target, source, parsed)


def _entry(paired: PairedClass) -> dict[str, Any]:
    """Return a source class as JSON's values, without what is at its default."""
    cosine = None if math.isnan(paired.cosine) else paired.cosine
    entry: dict[str, Any] = {"name": paired.name, "cosine": cosine, "images": paired.images}
    if paired.first is not None:
        entry["first"] = paired.first
    if paired.domain:
        entry["domain"] = paired.domain
    return entry


def _parse_mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} is no object")
    return value


def _parse_pairs(entries: Any, *, shared: bool) -> dict[str, list[PairedClass]]:
    pairs: dict[str, list[PairedClass]] = {}
    used: dict[tuple[int, str], list[tuple[str, PairedClass]]] = {}
    for entry in entries:
        name = entry["target"]
        if isinstance(name, str):
            name = same_form(name)
        if not isinstance(name, str) or name in pairs:
            raise ValueError(f"target class {name!r} stands there twice or is no name")
        pairs[name] = [_parse_paired(source) for source in entry["sources"]]
        if not pairs[name]:
            raise ValueError(f"target class {name!r} has no source classes")
        for source in pairs[name]:
            used.setdefault((source.domain, source.name), []).append((name, source))
    if not pairs:
        raise ValueError("it pairs no classes")
    for (_, source_name), users in used.items():
        users.sort(key=lambda user: user[1].first or 0)
        for (one, earlier), (other, later) in itertools.pairwise(users):
            if (one == other or not shared) and _overlap(earlier, later):
                raise ValueError(
                    f"source class {source_name!r} is paired with {one!r} and again with {other!r}"
                )
    return pairs


def _parse_paired(entry: Any) -> PairedClass:
    name, cosine = entry["name"], entry["cosine"]
    if cosine is None:  # a random pair, made without features
        known = _parse_paired({**entry, "cosine": 0.0})
        return known._replace(cosine=math.nan)
    numbers = (entry["images"], entry.get("domain", 0), entry.get("first"))
    if not isinstance(name, str):
        raise ValueError(f"source class {name!r} is no name")
    strange = set(entry) - {*PairedClass._fields}
    if strange:
        raise ValueError(f"source class {name!r} has the unknown key {min(strange)!r}")
    if any(isinstance(number, bool) for number in (cosine, *numbers)):
        raise ValueError(f"source class {name!r} has true or false for a number")
    images, domain, first = (None if n is None else operator.index(n) for n in numbers)
    if images is None or domain is None or not isinstance(cosine, (int, float)):
        raise ValueError(f"source class {name!r} lacks a number")
    if not -1 <= cosine <= 1 or images < 1 or (first or 0) < 0 or domain < 0:
        raise ValueError(f"source class {name!r} has impossible numbers")
    return PairedClass(same_form(name), float(cosine), images, first, domain)


def _overlap(one: PairedClass, other: PairedClass) -> bool:
    """Return whether two parts of a class, in the order of their first images, overlap."""
    return one.first is None or other.first is None or other.first < one.first + one.images


def _check_domains(provenance: Mapping[str, Any]) -> None:
    for domain in provenance.get("domains", ()):
        for key in ("files", "fingerprints"):
            texts = domain[key]
            if (
                not texts
                or not isinstance(texts, list)
                or not all(isinstance(t, str) for t in texts)
            ):
                raise ValueError(f"domains have no list of {key}")


def _check_sources(pairs: Mapping[str, Sequence[PairedClass]], sources: int) -> None:
    for paired in (p for ps in pairs.values() for p in ps):
        if paired.domain >= max(1, sources):
            raise ValueError(
                f"source class {paired.name!r} is of source {paired.domain}, and it knows {sources}"
            )


def _similarity_entry(similarity: Similarity) -> dict[str, Any]:
    return {
        "mean": similarity.mean,
        "std": similarity.std,
        "by_method": dict(similarity.by_method),
        "matrix": [
            " ".join(f"{cosine:.{MATRIX_DECIMALS}f}" for cosine in row)
            for row in similarity.matrix.tolist()
        ],
    }


def _parse_similarity(entry: Any, classes: int) -> Similarity:
    classes = len(shown_classes(classes))
    matrix = np.array([row.split() for row in entry["matrix"]], np.float32)
    by_method = {str(name): float(value) for name, value in entry["by_method"].items()}
    similarity = Similarity(float(entry["mean"]), float(entry["std"]), matrix, by_method)
    numbers = [similarity.mean, similarity.std, *by_method.values()]
    if (
        matrix.shape != (classes, classes)
        or not all(-1 <= number <= 1 for number in numbers)
        or similarity.std < 0
        or not np.all(np.abs(matrix) <= 1)
    ):
        raise ValueError("similarity has impossible numbers")
    return similarity
