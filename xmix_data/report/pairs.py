"""The report's table of pairs: each target class with its source classes and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from xmix_data.beton import Domain
from xmix_data.pairing import Similarity
from xmix_data.report.pictures import PictureSize
from xmix_data.report.rows import (
    UNFOLDED,
    VERDICTS,
    Row,
    Source,
    counted,
    verdict_counts,
    verdict_of,
)

__all__ = ["cosine_label", "pairs_note", "pairs_part"]


_MOST_LISTED = 20_000
"""Source classes on the page; beyond them a target class says how many more it has."""


def pairs_note(rows: Sequence[Row], similarity: Similarity | None, several: bool) -> str:
    """What the verdicts mean, above the table."""
    first = "The least similar pairs come first: they are the ones to look at."
    if similarity is None:
        return f'<p class="soft">{first}</p>'
    counts = verdict_counts(rows, similarity)
    weak, poor = (similarity.mean + k * similarity.std for k in (2, 1))
    texts = {
        "good": counted(counts["good"], "target class", "target classes"),
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
    return f'<span class="verdict {verdict}">{VERDICTS[verdict]}</span>'


def pairs_part(
    rows: Sequence[Row],
    target: Domain,
    source: Domain,
    similarity: Similarity | None,
    several: bool,
) -> str:
    """The table's rows."""
    size = PictureSize.that_fits(rows)
    listed = max(UNFOLDED, _MOST_LISTED // len(rows))
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
            f'<span class="soft">{counted(len(row.images), "image")}</span></div>'
            f"{size.strip(target, row.images, row.name)}</th>"
            f'<td role="cell">{_source_list(items, row)}</td>'
            f'<td role="cell" class="number" data-label="{cosine_label(several)}">'
            f'{row.cosine:.3f}</td><td role="cell" class="number" data-label="Source images">'
            f"{row.num_images:,}</td></tr>"
        )
    return "\n".join(lines)


def cosine_label(several: bool) -> str:
    """The heading of the column of cosines."""
    return "Mean cosine" if several else "Cosine"


def _source_item(part: Source, similarity: Similarity | None, several: bool, pictures: str) -> str:
    details = [f"{part.paired.cosine:.3f}", counted(len(part.images), "image")] if several else []
    details += [part.file] if part.file is not None else []
    line = f'<span class="name">{escape(part.paired.name)}</span>'
    line += "".join(f'<span class="soft">{escape(text)}</span>' for text in details)
    if similarity is not None:
        line += _chip(verdict_of(part.paired.cosine, similarity))
    return f'<li><div class="line">{line}</div>{pictures}</li>'


def _source_list(items: Sequence[str], row: Row) -> str:
    shown, folded = items[:UNFOLDED], items[UNFOLDED:]
    html = f'<ul class="sources">{"".join(shown)}</ul>'
    left_out = row.sources[len(items) :]
    more = len(folded) + len(left_out)
    if not more:
        return html
    if left_out:
        images = counted(sum(len(part.images) for part in left_out), "image")
        folded = [*folded, f'<li class="soft">{len(left_out):,} not listed here, {images}</li>']
    return (
        f"{html}<details><summary>{counted(more, 'more source class', 'more source classes')}"
        f'</summary><ul class="sources">{"".join(folded)}</ul></details>'
    )
