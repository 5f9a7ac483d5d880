"""Reads a journal, from where it was read last; see ``journal.py`` for what it holds."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from io import FileIO
from pathlib import Path

from pydantic_core import from_json

from esper.errors import StorageError
from esper.nissa.journal import Event
from esper.nissa.turns import let_others_first

_FIRST_BLOCK = 1 << 14
_BLOCK = 1 << 20
_LARGEST_BLOCK = 1 << 23

_buffers: list[bytearray] = []
"""One that nobody reads into: to get new memory from the system takes longer than to read into it."""


class JournalReader:
    """Reads a journal from where it stopped last time.

    ``offset`` is the byte after the last whole line that was read, ``torn`` the number of bytes after it
    (a line still being written, or cut off by a crash; they are read again next time), ``damaged`` the number
    of whole lines that were no event, ``kept_bytes`` the size of those that no other replaces. When the file
    was replaced or became shorter, reading starts again and ``restarts`` is one higher. Not safe to
    share between threads.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.torn = 0
        self.damaged = 0
        self.kept_bytes = 0
        self.restarts = 0
        self._inode: tuple[int, int] | None = None

    def read(self, replaced: tuple[bytes, ...] = ()) -> Generator[Event, None, None]:
        """The events written since the last call; raises StorageError when the file cannot be read.

        Lines that begin with one of ``replaced`` (see ``line_head``) may be passed over where a later one
        follows that begins so, and where the time from event to event adds up to the same without them;
        ``sparse_lines.py`` says when. Whoever stops early is at the event that came last.
        """
        buffer = _buffers.pop() if _buffers else bytearray(_BLOCK)
        try:
            with open_journal(self.path) as file:
                self._find_place(os.fstat(file.fileno()))
                file.seek(self.offset)
                torn, size = 0, min(_FIRST_BLOCK, len(buffer))
                while count := file.readinto(memoryview(buffer)[torn:size]):
                    let_others_first()
                    count += torn
                    end = buffer.rfind(b"\n", 0, count) + 1
                    decoded = yield from self._events(buffer, end, replaced)
                    torn = count - end
                    rest = buffer[end:count]
                    few = torn > size // 2 or (decoded > end // 4 and size < _LARGEST_BLOCK)
                    if few and size == len(buffer):
                        # Lines are long, and in larger blocks more is passed over.
                        buffer = bytearray(2 * size)
                    buffer[:torn], size = rest, len(buffer)
                self.torn = torn
        except OSError as error:
            raise StorageError.from_os(error, self.path, "cannot read the journal") from error
        finally:
            if len(buffer) == _BLOCK and not _buffers:
                _buffers.append(buffer)

    def _events(self, block: bytearray, end: int, replaced: tuple[bytes, ...]) -> Generator[Event, None, int]:
        """Those of the lines of ``block`` up to ``end``; returns how many bytes were decoded."""
        offset, decoded = self.offset, 0
        for line, line_end in _needed(block, end, replaced):
            let_others_first()
            self.offset = offset + line_end
            decoded += len(line)
            self.kept_bytes += 0 if line.startswith(replaced) else len(line)
            event = parse_line(line)
            if event is not None:
                yield event
            elif line:
                self.damaged += 1
        return decoded

    def is_all(self) -> bool:
        """Whether there is nothing that was not read, and what was read is still there."""
        return self._size() == self.offset + self.torn

    def is_more(self) -> bool:
        """Whether the file holds what was read, and maybe more."""
        return self._size() >= self.offset

    def begin_again(self) -> None:
        """Read from the beginning the next time."""
        self.offset, self.damaged, self.kept_bytes = 0, 0, 0
        self.restarts += 1

    def _size(self) -> int:
        """That of the file; -1 when it is another one than was read, or none."""
        try:
            status = self.path.stat()
        except OSError:
            return -1
        return status.st_size if self._inode == (status.st_dev, status.st_ino) else -1

    def _find_place(self, status: os.stat_result) -> None:
        inode = (status.st_dev, status.st_ino)
        if status.st_size < self.offset or self._inode not in (None, inode):
            self.begin_again()
        self._inode = inode


def _needed(block: bytearray, end: int, replaced: tuple[bytes, ...]) -> Iterable[tuple[bytes, int]]:
    """The lines of ``block`` up to ``end`` that are to be decoded, each with the byte after it."""
    if replaced:
        from esper.nissa.sparse_lines import needed_lines  # with numpy, which most readers have no use for

        return needed_lines(block, end, replaced)
    return _lines(block, end)


def _lines(block: bytearray, end: int) -> Iterator[tuple[bytes, int]]:
    place = 0
    for line in bytes(memoryview(block)[:end]).split(b"\n")[:-1]:
        place += len(line) + 1
        yield line, place


def read_journal(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The events after byte ``offset``, and the offset to go on from.

    A torn last line is left for the next call and lines that are no event are skipped; JournalReader counts
    both. Raises StorageError when the file cannot be read.
    """
    reader = JournalReader(path, offset)
    return list(reader.read()), reader.offset


def open_journal(path: Path) -> FileIO:
    """The journal at ``path``, to be read and unbuffered; OSError when it cannot be, or is no file."""
    file = FileIO(path, opener=lambda path, _: os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def check_journal(path: Path) -> None:
    """Raise StorageError when the journal at ``path`` cannot be read."""
    try:
        with open_journal(path) as file:
            file.read(1)
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot read the journal") from error


def parse_line(line: bytes) -> Event | None:
    """The event that a line of a journal holds; None when it holds none."""
    try:
        # What this takes it reads as json does, in a third of the time.
        event = from_json(line, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        try:
            # NaN is not JSON, but other writers know no better: read it as this module writes it.
            event = json.loads(line.decode(), parse_constant=str)
        except (ValueError, RecursionError):
            return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
