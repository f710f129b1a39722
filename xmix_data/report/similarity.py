"""How similar the pairs are, and what other methods would have paired."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from xmix_data.pairing import Pairing, Similarity
from xmix_data.report import charts
from xmix_data.report.rows import Row, counted, share_of_optimum

__all__ = ["similarities_part"]


def similarities_part(pairing: Pairing, rows: Sequence[Row]) -> str:
    """The section's markup."""
    similarity = pairing.similarity
    cosines = np.array([part.paired.cosine for row in rows for part in row.sources])
    caption = (
        f"Cosines of {counted(len(cosines), 'pair')}, {cosines.min():.3f} to {cosines.max():.3f}."
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
        share = share_of_optimum(similarity, method) or ""
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
