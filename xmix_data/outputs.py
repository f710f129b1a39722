"""Where results go: to this machine where no URL will do, and over nothing that they are made of.

Comes in: a path as it was given, and what is read. Goes out: a `Path`, or one error before any
work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from xmix_data.remote import path_or_url

if TYPE_CHECKING:
    from xmix_data.beton import DomainLike

__all__ = ["local_path", "refuse_inputs"]


def local_path(given: str | os.PathLike[str]) -> Path:
    """Return where a result is written; as a `Path` a URL would be a folder of this machine.

    Args:
        given: A path; ``file://`` is one.

    Raises:
        ValueError: It is a URL, or was one before it was made a `Path`.
    """
    try:
        place = path_or_url(given)
    except ValueError:  # as a Path it has lost a slash
        place = os.fspath(given)
    if isinstance(place, str):
        raise ValueError(
            f"{place}: is a URL, and this is written to folders of this machine; give a path, and "
            "copy it from there"
        )
    return place


def refuse_inputs(output: Path | str, inputs: Iterable[DomainLike | None]) -> None:
    """Refuse to write a result over what it is made of.

    Args:
        output: Path or URL of the result.
        inputs: What is read: domains, of which the betons, the shards and the manifests count, and
            other files; ``None`` is nothing.

    Raises:
        ValueError: ``output`` is one of them, under whatever name.
    """
    for given in inputs:
        if given is not None and any(_same(output, file) for file in _files_of(given, output)):
            raise ValueError(f"{output}: would be overwritten, and is read here; give another name")


def _files_of(given: DomainLike, output: Path | str) -> Iterator[Path | str]:
    """List what a domain is read from; another file than a beton has no manifest and no shards.

    A store is not asked for what can be no file of this machine.
    """
    from xmix_data.beton import Beton, Domain, manifest_path, shards_of

    if isinstance(given, Domain):
        given = given.betons
    if not isinstance(given, (str, os.PathLike, Beton)):
        for one in given:
            yield from _files_of(one, output)
        return
    place = path_or_url(given.origin if isinstance(given, Beton) else given)
    if isinstance(place, str) != isinstance(output, str):
        return
    shards = [shard for found in shards_of(place).values() for shard in found.values()]
    for file in (place, *shards):
        yield file
        yield manifest_path(file)


def _same(one: Path | str, other: Path | str) -> bool:
    if not isinstance(one, Path) or not isinstance(other, Path):
        return one == other
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()
