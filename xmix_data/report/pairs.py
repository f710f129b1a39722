"""The report's table of pairs: each target class with its source classes and their pictures.

Comes in: rows and their betons. Goes out: a `Line` for each target class, the least similar first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xmix_data.beton import Domain
from xmix_data.report.pictures import PictureSize
from xmix_data.report.rows import UNFOLDED, Limits, Row, Source, verdict_of

__all__ = ["Line", "ListedSource", "lines_of"]


_MOST_LISTED = 20_000
"""Source classes on the page; beyond them a target class says how many more it has."""


class ListedSource(NamedTuple):
    """A source class of a target class, as the table shows it."""

    source: Source
    verdict: str | None
    """``None`` where there is nothing to judge by, as in a pairing that was made by hand."""
    pictures: Sequence[str]
    """Data URIs."""


class Line(NamedTuple):
    """A target class, as the table shows it."""

    row: Row
    pictures: Sequence[str]
    """Data URIs."""
    unfolded: Sequence[ListedSource]
    """What shows without a click."""
    folded: Sequence[ListedSource]
    left_out: Sequence[Source]


def lines_of(
    rows: Sequence[Row], target: Domain, source: Domain, limits: Limits | None
) -> list[Line]:
    """Sort the target classes, and choose pictures of as many classes as the page has room for."""
    size = PictureSize.that_fits(rows)
    most = max(UNFOLDED, _MOST_LISTED // len(rows))
    lines = []
    for row in sorted(rows, key=lambda row: row.cosine):
        listed = [
            ListedSource(
                part,
                verdict_of(part.paired.cosine, limits),
                size.pictures(source, part.images) if k < size.sources else (),
            )
            for k, part in enumerate(row.sources[:most])
        ]
        pictures = size.pictures(target, row.images)
        unfolded, folded = listed[:UNFOLDED], listed[UNFOLDED:]
        lines.append(Line(row, pictures, unfolded, folded, row.sources[most:]))
    return lines
