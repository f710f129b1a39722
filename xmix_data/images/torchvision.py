"""Data sets of torchvision by name, with the part of them that is wanted.

Each class of `torchvision.datasets` has its own argument that chooses a part, or has none;
`--split` is the one word for all of them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmix_data.images.dataset import MapDataset
from xmix_data.images.splits import chosen_split, log_split

__all__ = ["TORCHVISION_SPLITS", "Splits", "open_source", "torchvision_dataset"]


class Splits(NamedTuple):
    """Parts of a data set, and how its class is asked for one."""

    options: Mapping[str, Mapping[str, Any]]
    """For each part the arguments that choose it."""
    default: str | None
    """Part that is taken where none is named; ``None``: one must be named."""


def _of(argument: str, values: Sequence[str], default: str | None = "train") -> Splits:
    return Splits({value: {argument: value} for value in values}, default)


_EMNIST = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
_TRAIN = Splits({"train": {"train": True}, "test": {"train": False}}, "train")

TORCHVISION_SPLITS: Mapping[str, Splits] = {
    "CLEVRClassification": _of("split", ("train", "val", "test")),
    "CelebA": _of("split", ("train", "valid", "test", "all")),
    "Country211": _of("split", ("train", "valid", "test")),
    "DTD": _of("split", ("train", "val", "test")),
    "EMNIST": Splits(
        {name: {"split": name, "train": True} for name in _EMNIST}
        | {f"{name}-test": {"split": name, "train": False} for name in _EMNIST},
        None,
    ),
    "FER2013": _of("split", ("train", "test")),
    "FGVCAircraft": _of("split", ("train", "val", "trainval", "test")),
    "Flowers102": _of("split", ("train", "val", "test")),
    "Food101": _of("split", ("train", "test")),
    "GTSRB": _of("split", ("train", "test")),
    "INaturalist": _of(
        "version",
        ("2017", "2018", "2019", "2021_train", "2021_train_mini", "2021_valid"),
        "2021_train",
    ),
    "ImageNet": _of("split", ("train", "val")),
    "Imagenette": _of("split", ("train", "val")),
    "Kinetics": _of("split", ("train", "val", "test")),
    "LFWPeople": _of("split", ("10fold", "train", "test")),
    "LSUN": _of("classes", ("train", "val", "test")),
    "Omniglot": Splits(
        {"background": {"background": True}, "evaluation": {"background": False}}, "background"
    ),
    "OxfordIIITPet": _of("split", ("trainval", "test"), "trainval"),
    "PCAM": _of("split", ("train", "val", "test")),
    "Places365": _of(
        "split", ("train-standard", "train-challenge", "val", "test"), "train-standard"
    ),
    "QMNIST": _of("what", ("train", "test", "test10k", "test50k", "nist")),
    "RenderedSST2": _of("split", ("train", "val", "test")),
    "STL10": _of("split", ("train", "test", "unlabeled", "train+unlabeled")),
    "SVHN": _of("split", ("train", "test", "extra")),
    "StanfordCars": _of("split", ("train", "test")),
}
"""Data sets for classification whose parts have names of their own.

Others that take ``train=`` have the parts train and test. What takes neither ``train=`` nor
``split=`` has none.
"""


_NAMES_IN = {
    "Caltech101": "categories",
    "Caltech256": "categories",
    "INaturalist": "all_categories",
    "LFWPeople": "class_to_idx",
    "Omniglot": "_characters",
}
"""Attribute with the class names, by id, where a class has no ``classes``.

Without names, id k of one part would pass for id k of another: Omniglot's have no class in common.
"""


def torchvision_dataset(name: str, root: str | os.PathLike[str], split: str | None = None) -> Any:
    """Open a dataset of `torchvision.datasets` by name; download it below ``root`` where needed.

    Args:
        name: Name of the class, e.g. ``"Flowers102"``.
        root: Folder of the download.
        split: Part of the data set, whatever argument of the class chooses it (``split``,
            ``train``, ``background``, ...); ``None``: ``"train"``, or the class's own default.

    Raises:
        ValueError: Torchvision has no such dataset, or the dataset has no such split, or it needs
            further arguments.
        OSError: The download failed.
    """
    return _opened(name, root, split)[0]


def _opened(name: str, root: str | os.PathLike[str], split: str | None) -> tuple[Any, str | None]:
    """Open a dataset; returns it with the part that was taken."""
    from torchvision import datasets

    found: Any = getattr(datasets, name, None)
    if not (inspect.isclass(found) and issubclass(found, datasets.VisionDataset)):
        known = [n for n in datasets.__all__ if n[0].isupper()]
        raise ValueError(f"torchvision has no dataset {name!r}; it has {', '.join(known)}")
    kind: Any = found
    parameters = _parameters(kind)
    splits = _splits(name, parameters, split)
    taken = chosen_split(f"torchvision:{name}", list(splits.options), split, splits.default)
    options = {} if taken is None else dict(splits.options[taken])
    if "root" in parameters:
        options["root"] = root
    if "loader" in parameters:  # the files as they are: they are decoded where it is needed
        options["loader"] = _bytes_of
    needed = [p.name for p in parameters.values() if p.default is p.empty]
    lacking = [argument for argument in needed if argument not in options]
    if lacking:
        raise ValueError(
            f"torchvision:{name} also needs {', '.join(lacking)}; make the dataset in Python, and "
            "give it to write_beton"
        )
    try:
        dataset = _made(name, kind, options, root, downloads="download" in parameters)
    except ValueError as error:  # of a part that only torchvision knows to be none, for one
        part = "" if taken is None else f", split {taken!r}"
        raise ValueError(f"torchvision:{name}{part}: {error}") from error
    if name in _NAMES_IN:
        dataset.classes = list(getattr(dataset, _NAMES_IN[name]))
    log_split(f"torchvision:{name}", list(splits.options), split, taken)
    return dataset, taken


def _made(name: str, kind: Any, options: Mapping[str, Any], root: Any, *, downloads: bool) -> Any:
    try:
        return kind(**options)
    except (OSError, RuntimeError) as missing:
        if not downloads:
            raise OSError(
                f"torchvision:{name}: {missing}; put the data set's files below {root} yourself"
            ) from missing
    try:
        return kind(**options, download=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(
            f"torchvision:{name}: {error}; check the network, or put the data set's files "
            f"below {root} yourself"
        ) from error


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """Find what a class can be called with; ``**kwargs`` go to the class above it."""
    found: dict[str, inspect.Parameter] = {}
    for level in kind.__mro__:
        own = list(inspect.signature(level.__init__).parameters.values())[1:]
        for parameter in own:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return found


def _splits(name: str, parameters: Mapping[str, inspect.Parameter], wanted: str | None) -> Splits:
    """Find the parts of a data set."""
    if name in TORCHVISION_SPLITS:
        return TORCHVISION_SPLITS[name]
    for argument in ("split", "image_set"):
        if argument in parameters:  # no set for classification: torchvision itself checks the part
            return Splits({} if wanted is None else {wanted: {argument: wanted}}, wanted)
    return _TRAIN if "train" in parameters else Splits({}, None)


def _bytes_of(path: str | os.PathLike[str]) -> bytes:
    return Path(path).read_bytes()


def open_source(place: str, *, split: str | None, root: str | os.PathLike[str]) -> MapDataset:
    """Open the source that ``torchvision:NAME`` names, see `torchvision_dataset`."""
    dataset, taken = _opened(place, root, split)
    return MapDataset(dataset, parallel=True, part=taken)
