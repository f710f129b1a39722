"""An HTTP server of a folder, with ranges, and with faults where a test asks for them."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import socket
import struct
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ranges = pytest.importorskip("RangeHTTPServer", reason="needs rangehttpserver")


class Server:
    """Serves a folder for the length of a ``with`` block.

    Attributes:
        asked: The ranges that were asked for, as (name, first, last).
        ranges: Whether it gives ranges, as not every server does.
        whole: How many more ranges of betons arrive whole; the others break off in the middle.
        refuses: What it answers with 403: a part of the path.
        resets: Where it resets the connection instead of an answer: a part of the path.
        page: Makes the page of a folder, of its names, those of folders with a slash.
        before: Called with the name before anything is sent.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.ranges = True
        self.whole: float = float("inf")
        self.refuses = self.resets = "\0"
        self.page: Callable[[list[str]], str] | None = None
        self.before: Callable[[str], Any] = lambda name: None
        self.lock = threading.Lock()
        handler = functools.partial(_Handler, self, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def blocks(self, name: str) -> list[int]:
        """First bytes of the ranges of a file that were asked for; of those of one byte none."""
        return sorted(first for asked, first, last in self.asked if asked == name and last > first)

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(ranges.RangeRequestHandler):  # type: ignore[misc]
    def __init__(self, server: Server, *rest: Any, **options: Any) -> None:
        self.asked_of, self.breaks = server, False
        super().__init__(*rest, **options)

    def do_GET(self) -> None:
        name, server = self.path.lstrip("/"), self.asked_of
        if "Range" in self.headers and server.ranges:
            first, last = ranges.parse_byte_range(self.headers["Range"])
            with server.lock:
                server.asked.append((name, first, last))
                if last > first and name.endswith(".beton"):
                    self.breaks = server.whole < 1
                    server.whole -= 1
        server.before(name)
        if server.refuses in self.path:
            return self.send_error(403)
        if server.resets in self.path:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        with contextlib.suppress(ConnectionError):  # who asked has heard enough
            super().do_GET()

    def do_HEAD(self) -> None:
        if self.asked_of.refuses in self.path:
            return self.send_error(403)
        super().do_HEAD()

    def list_directory(self, path: Any) -> Any:
        if self.asked_of.page is None:
            return super().list_directory(path)
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(path))
        page = self.asked_of.page(names).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        return io.BytesIO(page)

    def send_head(self) -> Any:
        if self.asked_of.ranges:
            return super().send_head()
        self.range = None
        return SimpleHTTPRequestHandler.send_head(self)

    def end_headers(self) -> None:
        SimpleHTTPRequestHandler.end_headers(self)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if self.breaks:
            outputfile.write(source.read(1000))
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            super().copyfile(source, outputfile)

    def log_message(self, *_: object) -> None:
        pass
