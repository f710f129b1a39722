"""Mixed samples of a report, over the quantiles of λ."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from xmix_data.beton import Domain
from xmix_data.report import charts
from xmix_data.report.pictures import img_tag, picture_of
from xmix_data.report.rows import Row

__all__ = ["QUANTILES", "mixed_samples"]


_MIXED_PAIRS, _MIXED_SIDE = 5, 96
QUANTILES = (0.9, 0.7, 0.5, 0.3, 0.1)
"""Of λ: from much of the target, which stands at the left, to much of the source."""


def mixed_samples(
    rows: Sequence[Row], target: Domain, source: Domain, alpha: float, beta: float
) -> str:
    """The section's markup."""
    from scipy.special import betaincinv

    quantiles = betaincinv(alpha, beta, QUANTILES)
    distinct = len({f"{lam:.2f}" for lam in quantiles}) == len(QUANTILES)
    lams = quantiles if distinct else np.array(QUANTILES)
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


def _mixed_row(row: Row, target: Domain, source: Domain, lams: npt.NDArray[np.float64]) -> str:
    part = row.sources[0]
    ends = [
        picture_of(domain, int(images[len(images) // 2]), _MIXED_SIDE)
        for domain, images in ((target, row.images), (source, part.images))
    ]
    x_t, x_s = (np.asarray(end, np.float64) for end in ends)
    cells = [(ends[0], "target", row.name)]
    for lam in lams.tolist():
        mixed = np.rint(lam * x_t + (1 - lam) * x_s).astype(np.uint8)
        cells.append((Image.fromarray(mixed), f"λ {lam:.2f}", f"mixed with λ = {lam:.2f}"))
    cells.append((ends[1], "source", part.paired.name))
    strip = "".join(f"<div>{img_tag(image, alt)}{text}</div>" for image, text, alt in cells)
    return (
        f'<figure><figcaption><span class="name">{escape(row.name)}</span> with '
        f'<span class="name">{escape(part.paired.name)}</span> <span class="soft">cosine '
        f'{part.paired.cosine:.3f}</span></figcaption><div class="strip">{strip}</div></figure>'
    )
