"""A sink of JSON lines, for what ships logs: a file, or a descriptor such as that of standard output."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from esper.errors import StorageError
from esper.nissa.journal import dumps
from esper.nissa.telemetry.health_record import SCHEMA, unpack
from esper.nissa.telemetry.messages import Message

_TAIL = 2**20


class JsonLines:
    """One object a line: ``kind``, ``name``, ``at`` (UTC, ISO 8601), ``run``, ``place`` and ``fields``.

    The health of a layer has ``layer``, ``epoch``, ``step``, ``schema`` and ``record``, the packed record in
    base64, for ``fields``. On standard output and in a pipe lines may come twice after an outage; an event is
    known by ``run`` and ``place``.
    """

    name = "jsonl"

    def __init__(self, path: Path | None, run_id: str) -> None:
        """``path`` is appended to, and made if need be; None is standard output. Raises StorageError."""
        self._path = path
        self._run_id, self._run = run_id, dumps(run_id)
        try:
            self._torn = path is not None and path.is_file() and not _ends_a_line(path)
            if path is None:
                self._fd = os.dup(1)
            else:
                # Not to wait for the reader of a pipe: one that has none is an error.
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
                self._fd = os.open(path, flags, 0o644)
                os.set_blocking(self._fd, True)
        except OSError as error:
            raise StorageError.from_os(error, path or "standard output", "cannot write to") from error

    def position(self) -> int | None:
        """Place of the run's last event in the file; None if it is not among the last lines, or no file."""
        if self._path is None or not self._path.is_file():
            return None
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read(_TAIL).split(b"\n")[:-1]  # one that was cut off is not there
        if size == 0:
            return 0  # what is new gets the whole of a run
        places = (self._place_in(line) for line in reversed(lines))
        return next((place for place in places if place is not None), None)

    def _place_in(self, line: bytes) -> int | None:
        try:
            said = json.loads(line)
            mine = said["run"] == self._run_id and said["kind"] == "event"
            return int(said["place"]) if mine else None
        except (KeyError, TypeError, ValueError, RecursionError):
            return None

    def write(self, batch: Sequence[Message]) -> None:
        """Append the lines; OSError when the file takes none, as on a full disk."""
        data = "".join([self._line(message) for message in batch]).encode("ascii")
        left = memoryview(b"\n" + data if self._torn else data)
        while left:
            written = os.write(self._fd, left)
            left = left[written:]
            self._torn = bool(left)

    def idle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _line(self, message: Message) -> str:
        at = datetime.fromtimestamp(message.at, UTC).isoformat(timespec="milliseconds")
        # Put together by hand: an encoder takes longer over these five than over what they are of.
        head = (
            f'{{"kind":"{message.kind}","name":{dumps(message.name)},"at":"{at}","run":{self._run},'
            f'"place":{message.place},'
        )
        if message.kind != "health":
            return f'{head}"fields":{message.json}}}\n'
        record = unpack(message.record)
        return (
            f'{head}"layer":{dumps(record.layer)},"epoch":{record.epoch},"step":{record.step},'
            f'"schema":"{SCHEMA}","record":"{base64.b64encode(message.record).decode()}"}}\n'
        )


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
