"""The parts of `benchmarks/gpu.py`, a module each.

Comes in: `Options`. Goes out: figures, each saved as soon as it is there (`record`).
"""
