"""Files that appear under their names only when whole."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["alone_in", "cannot_be_locked", "locked", "put_aside", "says_all", "sync", "whole_file"]


_log = logging.getLogger("xmix_data")

_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
"""Errors of a file system that does not know a call, as those of networks and containers may."""
_NO_LOCKS = _UNKNOWN | {errno.ENOLCK}
_LOST = {errno.EIO, errno.ENOSPC, errno.EDQUOT}
"""Errors that say that data did not reach the disk."""
_LIMITS = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""Errors of a process that met a limit, for which no disk is to blame."""

_said: set[tuple[str, Path]] = set()
"""What was said of which folder: a checkpoint a minute must not be a line a minute."""


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open ``PATH.partial`` for writing; it becomes ``PATH`` if the block ends without an error.

    The file is synced before it is renamed, and locked against a second writer. What a killed
    process leaves under the partial name, the next writer takes over. Where a file system has no
    locks, every writer takes a partial name of its own: the file is whole all the same, and the
    last writer's stays. What a file system lacks is said once in the log.

    Args:
        path: The final name.

    Raises:
        FileExistsError: Another process is writing the same file.
        IsADirectoryError: ``path`` is a folder.
        OSError: The disk is full or not writable; names the file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file")
    try:
        stream, partial = _open_partial(path)
        with stream:
            try:
                stream.truncate(0)
                yield stream
                sync(stream, path)
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)
    except OSError as error:
        if says_all(error):
            raise
        message = f"{path}: cannot be written ({error.strerror}); free space or write elsewhere"
        raise type(error)(error.errno, message) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a folder for a block from other processes that ask for it, and other threads.

    Where the file system has no locks for folders, as NFS has none, there is nothing to ask.

    Raises:
        FileExistsError: Another one has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _is_held(descriptor):
            raise FileExistsError(
                f"{folder}: another process or thread is writing to it; wait for its end, or "
                "choose another folder"
            )
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have it open still
        os.close(descriptor)


def _is_held(descriptor: int) -> bool:
    """Lock an open folder; whether another one has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def says_all(error: OSError) -> bool:
    """Return whether an error is to be raised as it is, and not as one of a disk.

    It says already what and where, as the error of a file written meanwhile does, or this process
    met a limit.
    """
    known = error.errno is None or isinstance(error.__cause__, OSError)
    return known or error.errno in _LIMITS


def put_aside(path: Path, owner: Path) -> Callable[[], None]:
    """Rename a file that belongs to another one, which is about to be replaced.

    Args:
        path: The file; it need not be there.
        owner: What it belongs to.

    Returns:
        What is to be called after that: it removes the file, or, where its owner is still there,
        puts it back.
    """
    aside = path.with_name(f"{path.name}.earlier")
    before = owner.stat() if owner.exists() else None
    if path.exists():
        os.replace(path, aside)

    def settle() -> None:
        if before is not None and aside.exists() and os.path.samestat(before, owner.stat()):
            os.replace(aside, path)
        aside.unlink(missing_ok=True)

    return settle


def sync(stream: BinaryIO, path: Path) -> None:
    """Write out all that a stream holds, down to the disk where the file system can.

    Args:
        stream: The file.
        path: Its final name, for the log.

    Raises:
        OSError: The data did not reach the disk.
    """
    stream.flush()
    try:
        os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        _say_once(path.parent, "files cannot be synced", error, "a power cut may lose the latest")


def cannot_be_locked(error: OSError) -> bool:
    """Return whether an error says that a file system has no locks, and not that one is held."""
    return error.errno in _NO_LOCKS


def _open_partial(path: Path) -> tuple[BinaryIO, Path]:
    """Open and lock a partial file; returns it with its name."""
    partial = path.with_name(path.name + ".partial")
    is_new = not partial.exists()
    stream = _opened(partial)
    try:
        if not _lock(stream, partial):
            raise FileExistsError(f"{path}: another process is writing it; wait for it")
        return stream, partial
    except OSError as error:
        stream.close()
        if not cannot_be_locked(error):
            raise
        if is_new:
            partial.unlink(missing_ok=True)
        _say_once(
            path.parent,
            "files cannot be locked",
            error,
            "do not write one file from two processes at once: the last one's would stay",
        )
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    return _opened(partial), partial


def _opened(partial: Path) -> BinaryIO:
    return open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def locked(stream: BinaryIO) -> bool:
    """Lock a file, unless another process holds it or the file system has no locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if not cannot_be_locked(error):
            raise
        return False


def _lock(stream: BinaryIO, partial: Path) -> bool:
    """Lock a partial file, unless another writer holds it or has finished since it was opened."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(partial))
    except (BlockingIOError, FileNotFoundError):
        return False


def _sync_folder(folder: Path) -> None:
    """Have the system keep a rename over a power cut, where the file system can.

    Network file systems refuse it in many ways, and the file is there, whole: only an error that
    says that data were lost counts.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _LOST:
            raise
        _say_once(folder, "the folder cannot be synced", error, "a power cut may lose new names")


def _say_once(folder: Path, what: str, error: OSError, consequence: str) -> None:
    key = (what, folder.absolute())
    if key not in _said:
        _said.add(key)
        _log.warning("%s: %s (%s); %s", folder, what, error.strerror, consequence)
