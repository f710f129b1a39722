"""Class ids of another data set: a test set's labels counted as those of its training set.

Comes in: whose class ids are wanted (a beton, a loader, a list of names), and the classes of what
is read. Goes out: for each of these its id there, found by name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xmix_data.beton.domain import Domain, open_domain
from xmix_data.beton.reader import Beton
from xmix_data.images import ImageSource, numbered_names
from xmix_data.names import first_repeated, same_forms
from xmix_data.remote import is_url

__all__ = ["ClassList", "class_list", "ids_in_domain", "ids_of_source"]


class ClassList(NamedTuple):
    """Classes whose ids are wanted."""

    names: list[str]
    """Name of each class id, in Unicode's NFC form."""
    origin: str
    """Where they come from, for messages."""
    names_ids: bool
    """Whether it names the ids of data without class names: only a list of names does."""
    remedy: str
    """What to do about names that are numbers because a manifest is missing; or empty."""


def class_list(classes_from: Any) -> ClassList:
    """Find the classes whose ids are wanted.

    Args:
        classes_from: A beton, its path, a `Domain`, a list of betons, a loader, or a list of names.

    Raises:
        FileNotFoundError: A beton does not exist.
        BetonError: A beton is damaged.
        ValueError: It is something else, or two classes have one name.
    """
    if isinstance(classes_from, ClassList):
        return classes_from
    if _is_domain(classes_from):
        domain = open_domain(classes_from)
        paths = ", ".join(beton.origin for beton in domain.betons)
        found = ClassList(list(domain.class_names), paths, False, domain.unnamed)
    elif hasattr(classes_from, "dataset") and hasattr(classes_from.dataset, "classes"):
        names = same_forms(map(str, classes_from.dataset.classes))
        found = ClassList(names, f"the {type(classes_from).__name__}", False, "")
    elif isinstance(classes_from, (list, tuple, np.ndarray)):
        found = ClassList(same_forms(map(str, classes_from)), "the list of names", True, "")
    else:
        raise ValueError(
            f"classes_from is a {type(classes_from).__name__}; give a beton, its path, a Domain, a "
            "loader, or a list of class names by id, e.g. dataset.classes"
        )
    twice = first_repeated(found.names)
    if twice is not None:
        raise ValueError(
            f"classes {twice[0]} and {twice[1]} of {found.origin} are both named "
            f"{found.names[twice[0]]!r}, so that neither can be found by name; rename one"
        )
    return found


def _is_domain(given: Any) -> bool:
    """Whether betons are given; a list of texts is one of names."""
    if isinstance(given, (str, os.PathLike, Beton, Domain)):
        return True
    return isinstance(given, (list, tuple)) and any(
        isinstance(one, (os.PathLike, Beton)) or is_url(one) for one in given
    )


def ids_in_domain(
    wanted: ClassList, domain: Domain, labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Find the ids of a domain's classes.

    Args:
        wanted: The classes whose ids are wanted.
        domain: What is read. Classes of one name, of several of its betons, become one.
        labels: Class ids, in the domain, of the images that are loaded.

    Returns:
        (C,) id of each class of the domain; -1 where there is none, and no image.

    Raises:
        ValueError: A class of ``labels`` is not among the wanted; names it.
    """
    parts = [
        _ids(wanted, part[0].class_names, known=part[0].manifest is not None)
        for part in domain.shards
    ]
    ids = np.concatenate(parts)
    _require_all(
        wanted,
        [domain.class_names[label] for label in np.unique(labels) if ids[label] < 0],
        ", ".join(beton.origin for beton in domain.betons),
        domain.unnamed,
    )
    return ids


def ids_of_source(wanted: ClassList, source: ImageSource, where: str) -> npt.NDArray[np.int64]:
    """Find the ids of a source's classes; as `ids_in_domain`.

    Labels are looked at, which may read every sample, only where the names do not tell.
    """
    names = source.class_names
    if names is None and wanted.names_ids:
        return np.arange(len(wanted.names))
    labels = None
    if names is None:
        labels = source.labels()
        names = numbered_names(labels)
    ids = _ids(wanted, same_forms(names), known=source.class_names is not None)
    if (ids < 0).any():
        present = set((source.labels() if labels is None else labels).tolist())
        lacking = [name for label, name in enumerate(names) if ids[label] < 0 and label in present]
        unnamed = getattr(source, "unnamed", "")
        if source.class_names is None and not unnamed:
            unnamed = "it has no class names: give a list of names, which names its ids"
        _require_all(wanted, lacking, where, unnamed)
    return ids


def _ids(wanted: ClassList, names: Sequence[str], *, known: bool) -> npt.NDArray[np.int64]:
    """Find the id of each class by name, or, where names are mere numbers, by number."""
    id_of = {name: label for label, name in enumerate(wanted.names)}
    numbers = [str(label) for label in range(len(names))]
    unnamed = not known or (list(names) == numbers and id_of.keys().isdisjoint(numbers))
    if wanted.names_ids and unnamed:
        own = np.arange(len(names))
        return np.where(own < len(wanted.names), own, -1)
    return np.array([id_of.get(name, -1) for name in names], np.int64)


def _require_all(wanted: ClassList, lacking: Sequence[str], where: str, unnamed: str) -> None:
    if not lacking:
        return
    shown = ", ".join(map(repr, lacking[:_SHOWN])) + ", ..." * (len(lacking) > _SHOWN)
    subject, verb = ("class", "is") if len(lacking) == 1 else ("classes", "are")
    remedy = unnamed or wanted.remedy or "give the data set that has all, or leave these images out"
    raise ValueError(
        f"{subject} {shown} of {where} {verb} none of the {len(wanted.names)} classes of "
        f"{wanted.origin}; {remedy}"
    )


_SHOWN = 8
"""Most classes that a message names."""
