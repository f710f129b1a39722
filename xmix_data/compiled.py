"""`kernel`: functions that numba compiles, without the GIL, kept on disk.

Comes in: a function of numbers and arrays. Goes out: the same, compiled on its first use.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numba
from numba.core import caching

__all__ = ["kernel"]


_log = logging.getLogger("xmix_data")


class _Cache:
    """A function's compiled code on disk; what cannot be read or written there is compiled.

    To numba's dispatcher it is a cache like numba's own, which lets a full disk end the call.
    """

    def __init__(self, function: Any) -> None:
        self._files: Any = caching.FunctionCache(function)  # type: ignore[no-untyped-call, unused-ignore]
        self.cache_path: str = self._files.cache_path

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return self._files.load_overload(sig, target_context)
        except OSError as error:
            _say(f"{self.cache_path}: {error}")
        except Exception:  # a damaged file, in which pickle may meet anything: it is written again
            pass
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            self._save(sig, data)
        except OSError as error:  # a full disk, a quota
            _say(f"{self.cache_path}: {error}")

    def _save(self, sig: Any, data: Any) -> None:
        try:
            self._files.save_overload(sig, data)
        except OSError:
            raise
        except Exception:  # the index is damaged, to which it would be added
            self.flush()
            self._files.save_overload(sig, data)

    def flush(self) -> None:
        self._files.flush()


def _say(reason: str) -> None:
    """Log, once in a process, why kernels are not kept."""
    if not getattr(_say, "said", False):
        _say.said = True  # type: ignore[attr-defined]
        _log.warning("kernels are compiled anew in every process: %s", reason)


_switching = threading.RLock()


@contextmanager
def _compiler_on() -> Iterator[None]:
    """Let numba compile where NUMBA_DISABLE_JIT is set, as it is to debug or measure other code.

    Kernels call C functions and read addresses, which Python itself cannot run.
    """
    settings: Any = numba.config
    with _switching:
        disabled = settings.DISABLE_JIT
        settings.DISABLE_JIT = 0
        try:
            yield
        finally:
            settings.DISABLE_JIT = disabled


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Let no Ctrl-C get lost: what a handler raises in a callback of LLVM's, ctypes throws away."""
    befores: dict[int, Any] = {}
    raised: list[BaseException] = []

    def note(number: int, frame: FrameType | None) -> None:
        try:
            befores[number](number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        befores |= {number: handler for number, handler in found.items() if callable(handler)}
    for number in befores:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, before in befores.items():
            if signal.getsignal(number) is note:  # a handler may have put another one in its place
                signal.signal(number, before)
    if raised:
        raise raised[-1]


def kernel(function: Any) -> Any:
    """Compile a function on its first use, and keep it on disk where that can be written."""
    with _compiler_on():
        compiled: Any = numba.njit(nogil=True)(function)
    compile_for = compiled.compile

    def compile_now(types: Any) -> Any:  # on the first call, with numba's own functions in it
        with _compiler_on(), _signals_kept():
            return compile_for(types)

    compiled.compile = compile_now
    try:
        compiled._cache = _Cache(function)  # numba's enable_caching puts its own one there
    except RuntimeError as error:  # there is no folder that can be written
        _say(str(error))
    return compiled
