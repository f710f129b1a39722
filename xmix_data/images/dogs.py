"""Stanford Dogs (Khosla et al., FGVC 2011) from its official folder.

The folder holds ``Images`` with one folder per breed, and ``train_list.mat`` and ``test_list.mat``,
MATLAB files (of ``lists.tar``) whose ``file_list`` names the images below ``Images`` and whose
``labels`` count from 1 in the order of the breeds' folders.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from xmix_data.images.files import ImageFiles
from xmix_data.images.splits import chosen_split, log_split

__all__ = ["open_source"]

_SPLITS = ("train", "test")


def open_source(place: str, *, split: str | None, root: str | os.PathLike[str]) -> ImageFiles:
    """Open one split of Stanford Dogs, in the order of its list.

    Args:
        place: Folder with ``Images`` and the lists.
        split: ``"train"`` or ``"test"``; ``None``: train.
        root: Not used: there is no download.

    Raises:
        FileNotFoundError: ``Images`` or the list is not there.
        ValueError: There is no such split, or a list is damaged or does not fit the folders.
    """
    from scipy.io import loadmat

    folder = Path(place)
    taken = chosen_split(f"dogs:{place}", _SPLITS, split)
    images, path = folder / "Images", folder / f"{taken}_list.mat"
    for needed in (images, path):
        if not needed.exists():
            raise FileNotFoundError(
                f"{needed}: not there; unpack images.tar and lists.tar of the data set there"
            )
    names = sorted(entry.name for entry in images.iterdir() if entry.is_dir())
    try:
        document = loadmat(path, squeeze_me=True)
        files = [str(file) for file in np.atleast_1d(document["file_list"])]
        labels = [int(label) for label in np.atleast_1d(document["labels"])]
    except Exception as error:  # SciPy raises what the damage happens to lead to
        raise ValueError(f"{path}: damaged ({error}); unpack lists.tar again") from error
    if len(files) != len(labels):
        raise ValueError(f"{path}: {len(files)} files and {len(labels)} labels")
    for file, label in zip(files, labels, strict=True):
        name = names[label - 1] if 1 <= label <= len(names) else "none of the folders"
        if Path(file).parent.name != name:
            raise ValueError(
                f"{path}: {file} has the label {label}, which is {name} in {images}; "
                "unpack images.tar and lists.tar again"
            )
    log_split(f"dogs:{place}", _SPLITS, split, taken)
    return ImageFiles(
        folder, [str(images / file) for file in files], [label - 1 for label in labels], names
    )
