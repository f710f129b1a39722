"""Class names: compared in one Unicode form, each the name of one class.

Comes in: names as folders, manifests, pairings and datasets write them. Goes out: names that are
equal where they look the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["first_repeated", "same_form", "same_forms"]


def same_form(name: str) -> str:
    """Return a name in Unicode's NFC form: macOS, for one, decomposes the names of folders."""
    return unicodedata.normalize("NFC", name)


def same_forms(names: Iterable[str]) -> list[str]:
    """Return names in Unicode's NFC form."""
    return [same_form(name) for name in names]


def first_repeated(names: Sequence[str]) -> tuple[int, int] | None:
    """Find the ids of the first two classes of one name; ``None`` where all names differ."""
    first: dict[str, int] = {}
    for label, name in enumerate(names):
        if first.setdefault(name, label) != label:
            return first[name], label
    return None
