"""Pictures of a report: cut out of betons, sized so that the page stays small.

Comes in: betons and the indices of images. Goes out: data URIs, which hold a picture's bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from xmix_data.beton import Domain, open_images
from xmix_data.errors import BetonError
from xmix_data.jpeg import jpeg_problem
from xmix_data.report.rows import UNFOLDED, Row

__all__ = ["PictureSize", "base64_text", "data_uri", "picture_of"]


_PICTURE_BYTES = 11e6
"""What all pictures together may take, about, so that the page stays below 20 MB."""
_PICTURES = ((3, 96), (3, 72), (2, 72), (1, 72), (1, 48))
"""(Pictures of a class, their side in pixels), the best first."""


def picture_of(domain: Domain, index: int, side: int) -> Image.Image:
    """Cut the centre square out of an image: ``side`` pixels wide, RGB."""
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


def data_uri(image: Image.Image, kind: str = "JPEG") -> str:
    """Encode an image, as ``"PNG"`` if every pixel counts."""
    stream = io.BytesIO()
    image.save(stream, kind, quality=82, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64_text(stream.getvalue())}"


def base64_text(data: bytes) -> str:
    """Turn bytes into base64 text."""
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class PictureSize:
    """How many pictures of a class, how large, and for how many sources of a target class."""

    count: int
    side: int
    sources: int

    @classmethod
    def that_fits(cls, rows: Sequence[Row]) -> PictureSize:
        """Choose the best whose pictures have room on the page."""
        lengths = np.array([len(row.sources) for row in rows])
        most = int(lengths.max())
        choices = [cls(count, side, most) for count, side in _PICTURES]
        choices += [cls(1, 48, sources) for sources in (UNFOLDED, 1)]
        for choice in choices:
            # Measured on photographs: a JPEG of this size has about this many bytes.
            expected = 120 + 4 / 3 * (400 + 0.27 * choice.side**2)
            classes = len(rows) + int(np.minimum(lengths, choice.sources).sum())
            if classes * choice.count * expected <= _PICTURE_BYTES:
                return choice
        return cls(0, 0, 0)

    def pictures(self, domain: Domain, images: npt.NDArray[np.int64]) -> list[str]:
        """Choose pictures spread over the images of a class."""
        count = min(self.count, len(images))
        if count == 0:
            return []
        chosen = images[(2 * np.arange(count) + 1) * len(images) // (2 * count)]
        found = []
        for index in chosen.tolist():
            side = min(self.side, int(domain.heights[index]), int(domain.widths[index]))
            found.append(data_uri(picture_of(domain, index, side)))
        return found
