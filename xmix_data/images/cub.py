"""CUB-200-2011 (Wah et al., Caltech CNS-TR-2011-001) from its official folder.

``CUB_200_2011`` holds ``images.txt`` (image id, path below ``images``), ``image_class_labels.txt``
(image id, class id from 1), ``classes.txt`` (class id, name) and ``train_test_split.txt`` (image
id, 1 for training), with one pair a line, separated by a space.
"""

from __future__ import annotations

import os
from pathlib import Path

from xmix_data.images.files import ImageFiles
from xmix_data.images.splits import chosen_split, log_split

__all__ = ["open_source"]

_SPLITS = ("train", "test")


def open_source(place: str, *, split: str | None, root: str | os.PathLike[str]) -> ImageFiles:
    """Open one split of CUB-200-2011, in the order of the image ids.

    Args:
        place: The unpacked folder ``CUB_200_2011``.
        split: ``"train"`` or ``"test"``; ``None``: train.
        root: Not used: there is no download.

    Raises:
        FileNotFoundError: A list is not there.
        ValueError: There is no such split, or the lists do not fit together.
    """
    folder = Path(place)
    taken = chosen_split(f"cub:{place}", _SPLITS, split)
    paths, labels, names, parts = (
        _pairs(folder / f"{name}.txt")
        for name in ("images", "image_class_labels", "classes", "train_test_split")
    )
    ids = sorted(names)
    if ids != list(range(1, len(names) + 1)):
        raise ValueError(f"{folder / 'classes.txt'}: its ids are not 1 to {len(names)}")
    for image in paths:
        if labels.get(image, "").strip() not in map(str, ids) or parts.get(image) not in ("0", "1"):
            raise ValueError(
                f"{folder}: image {image} has the class {labels.get(image)!r} and the split "
                f"{parts.get(image)!r}; unpack the data set again"
            )
    chosen = [image for image in sorted(paths) if (parts[image] == "1") == (taken == "train")]
    log_split(f"cub:{place}", _SPLITS, split, taken)
    return ImageFiles(
        folder,
        [str(folder / "images" / paths[image]) for image in chosen],
        [int(labels[image]) - 1 for image in chosen],
        [names[number] for number in ids],
    )


def _pairs(path: Path) -> dict[int, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: not there; give the unpacked folder CUB_200_2011 of the data set"
        ) from None
    pairs: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        key, _, value = line.partition(" ")
        if not key.isdecimal() or not value or int(key) in pairs:
            raise ValueError(f"{path}: line {number} is {line!r}, not a new id and its value")
        pairs[int(key)] = value
    return pairs
