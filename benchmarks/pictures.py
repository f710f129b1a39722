"""Draw the README's picture and run the notebook of the docs anew.

    xmix demo --output DEMO
    python benchmarks/pictures.py DEMO

The picture shows images as the demo's XMixLoader delivers them: target, source, and their mix.
Fonts of matplotlib and digits of scikit-learn are all that it is made of.
"""

from __future__ import annotations

import argparse
import base64
import io
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from xmix_data import Beton, RandomCrop, XMixLoader

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "figures" / "mixing.svg"
NOTEBOOK = ROOT / "docs" / "examples" / "xmixup.ipynb"


class Sample(NamedTuple):
    """A target image, a source image and their mix, (28, 28) uint8 each."""

    target: npt.NDArray[np.uint8]
    source: npt.NDArray[np.uint8]
    mixed: npt.NDArray[np.uint8]
    target_name: str
    source_name: str
    lam: float


def samples(demo: Path, count: int = 3) -> list[Sample]:
    """Of the folder that `xmix demo` wrote: each of another class, with a λ that shows both."""
    paths = (demo / "target.beton", demo / "source.beton", demo / "pairing.json")
    options: dict[str, Any] = {"batch_size": 10, "crop": RandomCrop(28), "flip": False, "alpha": 2}
    found: dict[int, Sample] = {}
    # The same plan twice: once both images as decoded, once mixed.
    with (
        XMixLoader(*paths, mix=False, dtype=torch.uint8, **options) as apart,
        XMixLoader(*paths, mean=(0, 0, 0), std=(1, 1, 1), **options) as mixing,
    ):
        targets, sources = (Beton(path).class_names for path in paths[:2])
        while len(found) < count:
            for pair, mix in zip(apart, mixing, strict=True):
                for i, (t, s) in enumerate(zip(mix.target_labels, mix.source_labels, strict=True)):
                    if 0.3 <= mix.lam[i] <= 0.8 and len(found) < count:
                        images = (
                            pair.target_images[i],
                            pair.source_images[i],
                            (255 * mix.images[i]).round().to(torch.uint8),
                        )
                        grey = (image[0].numpy() for image in images)
                        names = targets[int(t)], f"glyph {sources[int(s)]}"
                        found.setdefault(int(t), Sample(*grey, *names, float(mix.lam[i])))
    return list(found.values())


TILE, GAP, EDGE, HEAD, ROW = 112, 24, 14, 40, 146
"""In the picture's pixels: small enough that its text can be read on a phone."""

STYLE = """
.card { fill: #ffffff; stroke: #d0d7de } .tile { fill: none; stroke: #8c959f }
text { font: 15px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
.head { font-weight: 600 } .sign { font-size: 22px }
@media (prefers-color-scheme: dark) {
  .card { fill: #161b22; stroke: #30363d } text { fill: #e6edf3 }
}
"""


def draw(rows: list[Sample]) -> str:
    """An SVG with one row a sample, on a ground of its own, light or dark as the page is."""
    width, height = 2 * EDGE + 3 * TILE + 2 * GAP, HEAD + len(rows) * ROW
    places = [EDGE + k * (TILE + GAP) for k in range(3)]
    parts = [
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
    ]
    for x, head in zip(places, ("target", "paired source", "mix"), strict=True):
        parts.append(f'<text class="head" x="{x + TILE // 2}" y="26">{head}</text>')
    for k, row in enumerate(rows):
        y = HEAD + k * ROW
        captions = (
            f"{row.lam:.2f} × {row.target_name}",
            f"{1 - row.lam:.2f} × {row.source_name}",
            "both labels",
        )
        for x, pixels, caption in zip(places, row[:3], captions, strict=True):
            place = f'x="{x}" y="{y}" width="{TILE}" height="{TILE}"'
            parts += [
                f'<image {place} href="{embedded(pixels)}"/><rect class="tile" {place}/>',
                f'<text x="{x + TILE // 2}" y="{y + TILE + 19}">{escape(caption)}</text>',
            ]
        for x, sign in zip(places[1:], "+=", strict=True):
            parts.append(
                f'<text class="sign" x="{x - GAP // 2}" y="{y + TILE // 2 + 7}">{sign}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-labelledby="what">\n'
        '<title id="what">A target image, an image of its paired source class, and their mix'
        "</title>\n<desc>Handwritten digits of scikit-learn and fonts of matplotlib, as "
        f"XMixLoader delivers them; drawn by benchmarks/pictures.py.</desc>\n<style>{STYLE}"
        "</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def embedded(pixels: npt.NDArray[np.uint8]) -> str:
    """A picture as part of the document."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def execute(notebook: Path) -> Any:
    """Run all cells in a kernel of their own.

    Returns:
        The notebook with what they said, and nothing about when and on which machine.

    Raises:
        CellExecutionError: A cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    document = nbformat.read(notebook, as_version=4)
    NotebookClient(document, timeout=300, kernel_name="python3", record_timing=False).execute()
    document.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return document


def main() -> None:
    """Draw and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder that `xmix demo` wrote")
    PICTURE.write_text(draw(samples(parser.parse_args().demo)), encoding="utf-8")
    import nbformat

    nbformat.write(execute(NOTEBOOK), NOTEBOOK)


if __name__ == "__main__":
    main()
