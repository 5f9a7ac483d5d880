"""The events of a run for its sinks, out of its journal."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from esper.errors import StorageError
from esper.nissa.journal import Event
from esper.nissa.journal_reader import open_journal, parse_line
from esper.nissa.telemetry.messages import Message

Allow = Callable[[str, Mapping[str, Any], str | None], Mapping[str, Any] | None]
"""Given an event's name, its fields, and these in JSON if that is at hand: what of them may leave.

None is nothing; the fields themselves mean that the JSON may leave as it is.
"""

_BLOCK = 2**16

KEPT_BYTES = 2**20
"""Of the journal, kept parsed for sinks that come one after another; in memory it is some times as much."""


class EventLog:
    """A journal that is being written, for several readers: each event is parsed and cut to size once.

    That holds for readers near its end, as sinks are: the latest events that were read are kept. Threads may
    share it.
    """

    def __init__(self, journal: Path, end: Callable[[], int], allow: Allow) -> None:
        """``end`` tells how many bytes the journal has."""
        self._journal = journal
        self._end = end
        self._allow = allow
        self._lock = threading.Lock()
        self._recent: dict[int, tuple[Message | None, int]] = {}
        self._kept = 0

    @property
    def end(self) -> int:
        """The byte after the last event."""
        return self._end()

    def after(self, place: int, end: int, most: int) -> tuple[list[Message], int]:
        """Up to ``most`` events from byte ``place`` to ``end``, and the byte after the last of them.

        Raises StorageError when the journal cannot be read.
        """
        messages: list[Message] = []
        with self._lock:
            while place < end and len(messages) < most:
                if place not in self._recent and not self._read(place):
                    break  # of a line that is being written
                message, place = self._recent[place]
                if message is not None:
                    messages.append(message)
        return messages, place

    def _read(self, place: int) -> bool:
        """Keep some lines from byte ``place`` on, each under where it begins; whether there are any."""
        while self._kept > KEPT_BYTES:
            self._forget(next(iter(self._recent)))
        lines = self._lines(place)
        for line in lines:
            if place in self._recent:
                break
            end = place + len(line) + 1
            self._recent[place] = self._message(line, end), end
            self._kept += end - place
            place = end
        return bool(lines)

    def _lines(self, place: int) -> list[bytes]:
        size = _BLOCK
        try:
            with open_journal(self._journal) as file:
                while (data := os.pread(file.fileno(), size, place)).find(b"\n") < 0 and len(data) == size:
                    size *= 2
        except OSError as error:
            raise StorageError.from_os(error, self._journal, "cannot read the journal") from error
        return data.split(b"\n")[:-1]

    def _forget(self, start: int) -> None:
        _, end = self._recent.pop(start)
        self._kept -= end - start

    def _message(self, line: bytes, end: int) -> Message | None:
        event = parse_line(line)
        if event is None:
            return None
        name = event["event"]
        fields = {key: value for key, value in event.items() if key not in ("event", "at")}
        text = _json_of_fields(event, line)
        if (allowed := self._allow(name, fields, text)) is None:
            return None
        try:
            at = datetime.fromisoformat(event["at"]).timestamp()
        except (KeyError, TypeError, ValueError):
            at = 0.0
        message = Message("event", name, at, end, allowed)
        if text is not None and allowed is fields:
            message.json = text
        return message


def _json_of_fields(event: Event, line: bytes) -> str | None:
    """What stands in ``line`` after name and time; None where those do not come first, or nothing follows."""
    head = f'{{"event":"{event["event"]}","at":"{event.get("at")}",'.encode(errors="replace")
    return "{" + line[len(head) :].decode() if line.startswith(head) and line.isascii() else None
