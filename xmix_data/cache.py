"""The cache of betons that were fetched: each named by its content, whole, verified.

Comes in: a URL, the hash of what is there, and a check. Goes out: the path of a local copy. All
processes of a machine share one download; the copies that were not used for longest make room.

fsspec has caches of its own. They name a file by its URL, so that a new one under an old name is
not seen; they take no lock; and half a file that a cut connection left behind counts as the file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from xmix_data import remote
from xmix_data.files import cannot_be_locked, whole_file
from xmix_data.remote import cache_errors, cache_folder

__all__ = [
    "Entry",
    "clear",
    "entries",
    "fetched",
    "hold",
    "keep",
    "kept",
    "key_of",
]

_log = logging.getLogger("xmix_data")

_BLOCK = 8 << 20
"""Bytes of a range."""
_CONNECTIONS = 16
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

_held: Counter[str] = Counter()
"""How many betons of this process are open, by their keys: one is not cleared for another."""


class Entry(NamedTuple):
    """A beton in the cache, or the part of one that was fetched so far."""

    folder: Path
    """Where it is; the folder's name is the hash of its content."""
    name: str
    """Name of the file."""
    size: int
    """Bytes that it takes, or will take when it is whole."""
    used: float
    """When it was last opened, in seconds since the epoch."""
    whole: bool
    """Whether all of it is there."""


def _betons() -> Path:
    return cache_folder() / "betons"


def key_of(text: str) -> str:
    """Return a beton's key, from the content hash of its manifest or from any other text."""
    found = re.fullmatch(r"sha256:([0-9a-f]{64})", text)
    return found[1] if found else hashlib.sha256(text.encode()).hexdigest()


def kept(key: str, name: str) -> Path | None:
    """Find a beton in the cache, without any question to the store."""
    path = _betons() / key / name
    if not path.is_file():
        return None
    _touch(path.parent)
    return path


def hold(owner: object, key: str) -> None:
    """Keep a beton in the cache as long as its owner lives, as far as this process makes room."""
    _held[key] += 1
    weakref.finalize(owner, _held.subtract, [key])


def fetched(
    url: str,
    key: str,
    *,
    name: str,
    state: Mapping[str, Any],
    manifest: bytes | None,
    check: Callable[[Path], None],
) -> Path:
    """Return the local copy of a beton; it is fetched if it is not in the cache.

    Args:
        url: Where it is.
        key: The hash of its content.
        name: Name of the file.
        state: What `remote.state_of` says of it; another state after it was fetched is an error.
        manifest: Its manifest, which is put beside it.
        check: Raises an error where a file is not what it should be.

    Raises:
        OSError: The store does not give it, or the disk does not take it.
    """
    folder, size = _betons() / key, int(state["size"])
    path, beside = folder / name, folder / f"{name}.json"
    if _is_whole(path, size) and _is_beside(beside, manifest):
        _touch(folder)
        return path
    with cache_errors(folder), _locked(folder, name) as alone:
        if not _is_whole(path, size):
            path.unlink(missing_ok=True)
            twin = next((p for p in _files_in(folder) if _is_whole(p, size)), None)
            if twin is None or not _linked(twin, path):
                _make_room(key, size)
                own = "" if alone else f".{uuid.uuid4().hex}"
                partial = path.with_name(f"{name}{own}.partial")
                try:
                    _fetch(url, partial, path, state, check)
                finally:
                    if own:  # nobody would go on with it
                        partial.unlink(missing_ok=True)
        if manifest is not None and not _is_beside(beside, manifest):
            with whole_file(beside) as stream:
                stream.write(manifest)
        _touch(folder)
    return path


def keep(local: Path, key: str, name: str) -> None:
    """Take a finished file of the scratch folder into the cache, as a second name of it."""
    folder = _betons() / key
    with cache_errors(folder), _locked(folder, name):
        path = folder / name
        path.unlink(missing_ok=True)
        if _linked(local, path):  # where not, it is fetched if it is needed
            _touch(folder)
            with suppress(OSError):  # larger than the limit: it is there already
                _make_room(key, local.stat().st_size)


def entries() -> list[Entry]:
    """List the cache, what was used last first."""
    found = []
    for folder in _betons().glob("*/"):
        # Another process may clear it meanwhile; Python 3.10 finds files too.
        with suppress(FileNotFoundError, NotADirectoryError):
            files = _files_in(folder)
            size = sum({(s := p.stat()).st_ino: _room(p, s) for p in files}.values())
            names = sorted(p.name for p in files if p.suffix != ".partial")
            name = names[0] if names else next((p.stem for p in files), "")
            used = (folder / "lock").stat().st_mtime
            found.append(Entry(folder, name, size, used, bool(names)))
    return sorted(found, key=lambda entry: -entry.used)


def _files_in(folder: Path) -> list[Path]:
    """List an entry's betons, whatever they are called, and the parts of such."""
    return [p for p in folder.iterdir() if p.name != "lock" and p.suffix != ".json"]


def clear(entry: Entry) -> bool:
    """Remove an entry, unless another process fetches it just now.

    Who has it open goes on reading; the disk's space is free when the last of them ends.
    """
    with _locked(entry.folder, entry.name, wait=False) as alone:
        if alone:
            shutil.rmtree(entry.folder, ignore_errors=True)
        return alone


def _room(path: Path, state: os.stat_result) -> int:
    """Return the bytes that a file takes, or will take when it is fetched to its end."""
    return state.st_size if path.suffix == ".partial" else 512 * state.st_blocks


def _linked(path: Path, other: Path) -> bool:
    """Give a file a second name; not every file system can."""
    try:
        os.link(path, other)
    except OSError:
        return False
    return True


def _is_whole(path: Path, size: int) -> bool:
    with suppress(FileNotFoundError):  # it may be cleared between the two
        return path.is_file() and path.stat().st_size == size
    return False


def _is_beside(path: Path, manifest: bytes | None) -> bool:
    with suppress(FileNotFoundError):
        return manifest is None or (path.is_file() and path.read_bytes() == manifest)
    return False


def _touch(folder: Path) -> None:
    now = time.time_ns()  # the system's own times are as coarse as its ticks
    with suppress(OSError):  # a cache that may only be read
        os.utime(folder / "lock", ns=(now, now))


@contextmanager
def _locked(folder: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Lock an entry; yields whether it is locked: not where a file system has no locks."""
    while True:
        try:
            opened = _lock_file(folder, make=wait)
        except FileNotFoundError:
            if wait:
                raise
            yield False  # it is cleared already
            return
        with opened as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                _log.info("another process fetches %s; waiting for it", name)
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                if not cannot_be_locked(error):
                    raise
                yield not wait
                return
            if _is_same(stream, folder / "lock"):  # else it was cleared meanwhile
                yield True
                return


def _lock_file(folder: Path, *, make: bool) -> IO[bytes]:
    """Open the file that is locked.

    Args:
        folder: Folder of the entry; others may clear it as soon as it is there.
        make: Whether to make it.
    """
    for _ in range(100 if make else 0):
        with suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            return open(folder / "lock", "ab")
    return open(folder / "lock", "ab")


def _is_same(stream: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _limit(folder: Path) -> int:
    text = os.environ.get("XMIX_CACHE_LIMIT", "").strip()
    if not text:
        return shutil.disk_usage(folder).total // 2
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text, re.IGNORECASE)
    if not found:
        raise ValueError(f"XMIX_CACHE_LIMIT is {text!r}; give bytes, or e.g. 200GB or 1.5TB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _make_room(key: str, size: int) -> None:
    """Clear what was not used for longest, until so many bytes more fit into limit and disk."""
    folder = _betons()
    limit = _limit(folder)
    others = [entry for entry in entries() if entry.folder.name != key]
    here = sum(entry.size for entry in entries() if entry.folder.name == key)
    taken = sum(entry.size for entry in others)
    missing = max(size - here, 0)
    while taken + size > limit or shutil.disk_usage(folder).free < missing:
        unused = [entry for entry in others if not _held[entry.folder.name]]
        if not unused:
            break
        others.remove(unused[-1])
        if clear(unused[-1]):
            taken -= unused[-1].size
    if taken + size > limit:
        raise OSError(
            f"{folder}: {_gigabytes(size)} more do not fit into the cache's limit of "
            f"{_gigabytes(limit)}, of which this process uses {_gigabytes(taken)}; raise "
            "XMIX_CACHE_LIMIT (e.g. 500GB), or give a larger disk (XMIX_CACHE)"
        )
    free = shutil.disk_usage(folder).free
    if free < missing:
        raise OSError(
            errno.ENOSPC, f"{_gigabytes(missing)} more are needed, and {_gigabytes(free)} are free"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _fetch(
    url: str, partial: Path, path: Path, state: Mapping[str, Any], check: Callable[[Path], None]
) -> None:
    """Fetch a file; what a break leaves is gone on with, what is wrong is removed.

    The partial file is followed by one byte for each of its blocks, 1 where the block is there.
    """
    size = int(state["size"])
    with open(partial, "r+b" if partial.exists() else "w+b") as stream:
        try:
            _fill(url, stream, path.name, size)
            if remote.state_of(url) != state:
                raise OSError(f"{url}: was changed while it was fetched; run it again")
            stream.truncate(size)
            check(partial)
            os.fsync(stream.fileno())
            os.replace(partial, path)
        except ConnectionError as error:
            raise ConnectionError(f"{error}: it goes on from where it was") from error.__cause__
        except Exception:
            partial.unlink(missing_ok=True)
            raise


def _fill(url: str, stream: IO[bytes], name: str, size: int) -> None:
    descriptor, count = stream.fileno(), -(-size // _BLOCK)
    if os.fstat(descriptor).st_size != size + count:
        os.truncate(descriptor, 0)
        os.truncate(descriptor, size + count)
    there = os.pread(descriptor, count, size)
    todo = [block for block in range(count) if not there[block]]
    done = min(_BLOCK * (count - len(todo)), size)

    def fetch(block: int) -> int:
        start, stop = block * _BLOCK, min((block + 1) * _BLOCK, size)
        data = remote.bytes_of_range(url, start, stop)
        _write_at(descriptor, data, start)
        _write_at(descriptor, b"\1", size + block)
        return len(data)

    with remote.Megabytes(f"fetch {name}", size, done=done) as bar:
        if len(todo) == count > 1 and not remote.serves_ranges(url, size):
            stream.seek(0)
            remote.whole_bytes(url, stream, size, bar)
            stream.flush()
            return
        pool = ThreadPoolExecutor(remote.parallel_connections(url, _CONNECTIONS), "xmix-fetch")
        try:
            for future in as_completed([pool.submit(fetch, block) for block in todo]):
                bar.advance(future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _write_at(descriptor: int, data: bytes, place: int) -> None:
    """Write all of it: a disk that fills up takes a part, and refuses only what comes next."""
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, place)
        left, place = left[count:], place + count
