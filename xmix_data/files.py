"""Files that appear under their names only when whole."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["whole_file"]


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open ``PATH.partial`` for writing; it becomes ``PATH`` if the block ends without an error.

    The file is synced before it is renamed, and locked against a second writer. What a killed
    process leaves under the partial name, the next writer takes over.

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
    partial = path.with_name(path.name + ".partial")
    try:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
            if not _lock(stream, partial):
                raise FileExistsError(f"{path}: another process is writing it; wait for it")
            try:
                stream.truncate(0)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno is None or isinstance(error.__cause__, OSError):
            raise  # it says already what and where, as the error of a file written meanwhile does
        message = f"{path}: cannot be written ({error.strerror}); free space or write elsewhere"
        raise type(error)(error.errno, message) from error
    _sync_folder(path.parent)


def _lock(stream: BinaryIO, partial: Path) -> bool:
    """Lock a partial file, unless another writer holds it or has finished since it was opened."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(partial))
    except (BlockingIOError, FileNotFoundError):
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
