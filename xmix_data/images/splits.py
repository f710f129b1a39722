"""Which part of a named data set is read: the one that is asked for, or no silent other one.

Comes in: the splits that a source has, and the one that is wanted. Goes out: one that it has.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

__all__ = ["chosen_split", "log_split"]

_log = logging.getLogger("xmix_data")


def chosen_split(
    source: str, splits: Sequence[str], wanted: str | None, default: str | None = "train"
) -> str | None:
    """Choose a part of a data set.

    Args:
        source: Name of the data set, as it was given, for messages.
        splits: Names of its parts; none where it is whole.
        wanted: The part that was asked for; ``None``: none in particular.
        default: Part that is taken then.

    Returns:
        One of ``splits``; ``None`` where there are none and none is wanted.

    Raises:
        ValueError: There is no such part, or none is wanted and ``default`` is none of them;
            lists those that there are.
    """
    if wanted is not None and not splits:
        raise ValueError(f"{source} has no splits, and {wanted!r} is wanted; leave --split out")
    if wanted is None and not splits:
        return None
    chosen = default if wanted is None else wanted
    if chosen not in splits:
        wrong = "" if chosen is None else f", not {chosen!r}"
        raise ValueError(
            f"{source} has the split{'s' * (len(splits) > 1)} {_listed(splits)}{wrong}; "
            "choose one with --split"
        )
    return chosen


def log_split(source: str, splits: Sequence[str], wanted: str | None, chosen: str | None) -> None:
    """Log which part was taken where there are several and none was named.

    It is called when the data set is open: an error is one line, and comes alone.
    """
    if wanted is None and len(splits) > 1:
        _log.info(
            "%s has the splits %s; %s is taken, --split takes another",
            source,
            _listed(splits),
            chosen,
        )


def _listed(splits: Sequence[str]) -> str:
    *others, last = splits
    return f"{', '.join(others)} and {last}" if others else last
