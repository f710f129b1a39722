"""Image files: in one folder per class, or in any list of them."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xmix_data.names import same_form, same_forms

__all__ = [
    "ClassFolder",
    "ImageFiles",
    "image_suffixes",
    "is_class",
    "left_out_as",
    "left_out_beside",
    "require_classes",
]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes of `torchvision.datasets.ImageFolder`."""
_FURTHER_SUFFIXES = (".gif", ".jfif", ".jpe", ".mpo")
"""Suffixes of what every Pillow reads, and `ImageFolder` leaves out."""
_BY_CODEC = {"avif": ".avif", "jpg_2000": ".jp2"}
"""Suffixes of what a Pillow with a codec reads."""
_PART = re.compile(
    r"(?<![a-z])(train(ing)?|val(id(ation)?)?|test(ing)?"
    r"|images?|imgs?|jpe?gs?|annotations?|labels?|masks?)(?![a-z])"
)
"""What tells the folders of a data set apart that hold its parts, and no class each."""
_HIDDEN = "hidden"
_OF_PROGRAMS = ("__MACOSX", "@eaDir")
"""Folders that a Mac puts into ZIP archives, and a Synology drive beside photographs, thumbnails
in it; neither is hidden by its name."""


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes, in lower case, of the files that count as images here.

    Never those of programs that draw (EPS, PS, PDF): Pillow would run Ghostscript.
    """
    from PIL import features

    known = features.get_supported()
    return (
        *_SUFFIXES,
        *_FURTHER_SUFFIXES,
        *(suffix for codec, suffix in _BY_CODEC.items() if codec in known),
    )


class ImageFiles:
    """Source of image files with their labels, in a given order.

    Args:
        root: Folder to which the fingerprint takes the paths relative.
        paths: (N,) files; they are not looked at before they are read.
        labels: (N,) class ids.
        class_names: Name of each class id; in Unicode's NFC form from here on.
    """

    parallel = True

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int],
        class_names: Sequence[str],
    ) -> None:
        self.root = root
        self._paths, self._names = list(paths), same_forms(class_names)
        self._labels = np.array(labels, np.int64)

    @property
    def class_names(self) -> list[str]:
        return self._names

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256("\0".join(self._names).encode(errors="surrogateescape"))
        for (name, size), label in zip(self._sizes(), self._labels.tolist(), strict=True):
            digest.update(f"{name}\0{size}\0{label}\n".encode(errors="surrogateescape"))
        return f"files:{digest.hexdigest()}"

    def _sizes(self) -> Iterator[tuple[str, int]]:
        """Yield each file's path, relative to the root, and its size; -1 where nothing is known."""
        for path in self._paths:
            try:
                size = os.path.getsize(path)
            except OSError:  # a dangling link, say: reading it is what fails, and may be skipped
                size = -1
            yield os.path.relpath(path, self.root), size

    def __len__(self) -> int:
        return len(self._paths)

    def labels(self) -> npt.NDArray[np.int64]:
        return self._labels

    def read(self, index: int) -> tuple[bytes, int]:
        return Path(self._paths[index]).read_bytes(), int(self._labels[index])

    def where(self, index: int) -> str:
        return self._paths[index]


class ClassFolder(ImageFiles):
    """Source of images in one folder per class, as `torchvision.datasets.ImageFolder` reads them.

    Args:
        root: The folder. Each folder directly inside it is a class, ids in sorted order. Images
            anywhere below a class's folder belong to that class, in sorted order. Files count as
            images by their suffix, see `image_suffixes`.

    Attributes:
        left_out: Number of all other files in and below ``root``, by suffix in lower case, ``""``
            where a name has none. Files beside the class folders are among them, images too, and
            under ``"hidden"`` those that begin with a dot, or lie in such a folder or in
            ``__MACOSX`` or ``@eaDir``.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        OSError: A folder cannot be listed.
        ValueError: No class folders, or folders of the parts of a data set in their place; a class
            without images, a hidden one with images, two folders of the same class, or a link to a
            folder that contains it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        root = Path(os.path.expanduser(root))
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; give a folder of class folders")
        entries = sorted(os.scandir(root), key=lambda e: e.name)
        folders = [e for e in entries if e.is_dir()]
        _reject_same_folder(folders)
        paths: list[str] = []
        labels: list[int] = []
        names: list[str] = []
        left_out = Counter(left_out_beside(e.name) for e in entries if not e.is_dir())
        for folder in folders:
            before = len(paths)
            for where, files in sorted(_folders(folder.path)):
                below = where[len(folder.path) + 1 :]
                for name in sorted(files):
                    kind = left_out_as(os.path.join(below, name))
                    if kind is None:
                        paths.append(os.path.join(where, name))
                    else:
                        left_out[kind] += 1
            count = len(paths) - before
            if is_class(folder.name, count, folder.path):
                labels += [len(names)] * count
                names.append(folder.name)
        require_classes(names, left_out, str(root))
        self.left_out = dict(sorted(left_out.items()))
        super().__init__(root, paths, labels, names)


def left_out_as(path: str) -> str | None:
    """Return what a file that is no image counts as; ``None`` for an image.

    What is hidden is a program's: thumbnails of a network drive, a Mac's second half of a file.

    Args:
        path: Of the file, below its class's folder.

    Returns:
        ``"hidden"``, or its suffix in lower case, with its dot, empty where it has none.
    """
    if any(map(_is_hidden, path.split("/"))):
        return _HIDDEN
    return None if path.lower().endswith(image_suffixes()) else _suffix_of(path)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _OF_PROGRAMS


def left_out_beside(name: str) -> str:
    """Return what a file beside the class folders counts as, images too; see `left_out_as`."""
    return left_out_as(name) or _suffix_of(name)


def _suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def require_classes(names: Sequence[str], left_out: Counter[str], place: str) -> None:
    """Refuse a folder without class folders.

    It may have its images beside each other, or a folder for each part of the data set.
    """
    if names:
        lower = [name.lower() for name in names]
        if all(map(_PART.search, lower)) and len({_PART.sub("", name) for name in lower}) == 1:
            part = next((name for name in names if re.search("train|im", name.lower())), names[0])
            raise ValueError(
                f"{place}: its folders are {', '.join(names)}, as the parts of a data set are "
                f"called, and no classes; give one of them, {place.rstrip('/')}/{part}"
            )
        return
    loose = sum(left_out[suffix] for suffix in image_suffixes())
    raise ValueError(
        f"{place}: no class folders in it"
        + (f", but {loose} images" if loose else "")
        + "; put the images of each class into a folder of its own"
    )


def is_class(name: str, count: int, place: str) -> bool:
    """Return whether a folder beside classes is one; a hidden one without images is none.

    Args:
        name: Of the folder.
        count: Of its images.
        place: Of the folder, for the message.

    Raises:
        ValueError: It is a class without images, or has images and is hidden: for `ImageFolder` it
            would be a class, so that all ids behind it would differ.
    """
    if _is_hidden(name):
        if count:
            raise ValueError(
                f"{place}: a hidden folder with {count} images among the class folders; remove "
                "it, or give it another name if it is a class"
            )
        return False
    if not count:
        raise ValueError(
            f"{place}: no images in this class folder (looked for {', '.join(image_suffixes())}); "
            "add images or remove the folder"
        )
    return True


def _folders(top: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders below ``top``, itself first, each with its files; follow links."""

    def refuse(error: OSError) -> None:
        raise type(error)(
            error.errno, f"{error.filename}: cannot be listed ({error.strerror}); mend or remove it"
        )

    above = {top: {os.path.realpath(top)}}
    for where, folders, files in os.walk(top, followlinks=True, onerror=refuse):
        around = above.pop(where)
        for name in folders:
            path = os.path.join(where, name)
            real = os.path.realpath(path)
            if real in around:  # walked on, its images would count again and again
                raise ValueError(f"{path}: leads back to a folder above it; remove the link")
            above[path] = around | {real}
        yield where, files


def _reject_same_folder(folders: Sequence[os.DirEntry[str]]) -> None:
    """Refuse two folders of one class: they would be two classes of the same images or name."""
    seen: dict[str, str] = {}
    for folder in folders:
        for key in (same_form(folder.name).strip(), os.path.realpath(folder)):
            other = seen.setdefault(key, folder.path)
            if other != folder.path:
                raise ValueError(
                    f"{other} and {folder.path} are two folders of the same class; "
                    "merge them or rename one"
                )
