"""A pairing as one web page: pictures, similarities, images to draw from, mixed samples.

Comes in: a `Pairing` and the betons of its classes. Goes out: an HTML file that needs no other
file and no network. Its frame, style and script stand in ``page.html``.

Names of classes and files are the user's: whatever they hold, it is shown as text. The page also
forbids every script but its own.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from xmix_data.beton import BetonLike, Domain, open_domain
from xmix_data.files import whole_file
from xmix_data.pairing import Pairing
from xmix_data.report import charts
from xmix_data.report.matrix import COLOURS, matrix_data, matrix_part
from xmix_data.report.mixed import QUANTILES, mixed_samples
from xmix_data.report.pairs import cosine_label, pairs_note, pairs_part
from xmix_data.report.pictures import base64_text
from xmix_data.report.rows import Row, counted, file_list, rows_of, share_of_optimum, verdict_counts
from xmix_data.report.similarity import similarities_part

__all__ = ["write_report"]


def write_report(
    pairing: Pairing,
    target: BetonLike | Sequence[BetonLike],
    source: BetonLike | Sequence[BetonLike],
    path: str | os.PathLike[str],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    overwrite: bool = False,
) -> Path:
    """Write a pairing as a web page to look at.

    The same pairing and betons give the same page. It appears when whole, and stays below about
    20 MB: with many classes it has fewer and smaller pictures.

    Args:
        pairing: What to show.
        target: The target domain: a beton, or a list of them.
        source: The source domain.
        path: The file to write, usually ``NAME.html``.
        alpha, beta: The mixed samples show λ ~ Beta(alpha, beta) (XMixup, Eq. 4).
        overwrite: Replace an existing file.

    Returns:
        ``path``.

    Raises:
        BetonError: A beton, or an image that would be shown, is damaged; names it.
        FileExistsError: ``path`` exists and ``overwrite`` is false.
        FileNotFoundError: A beton or the folder of ``path`` does not exist.
        ValueError: The pairing does not fit the betons, a class has no images, or ``alpha`` or
            ``beta`` is not above 0.
    """
    path = Path(path)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; Beta(alpha, beta) needs a number above 0")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; create it first")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists; choose another name or overwrite it")
    page = _page(pairing, open_domain(target), open_domain(source), alpha, beta)
    with whole_file(path) as stream:
        # A folder's name may hold bytes that are no text; they show as question marks.
        stream.write(page.encode("utf-8", "replace"))
    return path


def _page(pairing: Pairing, target: Domain, source: Domain, alpha: float, beta: float) -> str:
    rows = rows_of(pairing, target, source)
    frame = files("xmix_data.report").joinpath("page.html").read_text(encoding="utf-8")
    script = frame.split("<script>")[1].split("</script>")[0]
    similarity, (titled, heading) = pairing.similarity, _titles(target, source)
    several = any(len(row.sources) > 1 for row in rows)
    plain = {
        "script_hash": "sha256-" + base64_text(hashlib.sha256(script.encode()).digest()),
        "title": escape(titled),
        "heading": heading,
        "colours": ", ".join(COLOURS),
        "strip": str(len(QUANTILES) + 2),
        "facts": _facts(_summary(pairing, rows, source)),
        "warnings": _warnings(pairing, rows),
        "pairs_note": pairs_note(rows, similarity, several),
        "shown": f"{len(rows)} of {len(rows)} target classes",
        "cosine_label": cosine_label(several),
        "pairs": pairs_part(rows, target, source, similarity, several),
        "similarity": similarities_part(pairing, rows),
        "matrix": matrix_part(rows, similarity),
        "images": _images(rows, target),
        "mixed": mixed_samples(rows, target, source, alpha, beta),
        "provenance": _provenance(pairing, target, source, alpha, beta),
        "data": matrix_data(rows, similarity),
    }
    return Template(frame).substitute(plain)


def _titles(target: Domain, source: Domain) -> tuple[str, str]:
    names = [file_list([b.path.stem for b in domain.betons]) for domain in (target, source)]
    marked = [f'<span class="name">{escape(name)}</span>' for name in names]
    return f"{names[0]} paired with {names[1]}", f"{marked[0]} paired with {marked[1]}"


def _summary(pairing: Pairing, rows: Sequence[Row], source: Domain) -> dict[str, str]:
    used = len({(s.paired.domain, s.paired.name) for row in rows for s in row.sources})
    images = np.unique(np.concatenate([s.images for row in rows for s in row.sources]))
    method = str(pairing.options.get("method", "made by hand"))
    rounds = pairing.options.get("rounds", 1)
    facts = {
        "Target classes": f"{len(rows):,}",
        "Source classes": f"{used:,} of {len(source.class_names):,}",
        "Source images": f"{len(images):,} of {len(source):,}",
        "Model": str(pairing.source.get("model", "not recorded")),
        "Method": method if rounds in (1, None) else f"{method}, {rounds} rounds",
        "Mean cosine": f"{pairing.mean_cosine:.3f}",
    }
    share = share_of_optimum(pairing.similarity, "greedy")
    if share is not None:
        verb = "reaches" if method == "greedy" else "would reach"
        facts[f"Greedy {verb}"] = f"{share} of the optimum"
    return facts


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _warnings(pairing: Pairing, rows: Sequence[Row]) -> str:
    similarity, found = pairing.similarity, []
    if similarity is None:
        return ""
    if not similarity.tells_classes_apart:
        found.append(
            (
                "poor",
                "The features hardly tell classes apart: a target and a source class have a cosine "
                f"of {similarity.mean:.2f} on average, whatever they show. Was the backbone "
                "trained (--weights)? Random weights give such features; pair again with a "
                "trained backbone.",
            )
        )
    poor, method = verdict_counts(rows, similarity)["poor"], str(pairing.options.get("method", ""))
    if 2 * poor > len(rows):
        if method.startswith("random"):
            found.append(
                (
                    "weak",
                    f"The source was chosen at random (method {method}), so most pairs are no "
                    "better than arbitrary ones. That is what this method is for: a comparison.",
                )
            )
        else:
            found.append(
                (
                    "poor",
                    f"This pairing looks hopeless: {poor} of {len(rows)} target classes are no "
                    "more similar to their source classes than to arbitrary ones. Mixing with "
                    "them can bring little that random images would not. Try a source whose "
                    "classes resemble the target's, or another backbone.",
                )
            )
    items = "".join(f'<li class="{kind}">{escape(text)}</li>' for kind, text in found)
    return f'<ul class="warnings">{items}</ul>' if found else ""


def _images(rows: Sequence[Row], target: Domain) -> str:
    ordered = sorted(rows, key=lambda row: row.num_images)
    counts = [row.num_images for row in ordered]
    low, middle, high = counts[0], float(np.median(counts)), counts[-1]
    text = f"Every target class draws from {counted(low, 'source image')}."
    if low < high:
        fewest = ", ".join(f"{row.name} ({row.num_images:,})" for row in ordered[:3])
        text = (
            f"A target class draws from {low:,} to {high:,} source images; the median is "
            f"{middle:,.0f}. The fewest: {fewest}."
        )
    text += f" The target itself has {len(target) / len(rows):,.0f} images a class."
    chart = charts.bars(
        counts,
        [row.name for row in ordered],
        label=f"Source images of each target class: {low:,} to {high:,}, median {middle:,.0f}",
        title="target classes, from the fewest images to the most",
    )
    return f"<p>{escape(text)}</p><figure>{chart}</figure>"


def _provenance(pairing: Pairing, target: Domain, source: Domain, alpha: float, beta: float) -> str:
    facts: list[tuple[str, Any]] = []
    changed = []
    both = {key: value for key, value in pairing.target.items() if pairing.source.get(key) == value}
    facts += [item for item in both.items() if item[0] != "domains"]
    for kind, recorded, domain in (
        ("target", pairing.target, target),
        ("source", pairing.source, source),
    ):
        facts += [
            (f"{kind} {key}", value)
            for key, value in recorded.items()
            if key != "domains" and key not in both
        ]
        given = domain.provenance
        facts += [
            (f"{kind} beton", f"{file} ({fingerprint})")
            for part in given
            for file, fingerprint in zip(part["files"], part["fingerprints"], strict=True)
        ]
        known = recorded.get("domains", [])
        if known and [p["fingerprints"] for p in known] != [p["fingerprints"] for p in given]:
            changed.append(kind)
            facts.append((f"{kind} when paired", [f for part in known for f in part["files"]]))
    facts += [*pairing.options.items(), ("alpha", f"{alpha:g}"), ("beta", f"{beta:g}")]
    facts.append(("written by", f"xmix_data {version('xmix_data')}"))
    note = (
        f"<p>The pairing was computed on other {' and '.join(changed)} betons than these. Their "
        "classes are the same: these may be a part of those, as <code>xmix convert "
        "--pairing</code> makes it.</p>"
        if changed
        else ""
    )
    items = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(_text(value))}</dd>"
        for key, value in facts
        if value is not None
    )
    return f'{note}<dl class="provenance">{items}</dl>'


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
