"""Writing so that a crash, a kill or a full disk leaves what was there before, or what is new, whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader, or a crash, sees the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            write_all(file, [data])
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_all(file: FileIO, pieces: Iterable[bytes | memoryview]) -> int:
    """Write ``pieces`` to an unbuffered ``file``, which may take a part of one at a time; how many bytes."""
    written = 0
    for piece in pieces:
        left = memoryview(piece)
        written += len(left)
        while left:
            left = left[file.write(left) :]
    return written


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on the disk as well."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
