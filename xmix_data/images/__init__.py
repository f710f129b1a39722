"""Where images come from: files, datasets of other libraries, and parts of either.

Comes in: a folder, or any object with ``len()`` and ``[i] -> (image, label)``. Goes out: an
`ImageSource`, which a conversion reads sample by sample, in order.

A further source is one module with ``open_source(place, *, split, root) -> ImageSource`` and a
line in `NAMED`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from xmix_data.images.dataset import MapDataset, torchvision_dataset
from xmix_data.images.files import ClassFolder, ImageFiles
from xmix_data.images.source import MAX_CLASSES, ImageSource, label_problem
from xmix_data.images.subset import Subset, select

__all__ = [
    "MAX_CLASSES",
    "NAMED",
    "ClassFolder",
    "ImageFiles",
    "ImageSource",
    "MapDataset",
    "Subset",
    "label_problem",
    "named_source",
    "select",
    "torchvision_dataset",
]

NAMED = {"torchvision": "dataset", "huggingface": "huggingface", "cub": "cub", "dogs": "dogs"}
"""What stands before the colon of ``NAME:PLACE``, and the module that opens it."""


def named_source(text: str, *, split: str, root: str | os.PathLike[str]) -> ImageSource | None:
    """The source that ``NAME:PLACE`` means, or ``None`` where the text is no such name.

    Args:
        text: E.g. ``"torchvision:Flowers102"``, ``"cub:CUB_200_2011"``.
        split: Which part of it.
        root: Folder for a download.
    """
    name, colon, place = text.partition(":")
    if not colon or name not in NAMED or Path(text).exists():
        return None
    module: Any = importlib.import_module(f"xmix_data.images.{NAMED[name]}")
    source: ImageSource = module.open_source(place, split=split, root=root)
    return source
