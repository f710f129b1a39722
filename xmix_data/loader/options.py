"""Options of the loaders, checked: what is impossible is a `ValueError` that says what to give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["class_names", "field_names", "one_of", "three_channels", "usable_device"]


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """Check an option that is a choice."""
    if value not in allowed:
        known = ", ".join(
            repr(one) if isinstance(one, str) else str(one).removeprefix("torch.")
            for one in allowed
        )
        raise ValueError(f"{name} is {value!r}; it must be one of {known}")
    return value


def field_names(names: Sequence[str] | None, fields: Sequence[str]) -> tuple[str, ...] | None:
    """Check that an option names each field of a batch, and return the names.

    Raises:
        ValueError: It is no list of as many different names.
    """
    if names is None:
        return None
    # Of a dict or a set the order would say nothing.
    found = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else ()
    if len(set(found)) != len(fields) or len(found) != len(fields):
        raise ValueError(
            f"names is {names!r}; give {len(fields)} different names, for {', '.join(fields)}, "
            "as a tuple in this order"
        )
    return found


def class_names(classes: Iterable[str] | None) -> list[str] | None:
    """Check that an option lists names of classes, and return a list that can be read again.

    Raises:
        ValueError: It is something else, a single name or ids say.
    """
    if classes is None:
        return None
    known = isinstance(classes, Iterable) and not isinstance(classes, str)
    found: list[Any] = list(classes) if known else [None]
    if not all(isinstance(name, str) for name in found):
        raise ValueError(f"classes is {classes!r}; give a list of class names")
    return found


def three_channels(
    name: str, values: Sequence[float], *, positive: bool = False
) -> tuple[float, float, float]:
    """Check that an option is three numbers in 0..1 units, one a channel, and return them.

    Raises:
        ValueError: It is not; names the option.
    """
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not np.isfinite(numbers).all() or (positive and min(numbers) <= 0):
        raise ValueError(f"{name} is {values}; give three numbers in 0..1 units, one a channel")
    if max(numbers) > 1:
        raise ValueError(f"{name} is {values}; it is in 0..1 units: divide by 255")
    return numbers[0], numbers[1], numbers[2]


def usable_device(device: str | torch.device) -> torch.device:
    """Check that batches can arrive on a device, and return it with its index.

    Raises:
        ValueError: It is neither the CPU nor a CUDA device that torch finds.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}: {str(error).splitlines()[0]}") from None
    except TypeError:
        raise ValueError(f"device is {device!r}; give 'cpu', 'cuda' or, e.g., 'cuda:1'") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; batches arrive on 'cpu' or 'cuda'")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise ValueError(
                f"device is {device!r}, and torch finds {count} CUDA devices; "
                "use another one, or install a torch with CUDA"
            )
        if found.index is None:  # which one that is differs between threads
            return torch.device("cuda", torch.cuda.current_device())
    return found
