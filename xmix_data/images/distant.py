"""Image files in one folder per class, in a bucket or behind another URL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from xmix_data.images.files import (
    ImageFiles,
    is_class,
    left_out_as,
    left_out_beside,
    require_classes,
)
from xmix_data.names import first_repeated, same_form
from xmix_data.remote import bytes_of_range, find, joined, read_bytes

__all__ = ["DistantFolder"]


class DistantFolder(ImageFiles):
    """Source of the images that a `ClassFolder` of the same files has, in the same order.

    Only the listing is read here. Each image is read when it is asked for, many of them at once.

    Args:
        url: The folder. What lies directly below it are the classes.

    Attributes:
        left_out: Number of all other files, as `ClassFolder.left_out`.

    Raises:
        OSError: The folder cannot be listed.
        ValueError: As of `ClassFolder`.
    """

    distant = True
    """Reading waits for a store and not for this machine."""

    def __init__(self, url: str) -> None:
        is_http = url.lower().startswith("http")
        found = []
        left_out: Counter[str] = Counter()
        classes: dict[str, int] = {}
        for raw, size in find(url):
            relative = (unquote(raw) if is_http else raw).removeprefix("./")
            above, _, name = relative.rpartition("/")
            if not name:
                continue  # some tools mark a folder by an empty object
            if not above:
                left_out[left_out_beside(name)] += 1
                continue
            folder, _, below = relative.partition("/")
            classes.setdefault(folder, 0)
            kind = left_out_as(below)
            if kind is None:
                found.append((folder, above, name, joined(url, raw), -1 if size is None else size))
                classes[folder] += 1
            else:
                left_out[kind] += 1
        names = [n for n in sorted(classes) if is_class(n, classes[n], joined(url, n))]
        require_classes(names, left_out, url)
        ids = {name: label for label, name in enumerate(names)}
        twice = first_repeated([same_form(name).strip() for name in names])
        if twice is not None:
            raise ValueError(
                f"{url}: {names[twice[0]]} and {names[twice[1]]} are two folders of the same "
                "class; merge them or rename one"
            )
        found.sort()
        self.left_out = dict(sorted(left_out.items()))
        self._files = [(f"{above}/{name}", size) for _, above, name, _, size in found]
        super().__init__(
            Path(),
            [place for *_, place, _ in found],
            [ids[folder] for folder, *_ in found],
            names,
        )

    def _sizes(self) -> Iterator[tuple[str, int]]:
        return iter(self._files)

    def read(self, index: int) -> tuple[bytes, int]:
        url, size = self.where(index), self._files[index][1]
        data = read_bytes(url) if size < 0 else bytes_of_range(url, 0, size)
        return data, int(self._labels[index])
