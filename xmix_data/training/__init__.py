"""The reference trainer: a method, its batches, and SGD by the paper's schedule.

Names are imported when first used: the command line reads `Recipe` without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmix_data.training.evaluation import evaluate
    from xmix_data.training.feeds import require_data
    from xmix_data.training.loop import fit
    from xmix_data.training.recipe import Recipe, Result

__all__ = ["Recipe", "Result", "evaluate", "fit", "require_data"]

_MODULE_OF = {
    "Recipe": "recipe",
    "Result": "recipe",
    "evaluate": "evaluation",
    "fit": "loop",
    "require_data": "feeds",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
