"""Runs of other hosts: their events, out of what the sinks of those hosts wrote, into journals of this host.

Whatever reads the runs of this host then reads those as well. A copy has a file ``mirrored`` beside its
journal; a run's own folder never has, and is left alone.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from esper.errors import EsperError, RunError
from esper.nissa.journal import COPY_NAME, JOURNAL_NAME, Event, Journal
from esper.nissa.journal_reader import read_journal

POLL_SECONDS: Final = 0.5
MOST_RUNS: Final = 200
"""The runs that began last; older ones are copied no more."""

MOST_EVENTS: Final = 500
"""So many are read at once."""

MOST_BYTES: Final = 2**23
"""Of one event; a larger one is left out."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")

log = logging.getLogger(__name__)


class Source(Protocol):
    """Where runs of other hosts are found. Its methods raise SinkUnavailable when it does not answer."""

    def runs(self) -> Mapping[str, bool]:
        """The ids of at most ``MOST_RUNS`` runs, and whether each goes on."""
        ...

    def events(self, run_id: str, after: str) -> Sequence[tuple[str, Event | None]]:
        """Up to ``MOST_EVENTS`` events, each with what to ask after next; "" asks from the beginning."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class RunMirror:
    """A thread that copies events as they come."""

    def __init__(self, source: Source, root: Path) -> None:
        self._source = source
        self._root = root
        self._error: EsperError | OSError | None = None
        self._copies: dict[str, _Copy] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, and let go of the copies."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        for copy in self._copies.values():
            copy.close()
        self._source.close()

    def check(self) -> str:
        """How many runs come; raises the error because of which none do."""
        if self._error is not None:
            raise self._error
        return f"{len(self._copies)} copied, {sum(copy.goes_on for copy in self._copies.values())} go on"

    def look(self) -> None:
        """Copy what has come since the last time."""
        for run_id, alive in self._source.runs().items():
            copy = self._copy_of(run_id)
            if copy is not None and (alive or copy.goes_on):
                copy.open()
                while events := self._source.events(run_id, copy.after):
                    copy.add(events)
                if not alive:  # asked first: a run that was gone by then has said no more
                    copy.close()

    def _copy_of(self, run_id: str) -> _Copy | None:
        """The copy of a run; None if it is one of this host, or another process copies it."""
        if run_id not in self._copies and _RUN_ID.fullmatch(run_id):
            try:
                if is_copy(self._root / run_id):
                    self._copies[run_id] = _Copy(self._root / run_id)
            except RunError:
                return None
        return self._copies.get(run_id)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.look()
            except (EsperError, OSError) as error:
                if self._error is None:
                    log.warning("runs of other hosts: %s", error)
                self._error = error
            else:
                self._error = None
            self._ended.wait(POLL_SECONDS)


class _Copy:
    """The copy of one run. Its journal is open, and so the run goes on, while the run itself does."""

    def __init__(self, folder: Path) -> None:
        """RunError if another process writes it."""
        self.after = ""
        """What to ask the source after."""
        self._path = folder / JOURNAL_NAME
        self._journal: Journal | None = None
        self.open()
        places = (event.get("place") for event in read_journal(self._path)[0])
        self._place = max((place for place in places if isinstance(place, int)), default=0)

    @property
    def goes_on(self) -> bool:
        """Whether its journal is open."""
        return self._journal is not None

    def open(self) -> None:
        """Open its journal, if it is not."""
        if self._journal is None:
            self._journal = Journal(self._path, fsync=False)

    def add(self, events: Sequence[tuple[str, Event | None]]) -> None:
        """Append those events that are new; its journal is open."""
        assert self._journal is not None
        for self.after, event in events:
            if event is not None and event["place"] > self._place:
                self._journal.copy(event)
                self._place = event["place"]

    def close(self) -> None:
        """Close its journal: the run does not go on."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def is_copy(folder: Path) -> bool:
    """Whether ``folder`` is that of a copy, and may be written; it is made if there is none."""
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / COPY_NAME).touch()
    return (folder / COPY_NAME).exists()


def event_of(name: str, at: float, place: int, data: str | bytes | None) -> Event | None:
    """The event of that name, Unix time and place, its fields in JSON; None if ``data`` are none."""
    try:
        fields = json.loads(data or "")
        said = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        return {**fields, "event": name, "at": said, "place": place}
    except (TypeError, ValueError, OverflowError, OSError, RecursionError):
        return None
