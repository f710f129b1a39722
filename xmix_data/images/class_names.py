"""Class names of a map-style dataset, also through the datasets that torch makes of others.

Comes in: a dataset. Goes out: the name of each of its class ids, or that it has none.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from xmix_data.images.source import shorten
from xmix_data.names import same_form

__all__ = ["dataset_names"]


def dataset_names(dataset: Any) -> list[str] | None:
    """Find the name of each class id.

    Args:
        dataset: A map-style dataset. Names come from its ``wnids`` (WordNet ids, as ImageNet of
            torchvision has them beside lists of synonyms), or else from its ``classes``; a
            `torch.utils.data.Subset` has those of its dataset, a ``ConcatDataset`` those that all
            its parts have.

    Returns:
        The names, or ``None`` where there are none.

    Raises:
        ValueError: The attribute is no list of names, or the parts of a ``ConcatDataset`` have
            different ones.
    """
    for attribute in ("wnids", "classes"):
        names = getattr(dataset, attribute, None)
        if names is not None:
            return _as_names(names, f"{type(dataset).__name__}.{attribute}")
    data = sys.modules.get("torch.utils.data")  # whoever has made one of its datasets has it
    if data is not None and isinstance(dataset, data.Subset):
        return dataset_names(dataset.dataset)
    if data is not None and isinstance(dataset, data.ConcatDataset):
        return _common_names(dataset)
    return None


def _as_names(names: Any, where: str) -> list[str]:
    a_list = hasattr(names, "__len__") and hasattr(names, "__getitem__")
    if not a_list or isinstance(names, Mapping):
        raise ValueError(
            f"{where} is {shorten(names)}; make it a list with the name of each class id"
        )
    return [
        same_form(", ".join(map(str, name)) if isinstance(name, (tuple, list)) else str(name))
        for name in names
    ]


def _common_names(dataset: Any) -> list[str] | None:
    names = [dataset_names(part) for part in dataset.datasets]
    for number, others in enumerate(names):
        if others != names[0]:
            raise ValueError(
                f"parts 0 and {number} of the ConcatDataset have different class names "
                f"({shorten(names[0])} and {shorten(others)}), so that their class ids do not mean "
                "the same; give all parts one list of classes"
            )
    return names[0]
