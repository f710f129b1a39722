"""Options, checked: a number that is impossible is a `ValueError` that names it and its range.

What goes out is Python's own number, whatever came in: NumPy's are written into no JSON, and
`torch.load` reads them from no checkpoint.
"""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["MAX_SEED", "real_number", "truth", "whole_number"]

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


def real_number(name: str, value: Any) -> float:
    """Return an option as a float.

    Raises:
        ValueError: It is none; a text or a truth value is none.
    """
    try:
        if not isinstance(value, (str, bytes, bool)):
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # of a tensor with several elements
        pass
    raise ValueError(f"{name} is {value!r}; it must be a number")


def truth(name: str, value: Any) -> bool:
    """Return an option that is on or off as a bool.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(value, str) and value in (True, False):  # NumPy's are among them
        return bool(value)
    raise ValueError(f"{name} is {value!r}; it must be True or False")
