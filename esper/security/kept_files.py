"""Small files that processes share: read with their owner looked at, locked for a change, replaced whole."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from esper.errors import StorageError

MOST_BYTES: Final = 2**20
"""Far above what such a file holds; what is larger is another file."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends; the folder is made if it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot write") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def read_bytes(path: Path, trust: Callable[[os.stat_result], None], doing: str) -> bytes | None:
    """At most ``MOST_BYTES`` of a file that ``trust`` does not refuse, or None if there is none."""
    try:
        # Not to wait for a writer, should the path be a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError.from_os(error, path, doing) from error
    try:
        trust(os.fstat(fd))
        return os.read(fd, MOST_BYTES)
    finally:
        os.close(fd)


def is_small_file(status: os.stat_result) -> bool:
    """Whether this is a regular file of a size that such a file can have."""
    return stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES


def state_of(path: Path) -> tuple[int, ...]:
    """What differs once the file at ``path``, or who may use it, was changed; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_ctime_ns, status.st_size


def beside(path: Path, ending: str) -> Path:
    """The path of ``path``'s own lock or unfinished successor."""
    return path.with_name(f"{path.name}.{ending}")


def replace_text(path: Path, text: str, mode: int, doing: str) -> None:
    """Put ``text`` in the place of ``path``, whole or not at all, on disk; the caller holds its lock."""
    unfinished = beside(path, "new")
    try:
        unfinished.unlink(missing_ok=True)  # of a process that was killed
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        unfinished.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageError.from_os(error, path, doing) from error
