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

from xmix_data.images.dataset import MapDataset
from xmix_data.images.distant import DistantFolder
from xmix_data.images.files import ClassFolder, ImageFiles
from xmix_data.images.source import MAX_CLASSES, ImageSource, label_problem, numbered_names
from xmix_data.images.subset import Subset, select
from xmix_data.images.torchvision import torchvision_dataset

__all__ = [
    "MAX_CLASSES",
    "NAMED",
    "ClassFolder",
    "DistantFolder",
    "ImageFiles",
    "ImageSource",
    "MapDataset",
    "Subset",
    "label_problem",
    "named_source",
    "numbered_names",
    "select",
    "torchvision_dataset",
]

NAMED = {
    "torchvision": "torchvision",
    "huggingface": "huggingface",
    "cub": "cub",
    "dogs": "dogs",
}
"""Module of this package that opens a source, by the NAME in ``NAME:PLACE``."""


def named_source(
    text: str, *, split: str | None = None, root: str | os.PathLike[str]
) -> ImageSource | None:
    """Open the source that ``NAME:PLACE`` names.

    Args:
        text: The name, e.g. ``"torchvision:Flowers102"`` or ``"cub:CUB_200_2011"``.
        split: Part of the data set, e.g. ``"train"``; ``None``: that, or what the data set
            calls its usual part, which is said in the log where there are several.
        root: Folder for a download.

    Returns:
        The source, or ``None`` where the text is no such name.

    Raises:
        FileNotFoundError: A file of the data set is not there.
        ValueError: There is no such data set or split (those that there are are listed), or its
            files do not fit together.
        OSError: The download failed.
        MissingDependencyError: The library that reads the data set is not installed.
    """
    name, colon, place = text.partition(":")
    if not colon or name not in NAMED or Path(text).exists():
        return None
    module: Any = importlib.import_module(f"xmix_data.images.{NAMED[name]}")
    place, root = os.path.expanduser(place), os.path.expanduser(root)
    source: ImageSource = module.open_source(place, split=split, root=root)
    return source
