"""Runs of other hosts: their events out of Redis Streams into journals below a folder of this host.

Whatever reads the runs of this host then reads those as well. A copy has a file ``mirrored`` beside its
journal; a run's own folder never has, and is left alone.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from esper.errors import EsperError, RunError, SinkUnavailable
from esper.nissa.journal import JOURNAL_NAME, Event, Journal, read_journal
from esper.nissa.telemetry.redis_stream import Server, keys_of

MARK: Final = "mirrored"
"""Name of the file that says that a run's folder is a copy."""

POLL_SECONDS: Final = 0.5
MOST_RUNS: Final = 200
"""The runs that began last; older ones are copied no more."""

MOST_EVENTS: Final = 500
MOST_BYTES: Final = 2**23
"""Of one event; a larger one is left out."""

_CALL_SECONDS = 2.0
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")

log = logging.getLogger(__name__)


class RunMirror:
    """A thread that copies events as they come."""

    def __init__(self, server: Server, root: Path, prefix: str = "esper:") -> None:
        self._error: EsperError | OSError | None = None
        self._server = server
        self._root = root
        self._prefix = prefix
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
        self._server.close()

    def check(self) -> str:
        """How many runs come; raises the error because of which none do."""
        if self._error is not None:
            raise self._error
        return f"{len(self._copies)} copied, {sum(copy.goes_on for copy in self._copies.values())} go on"

    def look(self) -> None:
        """Copy what has come since the last time; SinkUnavailable when Redis does not answer."""
        found = self._ask("ZREVRANGE", f"{self._prefix}runs", 0, MOST_RUNS - 1)
        run_ids = [name.decode() for name in found if _RUN_ID.fullmatch(name.decode(errors="replace"))]
        copies = {run_id: copy for run_id in run_ids if (copy := self._copy_of(run_id)) is not None}
        if not copies:
            return
        # Asked first: a run that is gone by now says no more.
        signs = self._ask("MGET", *(keys_of(self._prefix, run_id)[2] for run_id in copies))
        for (run_id, copy), sign in zip(copies.items(), signs, strict=True):
            if sign is not None or copy.goes_on:
                self._follow(run_id, copy, alive=sign is not None)

    def _copy_of(self, run_id: str) -> _Copy | None:
        """The copy of a run; None if it is one of this host, or another process copies it."""
        try:
            if run_id not in self._copies and is_copy(self._root / run_id):
                self._copies[run_id] = _Copy(self._root / run_id)
        except RunError:
            return None
        return self._copies.get(run_id)

    def _follow(self, run_id: str, copy: _Copy, *, alive: bool) -> None:
        stream = keys_of(self._prefix, run_id)[0]
        copy.open()
        while entries := self._ask("XRANGE", stream, copy.after, "+", "COUNT", MOST_EVENTS):
            copy.add(entries)
        if not alive:
            copy.close()

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

    def _ask(self, *command: str | int) -> Any:
        try:
            with self._server.call(_CALL_SECONDS):
                return self._server.ask(*command)
        except EsperError as error:
            raise SinkUnavailable(error.message, hint=error.hint) from None


class _Copy:
    """The copy of one run. Its journal is open, and so the run goes on, while the run itself does."""

    def __init__(self, folder: Path) -> None:
        """RunError if another process writes it."""
        self.after = "-"
        """From where in the stream there may be something new."""
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

    def add(self, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
        """Append the events of ``entries`` that are new; its journal is open."""
        assert self._journal is not None
        for entry, fields in entries:
            event = _event(dict(zip(fields[::2], fields[1::2], strict=True)))
            if event is not None and event["place"] > self._place:
                self._journal.copy(event)
                self._place = event["place"]
            self.after = f"({entry.decode()}"

    def close(self) -> None:
        """Close its journal: the run does not go on."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def is_copy(folder: Path) -> bool:
    """Whether ``folder`` is that of a copy, and may be written; it is made if there is none."""
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / MARK).touch()
    return (folder / MARK).exists()


def _event(entry: dict[bytes, bytes]) -> Event | None:
    """The event of an entry; None if it is none, or too large."""
    try:
        if len(entry[b"fields"]) > MOST_BYTES:
            return None
        fields = json.loads(entry[b"fields"])
        at = datetime.fromtimestamp(int(entry[b"at"]) / 1000, UTC).isoformat(timespec="milliseconds")
        return {**fields, "event": entry[b"name"].decode(), "at": at, "place": int(entry[b"place"])}
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
