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
        OSError: The disk is full or not writable; names the file.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{path}: another process is writing it; wait for it"
                raise FileExistsError(message) from None
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
        if error.errno is None:
            raise
        message = f"{path}: cannot be written ({error.strerror}); free space or write elsewhere"
        raise type(error)(error.errno, message) from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
