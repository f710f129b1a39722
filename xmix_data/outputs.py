"""Where results go: places that must be on this machine.

Comes in: a path as it was given. Goes out: a `Path`, or one error before any work. Betons and
pairings are not meant: `xmix_data.remote` writes them to URLs as well.
"""

from __future__ import annotations

import os
from pathlib import Path

from xmix_data.remote import path_or_url

__all__ = ["local_path"]


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
