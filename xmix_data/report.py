"""A pairing as one web page: pictures, similarities, images to draw from, mixed samples.

Comes in: a `Pairing` and the betons of its classes. Goes out: an HTML file that needs no other
file and no network. Its frame, style and script stand in ``report.html``.

Names of classes and files are the user's: whatever they hold, it is shown as text. The page also
forbids every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from xmix_data import charts
from xmix_data.beton import BetonLike, Domain, open_domain, open_images
from xmix_data.errors import BetonError
from xmix_data.files import whole_file
from xmix_data.jpeg import jpeg_problem
from xmix_data.pairing import Draw, PairedClass, Pairing, Similarity, shown_classes
from xmix_data.plan import ImageSizes, SourcePool

__all__ = ["write_report"]

_PICTURE_BYTES = 11e6
"""What all pictures together may take, about, so that the page stays below 20 MB."""
_PICTURES = ((3, 96), (3, 72), (2, 72), (1, 72), (1, 48))
"""(Pictures of a class, their side in pixels), the best first."""
_MOST_LISTED = 20_000
"""Source classes on the page; beyond them a target class says how many more it has."""
_UNFOLDED = 4
"""Source classes of a target class that show without a click."""
_MOST_NAMED = 40
"""Classes whose names fit beside the matrix."""
_MIXED_PAIRS, _MIXED_SIDE = 5, 96
_QUANTILES = (0.9, 0.7, 0.5, 0.3, 0.1)
"""Of λ: from much of the target, which stands at the left, to much of the source."""
_COLOURS = ("#221a44", "#35508d", "#2a8799", "#57b97a", "#c6d84f", "#fdf3b0")
"""Of the matrix, from its lowest cosine to its highest; lighter is more."""

_VERDICTS = {"good": "clearly similar", "weak": "weak", "poor": "no better than arbitrary"}


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


@dataclass(frozen=True)
class _Source:
    """One source class of a target class."""

    paired: PairedClass
    images: npt.NDArray[np.int64]
    """Sample indices that the target class draws."""
    file: str | None
    """Where it comes from, if there are several source domains."""


@dataclass(frozen=True)
class _Row:
    """One target class."""

    name: str
    images: npt.NDArray[np.int64]
    sources: Sequence[_Source]

    @property
    def cosine(self) -> float:
        """Mean over the source images: each is drawn as often."""
        total = sum(len(source.images) * source.paired.cosine for source in self.sources)
        return total / self.num_images

    @property
    def num_images(self) -> int:
        return sum(len(source.images) for source in self.sources)


def _page(pairing: Pairing, target: Domain, source: Domain, alpha: float, beta: float) -> str:
    rows = _rows(pairing, target, source)
    frame = files("xmix_data").joinpath("report.html").read_text(encoding="utf-8")
    script = frame.split("<script>")[1].split("</script>")[0]
    similarity, (titled, heading) = pairing.similarity, _titles(target, source)
    several = any(len(row.sources) > 1 for row in rows)
    plain = {
        "script_hash": "sha256-" + _base64(hashlib.sha256(script.encode()).digest()),
        "title": escape(titled),
        "heading": heading,
        "colours": ", ".join(_COLOURS),
        "strip": str(len(_QUANTILES) + 2),
        "facts": _facts(_summary(pairing, rows, source)),
        "warnings": _warnings(pairing, rows),
        "pairs_note": _pairs_note(rows, similarity, several),
        "shown": f"{len(rows)} of {len(rows)} target classes",
        "cosine_label": _cosine_label(several),
        "pairs": _pairs(rows, target, source, similarity, several),
        "similarity": _similarities(pairing, rows),
        "matrix": _matrix(rows, similarity),
        "images": _images(rows, target),
        "mixed": _mixed(rows, target, source, alpha, beta),
        "provenance": _provenance(pairing, target, source, alpha, beta),
        "data": _data(rows, similarity),
    }
    return Template(frame).substitute(plain)


def _rows(pairing: Pairing, target: Domain, source: Domain) -> list[_Row]:
    draws = pairing.draws(target, source)
    classes = [Draw(label, None, 0) for label in range(len(target.class_names))]
    own = _drawn(target, classes, 0)
    drawn = iter(_drawn(source, [draw for of_one in draws for draw in of_one], pairing.seed))
    parts = source.provenance
    several = len(parts) > 1
    rows = {}
    for label, name in enumerate(target.class_names):
        if name in rows:
            raise ValueError(
                f"two target classes are named {name!r}; a pairing names them, rename one"
            )
        if not len(own[label]):
            raise ValueError(f"target class {name!r} has no images; give the betons that have them")
        sources = []
        for paired, draw in zip(pairing.pairs[name], draws[label], strict=True):
            images = next(drawn)
            if not len(images):
                raise ValueError(
                    f"source class {paired.name!r}, paired with {name!r}, has no images; "
                    "give the betons that have them, or run `xmix pair` again"
                )
            part = parts[int(source.domain_of_class(np.array(draw.label)))]
            sources.append(_Source(paired, images, _file_list(part["files"]) if several else None))
        rows[name] = _Row(name, own[label], sources)
    return [rows[name] for name in pairing.pairs]


def _drawn(domain: Domain, draws: Sequence[Draw], seed: int) -> list[npt.NDArray[np.int64]]:
    """The sample indices of each draw, as a loader has them."""
    sizes = ImageSizes(domain.heights, domain.widths)
    pool = SourcePool(domain.labels, [[draw] for draw in draws], sizes, seed)
    return np.split(pool.images, np.cumsum(pool.counts)[:-1])


def _picture(domain: Domain, index: int, side: int) -> Image.Image:
    """The centre square of an image, ``side`` pixels wide, RGB."""
    beton, local = domain.locate(index)
    data, _ = open_images(beton).read(local)
    if isinstance(data, bytes):
        problem = jpeg_problem(data, int(beton.heights[local]), int(beton.widths[local]))
        if problem is not None:
            raise BetonError(f"{beton.describe(local)}: {problem}; convert it again")
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        image.draft("RGB", (2 * side, 2 * side))
        data = image.convert("RGB")
    else:
        data = Image.fromarray(data)
    return ImageOps.fit(data, (side, side), Image.Resampling.BILINEAR)


def _img(image: Image.Image, alt: str) -> str:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=82, optimize=True)
    uri = "data:image/jpeg;base64," + _base64(stream.getvalue())
    return f'<img loading="lazy" alt="{escape(alt)}" src="{uri}">'


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class _PictureSize:
    """How many pictures of a class, how large, and for how many sources of a target class."""

    count: int
    side: int
    sources: int

    @classmethod
    def that_fits(cls, rows: Sequence[_Row]) -> _PictureSize:
        lengths = np.array([len(row.sources) for row in rows])
        most = int(lengths.max())
        choices = [cls(count, side, most) for count, side in _PICTURES]
        choices += [cls(1, 48, sources) for sources in (_UNFOLDED, 1)]
        for choice in choices:
            # Measured on photographs: a JPEG of this size has about this many bytes.
            expected = 120 + 4 / 3 * (400 + 0.27 * choice.side**2)
            classes = len(rows) + int(np.minimum(lengths, choice.sources).sum())
            if classes * choice.count * expected <= _PICTURE_BYTES:
                return choice
        return cls(0, 0, 0)

    def strip(self, domain: Domain, images: npt.NDArray[np.int64], name: str) -> str:
        """Pictures spread over the images of a class."""
        count = min(self.count, len(images))
        if count == 0:
            return ""
        chosen = images[(2 * np.arange(count) + 1) * len(images) // (2 * count)]
        tags = []
        for number, index in enumerate(chosen.tolist(), 1):
            side = min(self.side, int(domain.heights[index]), int(domain.widths[index]))
            picture = _picture(domain, index, side)
            tags.append(_img(picture, f"{name}, picture {number} of {count}"))
        return f'<div class="pictures">{"".join(tags)}</div>'


def _titles(target: Domain, source: Domain) -> tuple[str, str]:
    names = [_file_list([b.path.stem for b in domain.betons]) for domain in (target, source)]
    marked = [f'<span class="name">{escape(name)}</span>' for name in names]
    return f"{names[0]} paired with {names[1]}", f"{marked[0]} paired with {marked[1]}"


def _file_list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _summary(pairing: Pairing, rows: Sequence[_Row], source: Domain) -> dict[str, str]:
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
    share = _share(pairing.similarity, "greedy")
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


def _share(similarity: Similarity | None, method: str) -> str | None:
    """How much of the largest possible sum of cosines a method reaches."""
    by_method = {} if similarity is None else similarity.by_method
    if min(by_method.get(method, 0), by_method.get("optimal", 0)) <= 0:
        return None
    return f"{100 * by_method[method] / by_method['optimal']:.1f} %"


def _verdict(cosine: float, similarity: Similarity) -> str:
    """Against all pairs of a target and a source class, in their standard deviations."""
    above = cosine - similarity.mean
    return "good" if above >= 2 * similarity.std else "weak" if above >= similarity.std else "poor"


def _verdict_counts(rows: Sequence[_Row], similarity: Similarity) -> dict[str, int]:
    """How many target classes draw from what is, on average, how similar."""
    verdicts = [_verdict(row.cosine, similarity) for row in rows]
    return {verdict: verdicts.count(verdict) for verdict in _VERDICTS}


def _warnings(pairing: Pairing, rows: Sequence[_Row]) -> str:
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
    poor, method = _verdict_counts(rows, similarity)["poor"], str(pairing.options.get("method", ""))
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


def _pairs_note(rows: Sequence[_Row], similarity: Similarity | None, several: bool) -> str:
    first = "The least similar pairs come first: they are the ones to look at."
    if similarity is None:
        return f'<p class="soft">{first}</p>'
    counts = _verdict_counts(rows, similarity)
    weak, poor = (similarity.mean + k * similarity.std for k in (2, 1))
    texts = {
        "good": _count(counts["good"], "target class", "target classes"),
        "weak": f"{counts['weak']}, cosine below {weak:.2f}",
        "poor": f"{counts['poor']}, below {poor:.2f}, where arbitrary source classes lie",
    }
    items = "".join(f"<li>{_chip(verdict)} {text}</li>" for verdict, text in texts.items())
    mean = " A target class counts by the mean over its source images." if several else ""
    return (
        f'<ul class="legend">{items}</ul><p class="soft">The limits lie two standard deviations, '
        "and one, above the mean cosine of all combinations of a target and a source class."
        f"{mean} {first}</p>"
    )


def _chip(verdict: str) -> str:
    return f'<span class="verdict {verdict}">{_VERDICTS[verdict]}</span>'


def _pairs(
    rows: Sequence[_Row],
    target: Domain,
    source: Domain,
    similarity: Similarity | None,
    several: bool,
) -> str:
    size = _PictureSize.that_fits(rows)
    listed = max(_UNFOLDED, _MOST_LISTED // len(rows))
    lines = []
    for row in sorted(rows, key=lambda row: row.cosine):
        items = [
            _source_item(
                part,
                similarity,
                several,
                size.strip(source, part.images, part.paired.name) if k < size.sources else "",
            )
            for k, part in enumerate(row.sources[:listed])
        ]
        lines.append(
            f'<tr role="row" data-cosine="{row.cosine:.6f}" data-images="{row.num_images}">'
            '<th role="rowheader" scope="row"><div class="line">'
            f'<span class="name">{escape(row.name)}</span>'
            f'<span class="soft">{_count(len(row.images), "image")}</span></div>'
            f"{size.strip(target, row.images, row.name)}</th>"
            f'<td role="cell">{_source_list(items, row)}</td>'
            f'<td role="cell" class="number" data-label="{_cosine_label(several)}">'
            f'{row.cosine:.3f}</td><td role="cell" class="number" data-label="Source images">'
            f"{row.num_images:,}</td></tr>"
        )
    return "\n".join(lines)


def _cosine_label(several: bool) -> str:
    return "Mean cosine" if several else "Cosine"


def _source_item(part: _Source, similarity: Similarity | None, several: bool, pictures: str) -> str:
    details = [f"{part.paired.cosine:.3f}", _count(len(part.images), "image")] if several else []
    details += [part.file] if part.file is not None else []
    line = f'<span class="name">{escape(part.paired.name)}</span>'
    line += "".join(f'<span class="soft">{escape(text)}</span>' for text in details)
    if similarity is not None:
        line += _chip(_verdict(part.paired.cosine, similarity))
    return f'<li><div class="line">{line}</div>{pictures}</li>'


def _source_list(items: Sequence[str], row: _Row) -> str:
    shown, folded = items[:_UNFOLDED], items[_UNFOLDED:]
    html = f'<ul class="sources">{"".join(shown)}</ul>'
    left_out = row.sources[len(items) :]
    more = len(folded) + len(left_out)
    if not more:
        return html
    if left_out:
        images = _count(sum(len(part.images) for part in left_out), "image")
        folded = [*folded, f'<li class="soft">{len(left_out):,} not listed here, {images}</li>']
    return (
        f"{html}<details><summary>{_count(more, 'more source class', 'more source classes')}"
        f'</summary><ul class="sources">{"".join(folded)}</ul></details>'
    )


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _similarities(pairing: Pairing, rows: Sequence[_Row]) -> str:
    similarity = pairing.similarity
    cosines = np.array([part.paired.cosine for row in rows for part in row.sources])
    caption = (
        f"Cosines of {_count(len(cosines), 'pair')}, {cosines.min():.3f} to {cosines.max():.3f}."
    )
    band, table = None, ""
    if similarity is not None:
        band, table = (similarity.mean, similarity.std), _method_table(pairing, similarity)
        caption += (
            f" Shaded: where arbitrary pairs of a target and a source class lie (mean "
            f"{similarity.mean:.2f}, standard deviation {similarity.std:.2f}). Dashed: two "
            "standard deviations above that mean; pairs left of it are weak."
        )
    chart = charts.histogram(cosines, band)
    return (
        f'<div class="beside"><figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>'
        f"<div>{table}</div></div>"
    )


def _method_table(pairing: Pairing, similarity: Similarity) -> str:
    """How well each method would have done in one round."""
    lines = []
    best_last = sorted(similarity.by_method.items(), key=lambda item: item[1])
    for method, cosine in reversed(best_last):
        own = ' class="own"' if method == pairing.options.get("method") else ""
        share = _share(similarity, method) or ""
        lines.append(
            f'<tr{own}><th scope="row">{escape(method)}</th><td>{cosine:.3f}</td>'
            f"<td>{share}</td></tr>"
        )
    if not lines:
        return ""
    return (
        '<p>What one round by each method would give:</p><table class="plain"><thead><tr>'
        '<th scope="col">Method</th><th scope="col">Mean cosine</th>'
        f'<th scope="col">Of the optimum</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


def _images(rows: Sequence[_Row], target: Domain) -> str:
    ordered = sorted(rows, key=lambda row: row.num_images)
    counts = [row.num_images for row in ordered]
    low, middle, high = counts[0], float(np.median(counts)), counts[-1]
    text = f"Every target class draws from {_count(low, 'source image')}."
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


def _matrix(rows: Sequence[_Row], similarity: Similarity | None) -> str:
    if similarity is None:
        return (
            "<p>This pairing records no similarities of other classes than its pairs, as it was "
            "made by hand; <code>xmix pair</code> records them.</p>"
        )
    cells, cosines = shown_classes(len(rows)), similarity.matrix
    low, high = float(cosines.min()), float(cosines.max())
    levels = np.rint((cosines - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    picture = Image.fromarray(levels)
    picture.putpalette(_palette())
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    size = len(cells)
    pixels = size * max(1, min(26, 640 // size))
    part = f" It shows {size:,} of the {len(rows):,} target classes." if size < len(rows) else ""
    text = (
        "A row is a target class, a column the first source class of each target class in the "
        "same order, so that the pairs stand on the diagonal. A bright diagonal on dark ground is "
        "a good pairing. A row with other bright cells has other source classes that would suit; "
        f"a dark row has none.{part}"
    )
    named = ["", ""]
    if size <= _MOST_NAMED:
        lists = [rows[k].name for k in cells], [rows[k].sources[0].paired.name for k in cells]
        items = [
            "".join(f"<li><span>{escape(name)}</span></li>" for name in names) for names in lists
        ]
        named = [
            f'<ol class="rows" aria-hidden="true">{items[0]}</ol>',
            f'<ol class="columns" aria-hidden="true" style="width:{pixels}px">{items[1]}</ol>',
        ]
    return (
        f'<p class="soft">{escape(text)}</p>'
        f'<div class="scale"><span>{low:.2f}</span><i></i><span>{high:.2f}</span></div>'
        '<output aria-live="polite">Point at a cell, tap it, or move with the arrow keys.</output>'
        f'<div class="matrix">{named[0]}<div class="cells" tabindex="0" role="application" '
        'aria-label="Similarity matrix; the arrow keys move from cell to cell" '
        f'style="width:{pixels}px;max-width:100%;aspect-ratio:1"><img alt="" '
        f'src="data:image/png;base64,{_base64(stream.getvalue())}"></div>{named[1]}</div>'
    )


def _palette() -> list[int]:
    """256 colours, as Pillow wants them."""
    anchors = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in _COLOURS])
    places, known = np.linspace(0, 1, 256), np.linspace(0, 1, len(anchors))
    channels = [np.interp(places, known, anchors[:, k]) for k in range(3)]
    return [int(value) for value in np.rint(np.stack(channels, axis=1)).ravel()]


def _data(rows: Sequence[_Row], similarity: Similarity | None) -> str:
    """What the matrix needs to say its cells' values, as JSON."""
    if similarity is None:
        return "null"
    cells, cosines = shown_classes(len(rows)), similarity.matrix.astype(np.float64)
    document = {
        "targets": [rows[k].name for k in cells],
        "sources": [rows[k].sources[0].paired.name for k in cells],
        "cosines": _base64(np.rint(1000 * cosines).astype("<i2").tobytes()),
    }
    return json.dumps(document).replace("<", "\\u003c")  # a name must not end the script


def _mixed(rows: Sequence[_Row], target: Domain, source: Domain, alpha: float, beta: float) -> str:
    from scipy.special import betaincinv

    quantiles = betaincinv(alpha, beta, _QUANTILES)
    distinct = len({f"{lam:.2f}" for lam in quantiles}) == len(_QUANTILES)
    lams = quantiles if distinct else np.array(_QUANTILES)
    mean = alpha / (alpha + beta)
    text = (
        "λ is the weight of the target image. It is drawn anew for every image from "
        f"Beta({alpha:g}, {beta:g}); its mean is {mean:.2f}. "
    )
    text += (
        "The pictures show its 90, 70, 50, 30 and 10 % quantiles."
        if distinct
        else f"Eight of ten λ lie between {quantiles[-1]:.3f} and {quantiles[0]:.3f} and would "
        "look alike; the pictures show fixed values, some of which will hardly ever come."
    )
    ordered = sorted(rows, key=lambda row: row.sources[0].paired.cosine)
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MIXED_PAIRS)).astype(np.int64))
    figures = "".join(_mixed_row(ordered[k], target, source, lams) for k in places)
    return (
        f'<div class="beside"><p>{escape(text)}</p><figure>'
        f"{charts.beta_density(alpha, beta, lams.tolist())}<figcaption>Density of λ. Dashed: its "
        "mean; the ticks are what the pictures show.</figcaption></figure></div>"
        f'<p>From the least similar pair to the most similar one:</p><div class="mixed">{figures}'
        "</div>"
    )


def _mixed_row(row: _Row, target: Domain, source: Domain, lams: npt.NDArray[np.float64]) -> str:
    part = row.sources[0]
    ends = [
        _picture(domain, int(images[len(images) // 2]), _MIXED_SIDE)
        for domain, images in ((target, row.images), (source, part.images))
    ]
    x_t, x_s = (np.asarray(end, np.float64) for end in ends)
    cells = [(ends[0], "target", row.name)]
    for lam in lams.tolist():
        mixed = np.rint(lam * x_t + (1 - lam) * x_s).astype(np.uint8)
        cells.append((Image.fromarray(mixed), f"λ {lam:.2f}", f"mixed with λ = {lam:.2f}"))
    cells.append((ends[1], "source", part.paired.name))
    strip = "".join(f"<div>{_img(image, alt)}{text}</div>" for image, text, alt in cells)
    return (
        f'<figure><figcaption><span class="name">{escape(row.name)}</span> with '
        f'<span class="name">{escape(part.paired.name)}</span> <span class="soft">cosine '
        f'{part.paired.cosine:.3f}</span></figcaption><div class="strip">{strip}</div></figure>'
    )


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
