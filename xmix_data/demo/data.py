"""The demo's two domains: glyphs of matplotlib's fonts, and scikit-learn's handwritten digits."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from xmix_data import MissingDependencyError

__all__ = ["CROP", "SIDE", "Glyphs", "HandwrittenDigits"]


CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIDE, CROP = 32, 28
"""Pixels of a stored image and of what the network sees."""
_INK_HEIGHT = 24
"""Pixels that a glyph or a digit is high, before its variation."""


class Glyphs:
    """Draw letters and digits in matplotlib's fonts, each varied: a map-style dataset.

    ``[i]`` is (PIL image, 32 x 32, light ink on black; class id). The same index gives the same
    picture in every run.

    Args:
        variations: Pictures of each character in each font.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """

    classes: tuple[str, ...] = tuple(CHARACTERS)

    def __init__(self, variations: int = 10) -> None:
        self.fonts = _legible_fonts(_font_folder())
        self._variations = variations

    def __len__(self) -> int:
        return len(self.classes) * len(self.fonts) * self._variations

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        label, rest = divmod(index, len(self.fonts) * self._variations)
        font, _ = divmod(rest, self._variations)
        random = np.random.default_rng([0, index])
        return _varied(_glyph(self.fonts[font], self.classes[label]), random), label


def _font_folder() -> Path:
    try:
        import matplotlib
    except ImportError:
        raise _missing("matplotlib", "fonts") from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _missing(package: str, what: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"the demo takes its {what} from {package}, which is not installed: "
        "pip install 'xmix_data[demo]'"
    )


def _legible_fonts(folder: Path) -> list[Path]:
    """Find the fonts in which at least half of the characters look like those of DejaVu Sans.

    A symbol font has other pictures, empty ones, or the same box in the places of letters and
    digits. Half, because slant, serifs and weight make pairs like 0 and O trade places.
    """
    reference = _flattened(folder / "DejaVuSans.ttf")
    own = np.arange(len(CHARACTERS))
    return [
        font
        for font in sorted(folder.glob("*.ttf"))
        if np.mean((_flattened(font) @ reference.T).argmax(1) == own) >= 0.5
    ]


def _flattened(font: Path) -> npt.NDArray[np.float64]:
    """Make (36, pixels): each character a vector of mean 0 and length 1, or 0 if it is empty."""
    pixels = np.stack([np.asarray(_glyph(font, c), np.float64).ravel() for c in CHARACTERS])
    pixels -= pixels.mean(1, keepdims=True)
    return np.asarray(pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-9))


_OVERSAMPLING = 4
"""Glyphs are drawn and varied this much larger, and then made small in one step."""
_PATCHES = 2
"""A glyph is bent by moving the corners of as many patches along each edge."""


@functools.cache
def _glyph(font: Path, character: str) -> Image.Image:
    """Draw a character, mode L, centred; as high as a target's digit, whatever its font."""
    side, height = SIDE * _OVERSAMPLING, _INK_HEIGHT * _OVERSAMPLING
    canvas = Image.new("L", (side, side))
    typeface = ImageFont.truetype(font, height)
    left, top, right, bottom = (round(edge) for edge in typeface.getbbox(character))
    if right <= left or bottom <= top:
        return canvas
    ink = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(ink).text((-left, -top), character, 255, typeface)
    width = min(side, round(height * ink.width / ink.height))
    ink = ink.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(ink, ((side - width) // 2, (side - height) // 2))
    return canvas


def _varied(glyph: Image.Image, random: np.random.Generator) -> Image.Image:
    """Vary a glyph as hands might write it: turned, slanted, stretched, bent, thin or thick.

    The bending matters: without it, the network reads fonts by details that no hand repeats.
    """
    side = glyph.width
    angle, slant = np.deg2rad(random.uniform(-12, 12)), random.uniform(-0.2, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([[random.uniform(0.9, 1.4), slant], [0, random.uniform(0.95, 1.25)]])
    edges = np.linspace(0, side, _PATCHES + 1)
    nodes = np.stack(np.meshgrid(edges, edges), axis=-1) - side / 2
    shift, bend = random.uniform(-1.5, 1.5, 2), random.uniform(-2, 2, nodes.shape)
    nodes = nodes @ (turn @ stretch).T + side / 2 + (shift + bend) * _OVERSAMPLING
    patches = [
        (
            tuple(round(edge) for edge in (edges[c], edges[r], edges[c + 1], edges[r + 1])),
            (*nodes[r, c], *nodes[r + 1, c], *nodes[r + 1, c + 1], *nodes[r, c + 1]),
        )
        for r in range(_PATCHES)
        for c in range(_PATCHES)
    ]
    picture = glyph.transform(glyph.size, Image.Transform.MESH, patches, Image.Resampling.BILINEAR)
    stroke = int(random.choice([1, 3, 5, 7]))
    if stroke > 1:  # a filter of one pixel changes nothing, and Pillow 12.3 dies of it
        picture = picture.filter(ImageFilter.MaxFilter(stroke))
    picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.6, 1.2) * _OVERSAMPLING))
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


class HandwrittenDigits:
    """Split scikit-learn's handwritten digits into three parts: a map-style dataset.

    ``[i]`` is (PIL image, 32 x 32, light ink on black; class id).

    The parts do not overlap. The data set's second half is the test part. Its first half holds
    the training images, drawn at random, and in what they leave the validation part.

    Args:
        part: ``"train"``, ``"validation"`` or ``"test"``.
        per_class: Training images of each digit.
        draw: Another number draws other training images.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
        ValueError: No such part.
    """

    classes: tuple[str, ...] = tuple(f"digit {i}" for i in range(10))

    def __init__(self, part: str, per_class: int = 10, draw: int = 0) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise _missing("scikit-learn", "digits") from None
        data = load_digits()
        half = len(data.target) // 2
        shuffled = np.random.default_rng(draw).permutation(half)
        digits = data.target[shuffled]
        chosen = [shuffled[digits == digit][:per_class] for digit in range(len(self.classes))]
        train = np.sort(np.concatenate(chosen))
        parts = {
            "train": train,
            "validation": np.setdiff1d(shuffled, train),
            "test": np.arange(half, len(data.target)),
        }
        if part not in parts:
            raise ValueError(f"part is {part!r}; it must be one of {', '.join(parts)}")
        self.indices: npt.NDArray[np.int64] = parts[part]
        """(N,) which of the data set's images these are."""
        self.targets: list[int] = data.target[self.indices].tolist()
        self._pixels = data.images[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.rint(self._pixels[index] * (255 / 16)).astype(np.uint8)
        ink = Image.fromarray(pixels).resize((_INK_HEIGHT, _INK_HEIGHT), Image.Resampling.BICUBIC)
        picture = Image.new("L", (SIDE, SIDE))
        picture.paste(ink, ((SIDE - _INK_HEIGHT) // 2,) * 2)
        # The 8 x 8 pixels would still show, as a lattice that no glyph has.
        return picture.filter(ImageFilter.GaussianBlur(0.5)), self.targets[index]
