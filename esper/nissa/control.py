"""What people ask of a run that goes on: to pause, to go on, to go back.

A run's folder has a file of requests that is only ever appended to, one JSON object a line, under a lock and
on the disk before whoever asks is told so: requests that come at once are two whole lines, and have an order.
The process that trains reads on from where it stopped, and its journal says what became of each (event
``control``). A request is to the process that lives when it is made; what that leaves unread ends with it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from esper.errors import RunError, StorageError
from esper.nissa.journal import COPY_NAME, JOURNAL_NAME, dumps, is_being_written

CONTROL_NAME = "control.jsonl"
"""Name of the file of requests in a run's folder."""

MAX_BYTES = 4 * 2**20
"""A file of requests grows to this and no further: tens of thousands of requests."""

_LOCK_SECONDS = 2.0

Action = Literal["pause", "resume", "rollback"]


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """One request; ``epoch`` and ``step``, at most one of them, bound the checkpoint of a ``rollback``."""

    request: str
    action: Action
    at: str
    epoch: int | None = None
    step: int | None = None


def ask(folder: Path, action: Action, *, epoch: int | None = None, step: int | None = None) -> ControlRequest:
    """Ask the run in ``folder``; the request is on the disk when this returns it.

    Raises RunError when the run does not go on, StorageError when the request cannot be written.
    """
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    request = ControlRequest(secrets.token_hex(8), action, at, epoch, step)
    if (folder / COPY_NAME).exists():
        raise RunError(
            f"run {folder.name} is a copy: nothing can be asked of it here",
            hint="ask on the host where it trains",
        )
    if not is_being_written(folder / JOURNAL_NAME):
        raise RunError(
            f"run {folder.name} does not go on: nothing can be asked of it",
            hint=f"to train on: esper train --resume {folder.name}",
        )
    path = folder / CONTROL_NAME
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _lock(fd)
            _append(fd, (dumps(asdict(request)) + "\n").encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot write the request to") from error
    return request


class ControlRequests:
    """The requests to a run that were written since this was made; not for several threads.

    Made before the run's journal is locked, it sees every request to the process that locks it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CONTROL_NAME
        self._offset = self._size()

    def take(self) -> list[ControlRequest]:
        """Those that came since the last call, in order; one call of ``stat`` where there are none.

        A line that is no request is passed over, one that is still being written is left for the next call.
        Raises StorageError when the file cannot be read.
        """
        if self._size() <= self._offset:
            return []
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                lines = file.read(MAX_BYTES).split(b"\n")[:-1]
        except OSError as error:
            raise StorageError.from_os(error, self._path, "cannot read the requests in") from error
        self._offset += sum(len(line) + 1 for line in lines)
        return [request for request in map(_parse, lines) if request is not None]

    def _size(self) -> int:
        try:
            status = self._path.lstat()
        except OSError:
            return 0
        return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _parse(line: bytes) -> ControlRequest | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        request = ControlRequest(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    bounds = [value for value in (request.epoch, request.step) if value is not None]
    whole = all(type(value) is int and value >= 0 for value in bounds)
    named = isinstance(request.request, str) and len(request.request) <= 100
    return request if request.action in get_args(Action) and whole and named else None


def _append(fd: int, line: bytes) -> None:
    size = os.fstat(fd).st_size
    if size + len(line) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"it has its {MAX_BYTES} bytes; start the run again to ask more of it")
    if size and os.pread(fd, 1, size - 1) != b"\n":
        line = b"\n" + line  # whoever wrote last was killed, or the disk was full
    if os.write(fd, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(fd)


def _lock(fd: int) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
