"""The events of a run for its sinks, out of its journal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from esper.nissa.journal import Event
from esper.nissa.journal_reader import JournalReader
from esper.nissa.telemetry.messages import Message

Allow = Callable[[str, Mapping[str, Any]], Mapping[str, Any] | None]
"""Given an event's name and fields, what of them may leave the run's folder; None for nothing."""

_AHEAD = 32

KEPT_BYTES = 2**20
"""Of the journal, kept parsed for sinks that come one after another; in memory it is some times as much."""


class EventLog:
    """A journal that is being written, for several readers: each event is parsed and cut to size once.

    That holds for readers near its end, as sinks are: the latest events that were read are kept. Threads may
    share it.
    """

    def __init__(self, journal: Path, end: Callable[[], int], allow: Allow) -> None:
        """``end`` tells how many bytes the journal has."""
        self._reader = JournalReader(journal)
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
        """Keep some events from byte ``place`` on, each under where it begins; whether there are any."""
        while self._kept > KEPT_BYTES:
            self._forget(next(iter(self._recent)))
        self._reader.offset = start = place
        with closing(self._reader.read()) as events:
            for count, event in enumerate(events, 1):
                self._keep(start, self._message(event))
                start = self._reader.offset
                if count == _AHEAD:
                    break
        if start == place < self._reader.offset:  # lines that are no events
            self._keep(place, None)
        return place in self._recent

    def _keep(self, start: int, message: Message | None) -> None:
        if start in self._recent:
            self._forget(start)
        self._recent[start] = message, self._reader.offset
        self._kept += self._reader.offset - start

    def _forget(self, start: int) -> None:
        _, end = self._recent.pop(start)
        self._kept -= end - start

    def _message(self, event: Event) -> Message | None:
        name = event["event"]
        fields = {key: value for key, value in event.items() if key not in ("event", "at")}
        if (allowed := self._allow(name, fields)) is None:
            return None
        try:
            at = datetime.fromisoformat(event["at"]).timestamp()
        except (KeyError, TypeError, ValueError):
            at = 0.0
        return Message("event", name, at, self._reader.offset, allowed)
