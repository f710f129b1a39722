"""Measurements: the loader against the machine's own limits, row by row, in turn."""

from xmix_data.bench.data import Photographs, Repeated
from xmix_data.bench.rounds import Row, interleave, ratios
from xmix_data.bench.rows import TARGETS, Bench
from xmix_data.bench.summary import explain, report

__all__ = [
    "TARGETS",
    "Bench",
    "Photographs",
    "Repeated",
    "Row",
    "explain",
    "interleave",
    "ratios",
    "report",
]
