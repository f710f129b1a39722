"""Options, checked: a number that is impossible is a `ValueError` that names it and its range."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["MAX_SEED", "whole_number"]

MAX_SEED = (1 << 64) - 1
"""The largest seed and epoch: each is a word of the generator's key."""


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Check an option that counts something.

    Args:
        name: Of the option, for the message.
        value: As given; anything with ``__index__`` but a truth value.
        least, most: Its range, ends included; ``None`` is no limit.

    Raises:
        ValueError: It is no whole number, or outside its range.
    """
    if most is None:
        expected = f"a whole number of at least {least}"
    else:
        top = "2**64 - 1" if most == MAX_SEED else str(most)
        expected = f"a whole number in {least} .. {top}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        raise ValueError(f"{name} is {value!r}; it must be {expected}")
    return number
