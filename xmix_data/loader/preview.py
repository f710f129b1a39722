"""Contact sheets: what a loader delivers, as a picture.

Comes in: an epoch's plan. Goes out: target, source and mixed image of its first samples.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from xmix_data.backends import Spec, make_backend
from xmix_data.beton import Domain
from xmix_data.plan import EpochPlan
from xmix_data.progress import printable

__all__ = ["contact_sheet", "preview"]


_MARGIN, _LINE, _BACKGROUND, _INK, _FAINT = 10, 17, "#ffffff", "#1b1f24", "#6a737d"
_MIN_CELL = 128
_SIZE, _ALPHABETS = 12, "DejaVuSans.ttf"
"""Of the text; and a font that has Latin, Greek, Cyrillic and more. Pillow's own has ASCII."""
_UNASSIGNED = "\U0010ffff"
"""A character that no font has."""


def preview(plan: EpochPlan, spec: Spec, n: int, *, replaces: bool) -> Image.Image:
    """Draw an epoch's first samples, as the reference backend makes them.

    Args:
        plan: Plan of the epoch.
        spec: Options of a backend that makes unmixed uint8 crops on the CPU.
        n: Number of samples, at most the epoch's.
        replaces: Whether another image takes the place of a damaged one.

    Returns:
        An RGB picture, see `contact_sheet`.
    """
    rows = plan.rows(0, min(n, len(plan)))
    stream = make_backend("reference", spec).stream(
        iter([rows]), plan.replaced if replaces else None
    )
    rows, images = next(stream)
    pixels = [x.permute(0, 2, 3, 1).numpy() for x in images]
    names = [_class_names(spec.target, rows.target)]
    if spec.source is not None and rows.source is not None:
        names.append(_class_names(spec.source, rows.source))
    return contact_sheet(pixels, names, rows.lam)


def _class_names(domain: Domain, indices: npt.NDArray[np.int64]) -> list[str]:
    return [domain.class_names[label] for label in domain.labels[indices]]


def contact_sheet(
    pixels: Sequence[npt.NDArray[np.uint8]],
    names: Sequence[Sequence[str]],
    lam: npt.NDArray[np.float32],
) -> Image.Image:
    """Draw samples side by side: target, and where there is one, source and mixed image below.

    Args:
        pixels: One or two arrays (N, H, W, 3) uint8: target images, source images.
        names: Class names of the images of each array, N in each list.
        lam: (N,) weight of the target image.

    Returns:
        An RGB picture with one column a sample.
    """
    rows = list(zip(pixels, names, strict=True))
    if len(rows) == 2:
        weight = lam[:, None, None, None].astype(np.float64)
        mixed = np.rint(weight * pixels[0] + (1 - weight) * pixels[1]).astype(np.uint8)
        rows.append((mixed, [f"lam = {value:.2f}" for value in lam]))
    titles = ("target", "source", "mixed")
    count, height, width = pixels[0].shape[:3]
    zoom = max(1, -(-_MIN_CELL // min(height, width)))
    cell_w, cell_h = width * zoom, height * zoom
    font = _font()
    left = _MARGIN + max(int(font.getlength(title)) for title in titles) + _MARGIN
    row_h = cell_h + _LINE + _MARGIN
    sheet = Image.new(
        "RGB", (left + count * (cell_w + _MARGIN), _MARGIN + len(rows) * row_h), _BACKGROUND
    )
    draw = ImageDraw.Draw(sheet)
    for r, (images, captions) in enumerate(rows):
        y = _MARGIN + r * row_h
        draw.text((_MARGIN, y + cell_h // 2), titles[r], _FAINT, font, "lm")
        for i in range(count):
            x = left + i * (cell_w + _MARGIN)
            cell = Image.fromarray(images[i])
            sheet.paste(cell.resize((cell_w, cell_h), Image.Resampling.NEAREST), (x, y))
            caption = _fit(_shown(captions[i], font), cell_w, font)
            draw.text((x, y + cell_h + 2), caption, _INK, font)
    return sheet


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _font() -> _Font:
    """Take a font of many alphabets from the system or matplotlib, where one of them has it."""
    places = [_ALPHABETS]
    matplotlib = importlib.util.find_spec("matplotlib")  # without the second that its import takes
    for folder in (matplotlib and matplotlib.submodule_search_locations) or ():
        places.append(str(Path(folder, "mpl-data", "fonts", "ttf", _ALPHABETS)))
    for place in places:
        with suppress(OSError):
            return ImageFont.truetype(place, _SIZE)
    return ImageFont.load_default(_SIZE)


def _shown(text: str, font: _Font) -> str:
    """Escape what would show as a box, or steer: classes are told apart by their names."""
    lacking = _glyph(_UNASSIGNED, font)
    return "".join(ascii(c)[1:-1] if _glyph(c, font) == lacking else c for c in printable(text))


def _glyph(character: str, font: _Font) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _fit(text: str, width: int, font: _Font) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
