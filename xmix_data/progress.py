"""What people see in a terminal: progress (a bar, or plain lines elsewhere), and safe text."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Progress", "printable"]

_SECONDS_BETWEEN_LINES = 10.0
_COLUMNS = 80
"""Columns of a bar on a terminal that does not say how wide it is."""


def printable(text: str) -> str:
    """Replace what is no visible character in a text by escapes.

    Names come from files of other people: they must neither steer a terminal nor fail to print.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _says_its_width(terminal: TextIO) -> bool:
    """Return whether a terminal says how wide it is.

    Terminals of containers may say 0 columns, and then a bar would not be seen.
    """
    try:
        return os.get_terminal_size(terminal.fileno()).columns > 0
    except (OSError, ValueError):  # it only stands for a terminal
        return False


def _rate(rate: float) -> str:
    """Write how many a second, with two digits at least: slow steps have a speed too."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"


class Progress:
    """Progress of one long task on stderr: a bar on a terminal, plain lines elsewhere.

    Args:
        label: What is being done, e.g. ``"convert"``.
        total: Number of items.
        unit: Name of the items, in the plural.
        done: Number of items that were finished earlier.
        enabled: ``False`` prints nothing.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        unit: str = "images",
        done: int = 0,
        enabled: bool = True,
    ) -> None:
        self._label, self._total, self._unit = printable(label), total, unit
        self._done = self._done_earlier = done
        self._enabled, self._said = enabled, -1
        self._bar = None
        self._started = self._printed = time.monotonic()
        if enabled and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from tqdm import tqdm

            wide = _says_its_width(sys.stderr)
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=self._label,
                unit=f" {unit}",
                dynamic_ncols=wide,
                ncols=None if wide else _COLUMNS,
                nrows=None if wide else 2,
            )

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as finished."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._enabled and time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._printed, self._said = time.monotonic(), self._done
        new = self._done - self._done_earlier
        rate = new / max(self._printed - self._started, 1e-9)
        share = 100 * self._done // max(self._total, 1)
        line = f"{self._label}: {self._done}/{self._total} ({share} %)"
        if new:
            line += f", {_rate(rate)} {self._unit}/s"
        print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and kind is None and self._said != self._done:
            self._line()
