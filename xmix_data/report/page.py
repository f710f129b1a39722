"""A pairing as one web page: pictures, similarities, images to draw from, mixed samples.

Comes in: a `Pairing` and the betons of its classes. Goes out: an HTML file that needs no other
file and no network. Modules of this package compute what its sections show; the ``templates`` of
the same names say how.

Names of classes and files are the user's: whatever they hold, it is shown as text. The page also
forbids every script but its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from xmix_data.beton import BetonLike, Domain, open_domain
from xmix_data.files import whole_file
from xmix_data.outputs import local_path, refuse_inputs
from xmix_data.pairing import Pairing, open_pairing
from xmix_data.plan import check_beta
from xmix_data.remote import require_writable
from xmix_data.report.matrix import COLOURS, matrix_of
from xmix_data.report.mixed import mixed_samples
from xmix_data.report.pairs import lines_of
from xmix_data.report.provenance import provenance_of
from xmix_data.report.render import render
from xmix_data.report.rows import file_list, rows_of
from xmix_data.report.summary import summary_of

__all__ = ["write_report"]


def write_report(
    pairing: Pairing | str | os.PathLike[str],
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
        pairing: What to show: a pairing, or the path or URL of one.
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
        IsADirectoryError: ``path`` is a folder.
        ValueError: The pairing is damaged, lacks cosines or does not fit the betons, a class has no
            images, ``alpha`` or ``beta`` is not above 0, or ``path`` is a URL or one of the files
            that are read.
    """
    path = local_path(path)
    check_beta(alpha, beta)
    given, pairing = pairing, open_pairing(pairing)
    refuse_inputs(path, [target, source, None if isinstance(given, Pairing) else given])
    require_writable(path, overwrite=overwrite)
    _require_cosines(pairing)
    page = _page(pairing, open_domain(target), open_domain(source), alpha, beta)
    with whole_file(path) as stream:
        # A folder's name may hold bytes that are no text; they show as question marks.
        stream.write(page.encode("utf-8", "replace"))
    return path


def _require_cosines(pairing: Pairing) -> None:
    cosines = [
        (target, paired.name, paired.cosine)
        for target, several in pairing.pairs.items()
        for paired in several
    ]
    if cosines and all(math.isnan(cosine) for *_, cosine in cosines):
        raise ValueError(
            "the pairing has no cosines to report: it was made without features, as random pairs "
            "are; see its file"
        )
    for target, source, cosine in cosines:
        if not -1 <= cosine <= 1:
            raise ValueError(
                f"target class {target!r} and source class {source!r} have a cosine of {cosine}; "
                "give a number in -1 .. 1"
            )


def _page(pairing: Pairing, target: Domain, source: Domain, alpha: float, beta: float) -> str:
    rows = rows_of(pairing, target, source)
    summary = summary_of(pairing, rows)
    return render(
        "page.html",
        target_name=file_list([beton.path.stem for beton in target.betons]),
        source_name=file_list([beton.path.stem for beton in source.betons]),
        pairing=pairing,
        similarity=pairing.similarity,
        target=target,
        source=source,
        rows=rows,
        several=any(len(row.sources) > 1 for row in rows),
        alpha=alpha,
        beta=beta,
        colours=COLOURS,
        summary=summary,
        lines=lines_of(rows, target, source, summary.limits),
        matrix=matrix_of(rows, pairing.similarity),
        mixed=mixed_samples(rows, target, source, alpha, beta),
        provenance=provenance_of(pairing, target, source, alpha, beta),
    )
