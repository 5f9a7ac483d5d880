"""A sink in PostgreSQL: the events of runs in one table, for readers on any host and for SQL."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from sqlalchemy import Connection, text

from esper.errors import EsperError, SinkUnavailable
from esper.nissa.journal import Event
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.mirror import MOST_BYTES, MOST_EVENTS, MOST_RUNS, event_of

ALIVE_SECONDS: Final = 15
"""A run whose writer was not heard of for so long counts as stopped; by the server's clock."""

_BEAT_SECONDS = 5.0

# A schema of its own: the kernel library takes only a database whose tables it knows.
_TABLES = (
    "CREATE SCHEMA IF NOT EXISTS esper_telemetry",
    "CREATE TABLE IF NOT EXISTS esper_telemetry.runs ("
    "run_id text PRIMARY KEY, begun_at timestamptz NOT NULL DEFAULT now(), heard_at timestamptz)",
    "CREATE TABLE IF NOT EXISTS esper_telemetry.events ("
    "run_id text NOT NULL REFERENCES esper_telemetry.runs ON DELETE CASCADE, place bigint NOT NULL, "
    "name text NOT NULL, at timestamptz NOT NULL, fields json NOT NULL, PRIMARY KEY (run_id, place))",
)
_HEARD = text(
    "INSERT INTO esper_telemetry.runs (run_id, heard_at) VALUES (:run, now()) "
    "ON CONFLICT (run_id) DO UPDATE SET heard_at = now()"
)
_INSERT = text(
    "INSERT INTO esper_telemetry.events VALUES (:run, :place, :name, :at, CAST(:fields AS json)) "
    "ON CONFLICT DO NOTHING"
)
_NEWEST = text("SELECT coalesce(max(place), 0) FROM esper_telemetry.events WHERE run_id = :run")
_ENDED = text("UPDATE esper_telemetry.runs SET heard_at = NULL WHERE run_id = :run")
_RUNS = text(
    f"SELECT run_id, coalesce(heard_at > now() - interval '{ALIVE_SECONDS} seconds', false) "
    f"FROM esper_telemetry.runs ORDER BY begun_at DESC LIMIT {MOST_RUNS}"
)
_EVENTS = text(
    "SELECT place, name, at, CASE WHEN length(fields::text) <= :most THEN fields::text END "
    f"FROM esper_telemetry.events WHERE run_id = :run AND place > :after ORDER BY place LIMIT {MOST_EVENTS}"
)


class Database(Protocol):
    """A database whose transactions end in time."""

    def begin(self) -> AbstractContextManager[Connection]:
        """A transaction; raises an EsperError where the database fails."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class EventTable:
    """Each event of a run is a row by its place, so none is there twice; signals are left out."""

    name = "postgres"

    def __init__(self, database: Database, run_id: str) -> None:
        self._database = database
        self._run_id = run_id
        self._next_beat = 0.0

    def position(self) -> int:
        """Place of the newest event in the table, which is made if it is not there."""
        with self._transaction() as connection:
            make_tables(connection)
            connection.execute(_HEARD, {"run": self._run_id})
            place: int = connection.scalar(_NEWEST, {"run": self._run_id}) or 0
        return place

    def write(self, batch: Sequence[Message]) -> None:
        """Insert the events, in one transaction."""
        rows = [self._row(message) for message in batch if message.kind == "event"]
        if rows:
            with self._transaction() as connection:
                connection.execute(_INSERT, rows)
        self.idle()

    def idle(self) -> None:
        """Give a sign of life when it is time for one."""
        if time.monotonic() >= self._next_beat:
            with self._transaction() as connection:
                connection.execute(_HEARD, {"run": self._run_id})
            self._next_beat = time.monotonic() + _BEAT_SECONDS

    def close(self) -> None:
        """Say that the run is over, and close the connections."""
        try:
            with self._transaction() as connection:
                connection.execute(_ENDED, {"run": self._run_id})
        finally:
            self._database.close()

    def _row(self, message: Message) -> dict[str, Any]:
        at = datetime.fromtimestamp(message.at, UTC)
        fields = message.json
        return {"run": self._run_id, "place": message.place, "name": message.name, "at": at, "fields": fields}

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with _unavailable_if_it_fails(), self._database.begin() as connection:
            yield connection


class PostgresRuns:
    """The runs that tell such a table, for a mirror."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._made = False

    def runs(self) -> dict[str, bool]:
        """The ids of the runs that began last, and whether each goes on."""
        with _unavailable_if_it_fails(), self._database.begin() as connection:
            if not self._made:
                make_tables(connection)
                self._made = True
            found = connection.execute(_RUNS).all()
        return {run_id: alive for run_id, alive in found}  # noqa: C416  # rows are no tuples to type checkers

    def events(self, run_id: str, after: str) -> list[tuple[str, Event | None]]:
        """The next events after the place ``after``, each with its own; None for one that is too large."""
        wanted = {"run": run_id, "after": int(after or 0), "most": MOST_BYTES}
        with _unavailable_if_it_fails(), self._database.begin() as connection:
            rows = connection.execute(_EVENTS, wanted).all()
        return [(str(place), event_of(name, at.timestamp(), place, data)) for place, name, at, data in rows]

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


def make_tables(connection: Connection) -> None:
    """Make the tables, unless they are there."""
    if not connection.scalar(text("SELECT to_regclass('esper_telemetry.events')")):
        for statement in _TABLES:
            connection.execute(text(statement))


@contextmanager
def _unavailable_if_it_fails() -> Iterator[None]:
    try:
        yield
    except EsperError as error:
        raise SinkUnavailable(error.message, hint=error.hint) from None
