"""The whole way on data that packages ship: fonts and handwritten digits, no download."""

from xmix_data.demo.data import CHARACTERS, Glyphs, HandwrittenDigits
from xmix_data.demo.steps import run

__all__ = ["CHARACTERS", "Glyphs", "HandwrittenDigits", "run"]
