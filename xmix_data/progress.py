"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

__all__ = ["Progress"]

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts finished items of one long task on stderr.

    Args:
        label: What is being done, e.g. ``"convert"``.
        total: How many items there are.
        unit: What they are.
        enabled: ``False`` prints nothing.
    """

    def __init__(
        self, label: str, total: int, *, unit: str = "images", enabled: bool = True
    ) -> None:
        self._label, self._total, self._unit, self._done = label, total, unit, 0
        self._enabled, self._said = enabled, -1
        self._bar = None
        self._started = self._printed = time.monotonic()
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, unit=f" {unit}", dynamic_ncols=True)

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as finished."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._enabled and time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._printed, self._said = time.monotonic(), self._done
        rate = self._done / max(self._printed - self._started, 1e-9)
        share = 100 * self._done // max(self._total, 1)
        print(
            f"{self._label}: {self._done}/{self._total} ({share} %), {rate:.0f} {self._unit}/s",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Progress:
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
