"""Paths that may be URLs: ``s3://``, ``gs://``, ``hf://``, ``https://``, ``memory://`` and others.

Comes in: a path, or a URL of a protocol that fsspec knows. Goes out: bytes, ranges of bytes,
listings; and files that are uploaded whole or not at all. Whatever a store answers instead is one
error that names the URL and says what to do. fsspec is loaded where a URL is met, and not before.
"""

from __future__ import annotations

import errno
import html
import os
import posixpath
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import unquote

from xmix_data import files
from xmix_data.errors import MissingDependencyError
from xmix_data.progress import Progress

__all__ = [
    "Megabytes",
    "bytes_of_range",
    "cache_errors",
    "cache_folder",
    "find",
    "is_url",
    "joined",
    "listed",
    "name_of",
    "parallel_connections",
    "path_or_url",
    "read_bytes",
    "remove",
    "require_writable",
    "scratch",
    "serves_ranges",
    "state_of",
    "text_of",
    "whole_bytes",
    "whole_file",
    "with_name",
]

_URL = re.compile(r"([a-z][\w+.-]*::)*[a-z][\w+.-]+://", re.IGNORECASE)
_LOST_SLASH = re.compile(r"[a-z][\w+.-]+:/[^/]", re.IGNORECASE)
_SECONDS_BETWEEN_ATTEMPTS = (0.2, 1.0, 4.0)
_SECONDS_UNTIL_ABANDONED = 60.0
"""Age from which on a file on its way to a URL is locked by its writer, if there is one."""
_FILE_SERVERS = {"sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs", "webdav", "dbfs"}
"""Protocols under which a file is seen while it is written, and can be renamed at its end.

An object store shows an object when all of it has arrived.
"""
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Errors of this machine's disk, which no store is to blame for."""
_VERSION_KEYS = {
    *("size", "etag", "lastmodified", "last-modified", "mtime", "modified", "created", "updated"),
    *("generation", "blob_id", "content_md5", "content-md5", "md5hash", "digest"),
}
"""Facts of a file that change with its content, by the names of several stores."""


def is_url(given: object) -> bool:
    """Return whether a text is a URL that is not one of a local file."""
    return isinstance(given, str) and bool(_URL.match(given)) and not given.startswith("file://")


def path_or_url(given: str | os.PathLike[str]) -> Path | str:
    """Tell paths from URLs.

    Args:
        given: A path, or a URL.

    Returns:
        The URL as a string, anything else as a `Path`; ``file://`` is a path. A ``~`` in front is
            the home folder: shells leave it in ``--output=~/run``, and in what Python is given.

    Raises:
        ValueError: It is a URL that was made a `Path`, which takes one of its slashes.
    """
    text = os.fspath(given)
    if is_url(text):
        return text
    if _LOST_SLASH.match(text) and not os.path.exists(text):
        raise ValueError(f"{text}: as a Path a URL has lost a slash; give it as a string")
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://")))
    return Path(os.path.expanduser(text))


def _parts(url: str) -> tuple[str, str]:
    """Divide a URL into its path, and what follows: a query, or what the path lies inside of."""
    end = r"::|[?#]" if url.lower().startswith("http") else "::"
    found = re.compile(end).search(url, url.index("://"))
    stop = found.start() if found else len(url)
    return url[:stop], url[stop:]


def name_of(path: Path | str) -> str:
    """Return the last part of a path or URL; of a URL without its query."""
    return path.name if isinstance(path, Path) else _parts(path)[0].rpartition("/")[2]


def with_name(path: Path | str, name: str) -> Path | str:
    """Return a path or URL with another last part."""
    if isinstance(path, Path):
        return path.with_name(name)
    head, tail = _parts(path)
    return f"{head.rpartition('/')[0]}/{name}{tail}"


def joined(url: str, below: str) -> str:
    """Return the URL of what lies below a URL."""
    head, tail = _parts(url)
    protocol, _, place = head.partition("://")
    return f"{protocol}://{place.rstrip('/')}/{below}{tail}"


def _filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        raise MissingDependencyError(
            f"{url}: {error} ({error.__cause__}): {_install(url)}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{url}: {' '.join(str(error).split())}; give a URL that fsspec knows, such as s3://, "
            "gs://, hf:// or https://"
        ) from error
    except Exception as error:
        raise _explained(url, "cannot be reached", error) from error


def _install(url: str) -> str:
    """Say what installs the package of a URL's protocol."""
    from fsspec.registry import known_implementations

    for protocol in re.findall(r"([a-z][\w+.-]*)::?(?://)?", url, re.IGNORECASE):
        package = known_implementations.get(protocol, {}).get("class", "fsspec").split(".")[0]
        if package != "fsspec":
            return f"pip install {package}"
    return f"pip install 'fsspec[{url.partition('://')[0].replace('https', 'http')}]'"


@contextmanager
def _answers(url: str, doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _explained(url, doing, error) from error


def _explained(url: str, doing: str, error: Exception) -> Exception:
    """Return what to raise for what a store, its package or the network raised."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    status = next(filter(None, map(_status, chain)), None)
    kinds = [type(one).__name__ for one in chain]
    reason = " ".join(str(chain[-1] if isinstance(error, FileNotFoundError) else error).split())
    reason = f"{kinds[0]}: {reason}" if reason else kinds[0]
    if isinstance(error, OSError) and error.errno in _LOCAL:
        return error
    if any("Credential" in kind for kind in kinds):
        return PermissionError(
            f"{url}: there are no credentials for it ({reason}); give them as the store's own "
            "tools take them (s3://: `aws configure` or AWS_ACCESS_KEY_ID; gs://: `gcloud auth`; "
            "hf://: `hf auth login`)"
        )
    if status in (401, 403) or isinstance(error, PermissionError):
        return PermissionError(
            f"{url}: access is denied ({reason}); check the credentials, and what they may do"
        )
    unreachable = any("Connect" in kind or "Timeout" in kind for kind in kinds)
    if isinstance(error, FileNotFoundError) and not unreachable and status in (None, 404):
        return FileNotFoundError(f"{url}: is not there ({reason}); check the names in it")
    if isinstance(error, NotImplementedError) or status in (405, 501):
        return ValueError(
            f"{url}: {doing} under this protocol ({reason}); give another URL, or a path"
        )
    return ConnectionError(
        f"{url}: {doing} ({reason}); check the network and the store, and run it again"
    )


def _status(error: BaseException) -> int | None:
    """Find the HTTP status in an error of aiohttp, botocore, gcsfs, requests or httpx."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for found in (answer, getattr(answer, "status_code", None), getattr(error, "status", None)):
        if isinstance(found, int):
            return found
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else None


def read_bytes(path: Path | str) -> bytes:
    """Read a file, which is small enough to be read at once.

    Args:
        path: A path or URL.

    Raises:
        OSError: It is not there, or cannot be read.
        MissingDependencyError: The package of the URL's protocol is not installed.
    """
    if isinstance(path, Path):
        return path.read_bytes()
    system, inner = _filesystem(path)
    with _answers(path, "cannot be read"):
        return bytes(system.cat_file(inner))


def text_of(path: Path | str) -> str:
    """Read a text in UTF-8, marked as such or not; bytes that are none come as lone surrogates."""
    return read_bytes(path).decode("utf-8-sig", "surrogateescape")


def state_of(url: str) -> dict[str, Any]:
    """Ask for a file's ``size`` and what else changes with its content.

    Raises:
        OSError: It is not there, or the store does not answer.
    """
    system, inner = _filesystem(url)
    with _answers(url, "cannot be read"):
        system.invalidate_cache()
        try:
            facts = system.info(inner)
        except FileNotFoundError:
            system.cat_file(inner, start=0, end=1)  # its answer says more: which part is not there
            raise
    if facts.get("type") == "directory":
        raise IsADirectoryError(f"{url}: is a folder; give the URL of a file")
    if not isinstance(facts.get("size"), int):
        raise OSError(f"{url}: the server does not say how long it is; copy the file to this disk")
    return {key: value for key, value in facts.items() if key.lower() in _VERSION_KEYS}


def serves_ranges(url: str, size: int) -> bool:
    """Return whether a store gives parts of a file; some HTTP servers do not."""
    if not url.lower().startswith("http"):
        return True
    system, inner = _filesystem(url)
    try:
        with _answers(url, "cannot be read"):
            if system.info(inner).get("partial") is False:
                return False
            with system.open(inner, "rb", block_size=1 << 20, cache_type="none") as stream:
                stream.seek(size - 1)
                return len(stream.read(1)) == 1
    except ConnectionError as error:
        if isinstance(error.__cause__, ValueError):  # how fsspec says so
            return False
        raise


def bytes_of_range(url: str, start: int, stop: int) -> bytes:
    """Read a part of a file; a connection that breaks is tried anew a few times.

    Args:
        url: The file.
        start, stop: Its first byte, and the one behind its last.

    Raises:
        OSError: It is not there, cannot be read, or is shorter.
    """
    if start == stop:
        return b""
    system, inner = _filesystem(url)
    for wait in (*_SECONDS_BETWEEN_ATTEMPTS, None):
        try:
            with _answers(url, "cannot be read to its end"):
                data = bytes(system.cat_file(inner, start=start, end=stop))
                if len(data) == stop - start:
                    return data
                raise EOFError(f"{len(data)} bytes came, and not {stop - start}")
        except ConnectionError:
            if wait is None:
                raise
            time.sleep(wait)
    raise AssertionError


def parallel_connections(url: str, most: int) -> int:
    """Return how many parts may be read at once: one where a protocol has one connection."""
    system, _ = _filesystem(url)
    return most if system.async_impl or _speaks(system, {"hf", "memory"}) else 1


def _speaks(system: Any, protocols: set[str]) -> bool:
    own = system.protocol
    return not protocols.isdisjoint({own} if isinstance(own, str) else own)


def whole_bytes(url: str, stream: IO[bytes], size: int, bar: Megabytes) -> None:
    """Read all of a file into a local one, in one go."""
    system, inner = _filesystem(url)
    with (
        _answers(url, "cannot be read to its end"),
        system.open(inner, "rb", block_size=0) as there,
    ):
        done = 0
        while data := there.read(1 << 20):
            stream.write(data)
            bar.advance(len(data))
            done += len(data)
        if done != size:
            raise EOFError(f"{done} bytes came, and not {size}")


def find(url: str) -> list[tuple[str, int | None]]:
    """List all files below a folder: paths relative to it, and sizes where the store says them.

    fsspec's own walk takes a folder that cannot be listed for an empty one: only stores that list
    all at once are asked by `find`.

    Raises:
        OSError: The folder, or one in it, cannot be listed; names it.
    """
    system, inner = _filesystem(url)
    with _answers(url, "cannot be listed"):
        system.invalidate_cache()
        if _lists_at_once(system):
            found = system.find(inner, detail=True).items()
            named = ((_below(inner, name), facts.get("size")) for name, facts in found)
            return [(path, size) for path, size in named if path]
    sizes: dict[str, int | None] = {}
    folders = {"": inner}
    todo = [""]
    while todo:
        folder = todo.pop()
        with _answers(joined(url, folder) if folder else url, "cannot be listed"):
            entries = system.ls(folders[folder], detail=True)
        for facts in entries:
            path = _below(inner, facts["name"])
            if facts["type"] != "directory":
                sizes[path] = facts.get("size")
            elif path.rstrip("/") not in folders:  # a page may link to what is above it
                todo.append(path.rstrip("/"))
                folders[path.rstrip("/")] = _linked(facts["name"])
    sizes.pop("", None)
    return list(sizes.items())


def _lists_at_once(system: Any) -> bool:
    """Return whether a store has a listing of its own, of all that is below a folder."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    kind, walks = type(system), AsyncFileSystem._find
    return kind.find is not AbstractFileSystem.find or getattr(kind, "_find", walks) is not walks


def _linked(name: str) -> str:
    """Return the URL that a link on a page of HTML means; any other name as it is."""
    return html.unescape(name) if name.startswith("http") else name


def _below(folder: str, name: str) -> str:
    """Return a listed name relative to a folder; empty for what is no part of it."""
    path, top = _linked(name).lstrip("/"), folder.strip("/")
    if top and not path.startswith(f"{top}/"):
        return ""
    path = path[len(top) + bool(top) :]
    if not folder.startswith("http"):
        return path
    if "?" in path or "#" in path:  # a link that sorts the page, and no file
        return ""
    path = posixpath.normpath(path)
    return "" if path.split("/")[0] in (".", "..") else path


def listed(path: Path | str) -> list[str]:
    """Return the names of the files beside a file, sorted; none where no folder can be listed."""
    if isinstance(path, Path):
        return sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
    system, inner = _filesystem(str(with_name(path, "")))
    system.invalidate_cache()
    try:
        found = system.ls(inner, detail=False)
    except Exception:  # many servers have no lists: then there is nothing to find
        return []
    names = [_linked(name).rstrip("/").rpartition("/")[2] for name in found]
    return sorted(map(unquote, names) if inner.startswith("http") else names)


def require_writable(path: Path | str, *, overwrite: bool) -> None:
    """Refuse, before any work, to write a file where that cannot or may not be done.

    An empty file is written beside it: on this disk one without a name, where it is a URL one that
    is removed again.

    Raises:
        OSError: The file exists and ``overwrite`` is false, it is no regular file, or its folder
            does not exist or cannot be written.
    """
    existing = f"{path}: exists; choose another name or overwrite it (overwrite=True, --overwrite)"
    if isinstance(path, Path):
        if path.is_dir():
            raise IsADirectoryError(f"{path}: is a folder; give the name of a file")
        if path.exists() and not path.is_file():  # a device would be replaced by a file
            raise FileExistsError(f"{path}: is no regular file; give another name")
        if path.exists() and not overwrite:
            raise FileExistsError(existing)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder; create it first")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                return
        except OSError as error:
            message = f"{path}: cannot be written ({error.strerror}); free space or write elsewhere"
            raise type(error)(error.errno, message) from error
    system, inner = _filesystem(path)
    with _answers(path, "cannot be written"):
        system.invalidate_cache()
        exists = system.exists(inner)
    if exists and not overwrite:
        raise FileExistsError(existing)
    trial = with_name(path, f"{name_of(path)}.partial")
    with _answers(path, "cannot be written"):
        system, inner = _filesystem(str(trial))
        if _speaks(system, _FILE_SERVERS):
            system.makedirs(inner.rpartition("/")[0], exist_ok=True)
        system.pipe_file(inner, b"")
    remove(str(trial))


def remove(url: str) -> None:
    """Remove a file, if it is there and that is allowed."""
    system, inner = _filesystem(url)
    with suppress(Exception):
        system.rm_file(inner)


def cache_folder() -> Path:
    """Return the folder for what can be made again: XMIX_CACHE, or the XDG specification's.

    Raises:
        ValueError: XMIX_CACHE is a URL.
    """
    own = os.environ.get("XMIX_CACHE")
    if own:
        place = path_or_url(own)
        if isinstance(place, str):
            raise ValueError(f"XMIX_CACHE is {own!r}; give a folder of this machine")
        return place
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "xmix_data"


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Name the cache, and what to do, in the errors of its disk."""
    try:
        yield
    except OSError as error:
        if files.says_all(error):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free space, or give another folder" if full else "give another folder"
        raise type(error)(
            error.errno,
            f"{folder}: the cache cannot be written ({error.strerror}); {remedy} (XMIX_CACHE)",
        ) from error


def scratch() -> Path:
    """Return the folder for files on their way to a URL; what killed processes left is removed."""
    folder = cache_folder() / "uploads"
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _SECONDS_UNTIL_ABANDONED:
                    with open(path, "rb") as stream:
                        if files.locked(stream):  # and so nobody writes it
                            path.unlink()
    return folder


@contextmanager
def whole_file(path: Path | str, *, belongs_to: Path | str | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing; it appears under its name if the block ends without an error.

    Args:
        path: A path, as for `files.whole_file`, or a URL: then the file is written to this disk and
            uploaded at the end of the block.
        belongs_to: A file that is worth nothing without this one, and was uploaded just before: if
            this one cannot be uploaded, it is removed.

    Raises:
        OSError: The file cannot be written, or not be uploaded; names it.
    """
    if isinstance(path, Path):
        with files.whole_file(path) as stream:
            yield stream
        return
    folder = scratch()
    local = folder / f"{uuid.uuid4().hex}.partial"
    with cache_errors(folder), open(local, "x+b") as stream:
        files.locked(stream)
        try:
            yield stream
            stream.flush()
            try:
                _upload(local, path)
            except BaseException:
                if isinstance(belongs_to, str):
                    remove(belongs_to)
                    remove(path)  # an earlier one, which must not meet another beton
                raise
        finally:
            local.unlink(missing_ok=True)


def _upload(local: Path, url: str) -> None:
    from fsspec.callbacks import Callback

    system, inner = _filesystem(url)
    by_rename = _speaks(system, _FILE_SERVERS)
    size = local.stat().st_size
    place = f"{inner}.partial" if by_rename else inner
    with Megabytes(f"upload {name_of(url)}", size) as bar:

        class Shown(Callback):  # type: ignore[misc]
            def relative_update(self, inc: int = 1) -> None:
                bar.advance(inc)

        try:
            with _answers(url, "cannot be written"):
                system.put_file(str(local), place, callback=Shown())
                system.invalidate_cache()
                arrived = system.info(place)["size"]
                if arrived != size:
                    raise EOFError(f"{arrived} bytes arrived, and not {size}")
                if by_rename:
                    system.mv(place, inner)
        except BaseException:
            if by_rename:
                with suppress(Exception):
                    system.rm_file(place)
            raise


_SHOWN_FROM = 32 << 20
"""Bytes from which on a transfer shows its progress."""


class Megabytes(Progress):
    """Progress of the bytes of a file, if it is a large one, in MB (10^6 bytes)."""

    def __init__(self, label: str, size: int, *, done: int = 0) -> None:
        self._bytes = done
        shown = size >= _SHOWN_FROM
        super().__init__(label, size // 10**6, unit="MB", done=done // 10**6, enabled=shown)

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more bytes."""
        before, self._bytes = self._bytes, self._bytes + count
        super().advance(self._bytes // 10**6 - before // 10**6)
