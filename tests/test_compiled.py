"""Kernels on disk: where they cannot be kept or are damaged, they are compiled."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numba
import pytest

from xmix_data import compiled

KERNELS = """
from xmix_data.compiled import kernel

@kernel
def double(x):
    return 2 * x

@kernel
def fourfold(x):
    return min(double(double(x)), max(x, 10**9))  # numba has functions of its own for these
"""


def loaded_from_disk(folder: Path) -> int:
    """Compile, load and call two kernels, one inside the other, as a new process would."""
    source = folder / "kernels.py"
    spec = importlib.util.spec_from_file_location("kernels", source)
    assert spec is not None and spec.loader is not None
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    assert kernels.fourfold(3) == 12 and kernels.fourfold(2.5) == 10
    return sum(sum(one.stats.cache_hits.values()) for one in (kernels.double, kernels.fourfold))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # By the environment, as users do: numba forgets what is set in its module alone at the first
    # compilation after a variable of its own was changed, as `xmix_data.cli` does.
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    numba.config.reload_config()
    monkeypatch.delattr(compiled._say, "said", raising=False)
    (tmp_path / "kernels.py").write_text(KERNELS)
    yield tmp_path
    monkeypatch.undo()
    numba.config.reload_config()


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),  # as after a loss of power
    ],
    ids=["empty", "half", "zeros"],
)
def test_damaged_files_are_written_again(
    folder: Path,
    suffix: str,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert loaded_from_disk(folder) == 0
    whole = loaded_from_disk(folder)
    assert whole >= 2
    files = list(folder.glob(f"cache/*/*.{suffix}"))
    assert files
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert loaded_from_disk(folder) < whole
    assert loaded_from_disk(folder) == whole
    assert not caplog.messages


def test_kernels_compile_where_numba_is_switched_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    numba.config.reload_config()
    assert loaded_from_disk(folder) == 0  # kernels have such numbers, functions of Python have none
    assert loaded_from_disk(folder) >= 2
    assert numba.njit(loaded_from_disk) is loaded_from_disk  # other code stays as it was


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is expected
def test_a_signal_in_a_callback_of_the_compiler_is_not_lost(folder: Path) -> None:
    """What is raised in a callback of ctypes is thrown away; here the signal comes in one."""
    before = signal.getsignal(signal.SIGINT)

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), compiled._signals_kept():
        ctypes.CFUNCTYPE(None)(interrupted)()
    assert signal.getsignal(signal.SIGINT) is before
    calls = []
    signal.signal(signal.SIGINT, lambda *_: calls.append(1))  # one that counts, and raises nothing
    try:
        with compiled._signals_kept():
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == [1]


def test_files_that_cannot_be_read_are_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded_from_disk(folder)
    for file in folder.glob("cache/*/*.nbi"):
        file.unlink()
        file.mkdir()  # whom no permission stops is stopped as well
    with caplog.at_level(logging.WARNING):
        assert loaded_from_disk(folder) == 0
    (message,) = caplog.messages
    assert message.startswith(f"kernels are compiled anew in every process: {folder / 'cache'}")


def test_a_full_disk_is_one_warning(folder: Path) -> None:
    """A limit on the size of files: what is opened is there, and nothing can be written to it."""
    code = (
        "import logging, resource, sys\n"
        "logging.basicConfig(format='%(message)s')\n"
        "sys.path[:0] = sys.argv[1:]\n"
        "import kernels\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "print(kernels.fourfold(3), kernels.fourfold(2.5))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")},
    )
    assert (done.returncode, done.stdout) == (0, "12 10.0\n"), done.stderr
    (message,) = done.stderr.splitlines()
    assert message.startswith(f"kernels are compiled anew in every process: {folder / 'cache'}")
    assert "File too large" in message
