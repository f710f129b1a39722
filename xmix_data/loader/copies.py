"""Copies of loaders: what travels is paths and numbers, and it is opened where it is first used.

Comes in: a loader's options as they were given, and where it is. Goes out: the same loader in
another place, process or machine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from xmix_data.beton import Beton, Domain

__all__ = ["Parcel", "pack", "unpack"]


class _Files(NamedTuple):
    """A domain that is not open: for each beton of its parts what `Beton.reopen` takes."""

    parts: list[list[tuple[str, ...]]]
    """Path, fingerprint and hash of the class names; the first copies had no hash."""


class _MemoryFormat(NamedTuple):
    """A memory format by name: as it is, `torch.save` could not pickle it."""

    name: str


class Parcel(NamedTuple):
    """A loader that is not open."""

    options: dict[str, Any]
    """What its class is called with; domains are files."""
    state: dict[str, Any]
    """Where it is, and what was changed since it was made."""


def pack(options: dict[str, Any], state: dict[str, Any]) -> Parcel:
    """Put a loader's options, of which some are open domains, into a parcel."""
    return Parcel({name: _closed(value) for name, value in options.items()}, state)


def _closed(value: Any) -> Any:
    if isinstance(value, torch.memory_format):
        return _MemoryFormat(str(value).removeprefix("torch."))
    if not isinstance(value, Domain):
        return value
    return _Files(
        [
            [(str(beton.absolute_path), beton.fingerprint, beton.names_hash) for beton in part]
            for part in value.shards
        ]
    )


def unpack(parcel: Parcel) -> dict[str, Any]:
    """Take the options out of a parcel, and open their domains.

    Raises:
        FileNotFoundError: A beton is not where it was.
        BetonError: It is another one now.
    """
    return {name: _opened(value) for name, value in parcel.options.items()}


def _opened(value: Any) -> Any:
    if isinstance(value, _MemoryFormat):
        return getattr(torch, value.name)
    if not isinstance(value, _Files):
        return value
    return Domain([[Beton.reopen(*known) for known in part] for part in value.parts])
