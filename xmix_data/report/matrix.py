"""The similarity matrix of a report: a picture, its names, and the numbers behind it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from xmix_data.pairing import Similarity, shown_classes
from xmix_data.report.pictures import base64_text
from xmix_data.report.rows import Row

__all__ = ["COLOURS", "matrix_data", "matrix_part"]


_MOST_NAMED = 40
"""Classes whose names fit beside the matrix."""

COLOURS = ("#221a44", "#35508d", "#2a8799", "#57b97a", "#c6d84f", "#fdf3b0")
"""Of the matrix, from its lowest cosine to its highest; lighter is more."""


def matrix_part(rows: Sequence[Row], similarity: Similarity | None) -> str:
    """The section's markup."""
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
        f'src="data:image/png;base64,{base64_text(stream.getvalue())}"></div>{named[1]}</div>'
    )


def _palette() -> list[int]:
    """256 colours, as Pillow wants them."""
    anchors = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in COLOURS])
    places, known = np.linspace(0, 1, 256), np.linspace(0, 1, len(anchors))
    channels = [np.interp(places, known, anchors[:, k]) for k in range(3)]
    return [int(value) for value in np.rint(np.stack(channels, axis=1)).ravel()]


def matrix_data(rows: Sequence[Row], similarity: Similarity | None) -> str:
    """What the matrix needs to say its cells' values, as JSON."""
    if similarity is None:
        return "null"
    cells, cosines = shown_classes(len(rows)), similarity.matrix.astype(np.float64)
    document = {
        "targets": [rows[k].name for k in cells],
        "sources": [rows[k].sources[0].paired.name for k in cells],
        "cosines": base64_text(np.rint(1000 * cosines).astype("<i2").tobytes()),
    }
    return json.dumps(document).replace("<", "\\u003c")  # a name must not end the script
