"""What is a finding, and what is one although nothing was raised."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator
from unittest import mock


class Finding(Exception):
    """Neither a clear error nor right data."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Warnings, and exceptions that nobody sees, are findings."""
    seen: list[str] = []
    with (
        warnings.catch_warnings(record=True) as caught,
        mock.patch.object(sys, "unraisablehook", lambda x: seen.append(f"{x.exc_value!r}")),
        mock.patch.object(threading, "excepthook", lambda x: seen.append(f"{x.exc_value!r}")),
    ):
        warnings.simplefilter("always")
        yield
    seen += [f"{x.category.__name__}: {x.message}" for x in caught]
    if seen:
        raise Finding(f"a warning: {seen[0][:300]}")
