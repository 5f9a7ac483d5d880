"""Where ``esper watch`` has a run's events from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from esper.nissa.journal import JOURNAL_NAME, Event, JournalReader, is_being_written

POLL_SECONDS = 0.25
"""How often a journal is looked at; asking costs a stat and an open."""


@dataclass(frozen=True, slots=True)
class News:
    """The events since the last call, and whether the run's process lives.

    ``afresh`` says that they are all there are: the journal was replaced.
    """

    events: list[Event]
    alive: bool
    afresh: bool = False


class Source(Protocol):
    """A run's events in their order, from the first on."""

    @property
    def folder(self) -> Path:
        """The run's folder, or its id where that is on another machine."""

    def read(self) -> News:
        """What is new; the first time all there is. Does not wait for more. Raises EsperError."""


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
        events = list(self._reader.read())
        return News(events, alive, self._reader.restarts != restarts)
