"""Python processes that begin with the libraries loaded, as forks of one that has only loaded them.

To start an interpreter and import torch in it takes seconds of both cores; a fork takes
milliseconds. What such a process runs is its `__main__`, its environment, signals, streams and end,
that of the interpreter too, are its own. Not for what is to be seen while a process starts:
imports, and variables that libraries read then.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = (
    "torch",
    "torchvision.models",
    "faiss",
    "pytest",
    "xmix_data.backends.host",
    "xmix_data.bench",
    "xmix_data.cli",
    "xmix_data.features",
    "xmix_data.training",
)
_MOST_BYTES = 1 << 17
"""Of a message: arguments and environment."""
_NUMBER = struct.Struct("<i")


class Server:
    """Starts processes: ``start("-c", code, argument)``, as `python` takes them.

    Ends with the ``with`` block; the processes go on.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        theirs.close()

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """With this process's environment and folder, and variables more."""
        asked = {
            "arguments": arguments,
            "environment": {**os.environ, **(environment or {})},
            "folder": os.getcwd(),
        }
        return Process(self._socket, json.dumps(asked).encode())

    def run(self, *arguments: str, timeout: float) -> Process:
        """Start a process and wait for its end."""
        process = self.start(*arguments)
        ended([process], timeout)
        return process

    def job(self, count: int, *arguments: str) -> list[Process]:
        """So many processes, with the variables by which a launcher makes a job of them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "OMP_NUM_THREADS": "1",
        }
        return [
            self.start(
                *arguments, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            )
            for rank in range(count)
        ]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()


class Process:
    """A running process, much as `subprocess.Popen` has it."""

    returncode: int | None = None

    def __init__(self, server: socket.socket, asked: bytes) -> None:
        self._streams = [os.memfd_create(name) for name in ("stdout", "stderr")]
        self._texts: list[str] = []
        self._told, theirs = os.pipe()
        socket.send_fds(server, [asked], [*self._streams, theirs])
        os.close(theirs)
        self.pid = self._number()

    def _number(self) -> int:
        return int(_NUMBER.unpack(os.read(self._told, _NUMBER.size))[0])

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._written()[0]

    @property
    def stderr(self) -> str:
        return self._written()[1]

    def _written(self) -> list[str]:
        # From the start: the process moves the place in a file that both have open.
        return self._texts or [
            os.pread(stream, os.fstat(stream).st_size, 0).decode() for stream in self._streams
        ]

    def wait(self, timeout: float) -> int:
        """The exit status, at the end."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout, self.stdout)
            self.returncode, self._texts = self._number(), self._written()
            for descriptor in (*self._streams, self._told):
                os.close(descriptor)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def ended(started: Sequence[Process], timeout: float) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each; those that take longer are killed."""
    try:
        return [(process.wait(timeout), process.stdout, process.stderr) for process in started]
    finally:
        for process in started:
            process.kill()


# The other side


def serve(server: socket.socket) -> dict[str, Any]:
    """Fork for every message; returns only in the processes, with what is asked of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that the end of a process does not look through what was loaded
    while True:
        message, handed, *_ = socket.recv_fds(server, _MOST_BYTES, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            server.close()
            return attended(json.loads(message), *handed)
        for descriptor in handed:
            os.close(descriptor)


def attended(asked: dict[str, Any], out: int, err: int, told: int) -> dict[str, Any]:
    """Fork once more; one process tells what becomes of the other, which returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process:
        os.write(told, _NUMBER.pack(process))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        os.write(told, _NUMBER.pack(status))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for descriptor in (out, err, told):
        os.close(descriptor)
    return asked


def become(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Do what `python` does with its arguments."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    kind, *rest = arguments
    if kind == "-m":
        sys.argv = rest
        sys.path[0] = folder
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        code, sys.argv = rest[0], ["-c", *rest[1:]]
        sys.path[0] = ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(kind).parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    _this = sys.modules["__main__"]  # `become` puts another in its place
    become(**serve(socket.socket(fileno=int(sys.argv[1]))))
