"""The reference trainer: a method, its batches, and SGD by the paper's schedule."""

from xmix_data.training.evaluation import evaluate
from xmix_data.training.loop import fit
from xmix_data.training.recipe import Recipe, Result

__all__ = ["Recipe", "Result", "evaluate", "fit"]
