"""Where ``esper watch`` has a run's events from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from esper.nissa.journal import JOURNAL_NAME, Event, is_being_written
from esper.nissa.journal_reader import JournalReader

POLL_SECONDS = 0.25
"""How often a journal is looked at; asking costs a stat and an open."""

MOST_AT_ONCE = 100
"""Events that are read at a time: an epoch of 500 layers takes a megabyte."""


@dataclass(frozen=True, slots=True)
class News:
    """The events since the last call, and whether the run's process lives.

    ``afresh`` says that these are the first: the journal was replaced. ``more`` of them wait to be read.
    """

    events: list[Event]
    alive: bool
    afresh: bool = False
    more: bool = False


class Source(Protocol):
    """A run's events in their order, from the first on."""

    @property
    def folder(self) -> Path:
        """The run's folder, or its id where that is on another machine."""

    def read(self) -> News:
        """What is new, at most ``MOST_AT_ONCE``; does not wait for any. Raises EsperError."""


class JournalSource:
    """The journal of a run on this machine; raises StorageError when it cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / JOURNAL_NAME
        self._reader = JournalReader(self._path)

    def read(self) -> News:
        """What was written since."""
        restarts = self._reader.restarts
        # Asked before reading: a process that is gone by now has written all that it ever will.
        alive = is_being_written(self._path)
        events = list(islice(self._reader.read(), MOST_AT_ONCE))
        return News(events, alive, self._reader.restarts != restarts, len(events) == MOST_AT_ONCE)
