"""Where the training loop says what happens: one journal, any number of listeners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esper.nissa.journal import Journal

Listener = Callable[[str, Mapping[str, Any]], None]
"""Receives each event's name and fields, in order, on the training thread: it must return quickly."""

_LIVE_ONLY = frozenset({"step", "compile", "message"})


class Recorder:
    """Writes each event to the journal and tells every listener.

    The journal is written first, so a listener never shows what is not recorded. ``step``, ``compile`` and
    ``message`` are for people who watch and are not kept. Of many processes all but the first have None for
    ``journal``, and no listeners.
    """

    def __init__(self, journal: Journal | None, listeners: Sequence[Listener] = ()) -> None:
        self.journal = journal
        self.listeners = tuple(listeners)

    def emit(self, event: str, **fields: Any) -> None:
        """Record one event; raises StorageError when the journal cannot be written."""
        if self.journal is not None and event not in _LIVE_ONLY:
            self.journal.write(event, **fields)
        for listener in self.listeners:
            listener(event, fields)

    def close(self) -> None:
        """Close the journal."""
        if self.journal is not None:
            self.journal.close()
