"""How much damage ``on_error="replace"`` bears.

Comes in: each image that was replaced. Goes out: its name in the log; above the limit, an error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from xmix_data.beton import Domain
from xmix_data.errors import BetonError

__all__ = ["ALWAYS_REPLACED", "MAX_REPLACED_SHARE", "Replacements"]

_log = logging.getLogger("xmix_data")

MAX_REPLACED_SHARE = 0.01
"""Largest share of a process's images of an epoch that ``on_error="replace"`` replaces, in each
domain."""
ALWAYS_REPLACED = 10
"""Number of images that are replaced in any case: of a few images a share says little."""
_MAX_NAMED = 20
"""Most damaged images that a loader names in the log; the rest it only counts."""


class Replacements:
    """Replaced images of one pass: the log names them, up to a number; too many are an error.

    Args:
        domains: Target, and source if there is one.
        images: Number of images that this process gets of the epoch.
        known: (domain, index) of the replaced images of earlier passes; changed.
    """

    def __init__(self, domains: Sequence[Domain], images: int, known: set[tuple[int, int]]) -> None:
        self._domains, self._images, self._known = domains, images, known
        self._counts = [0] * len(domains)

    def add(self, domain: int, index: int) -> None:
        """Note that an image of a domain was replaced.

        Raises:
            BetonError: More images are replaced than `MAX_REPLACED_SHARE` allows.
        """
        where = self._domains[domain].describe(index)
        if (domain, index) not in self._known:
            self._known.add((domain, index))
            if len(self._known) <= _MAX_NAMED:
                _log.warning("%s cannot be decoded; another of its class replaces it", where)
        self._counts[domain] += 1
        if self._counts[domain] > max(ALWAYS_REPLACED, MAX_REPLACED_SHARE * self._images):
            raise BetonError(
                f"{where} and {self._counts[domain] - 1} images before it were damaged and "
                f"replaced in this epoch, more than {MAX_REPLACED_SHARE:.0%} of {self._images}; "
                "see what is damaged with `xmix inspect --verify`, and convert again"
            )
