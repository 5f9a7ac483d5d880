"""The library's database: open it, bring its tables up to date, and run transactions in it.

Every failure leaves here as an ``EsperError``, so nothing above this module knows which driver is below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from esper.errors import ConfigError, LibraryError
from esper.urza.backend import Access, Backend

REVISION: Final = "0005"
"""The newest revision in ``migrations/versions``; kept here so that opening need not import alembic."""

VERSION_TABLE: Final = "esper_library_version"
"""Where the revision is kept. Its name is also the mark that a database is a kernel library."""

_T = TypeVar("_T")

BUSY_SECONDS: Final = 30.0
"""How long a statement waits for another process's lock. Transactions here take milliseconds."""


class Database:
    """An open library database. Threads may share one; a forked child must open its own."""

    def __init__(self, backend: Backend) -> None:
        """For :func:`open_database`."""
        self._backend = backend
        self.where = backend.where
        self.in_memory = backend.in_memory

    @contextmanager
    def reading(self, kind: Access = "snapshot") -> Iterator[Connection]:
        """A connection that sees one consistent state. Do not open another inside it.

        One of kind "statement" is for a single statement, and saves the round trips of a transaction.
        """
        with self._translated(), self._backend.connect(kind) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction: all of it is stored when the block ends, none of it when the block raises.

        There is one at a time in a database, whichever process it is in.
        """
        with self._translated(), self._backend.connect("write") as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._backend.close()

    def rows(self, statement: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows that one ``statement`` reads, each ``?`` in it one of ``values``; without SQLAlchemy."""
        return self._by_driver(lambda: self._backend.rows(statement, values))

    def put_blob(self, digest: str, data: bytes) -> None:
        """Store ``data`` under ``digest``, in place of any other, in a transaction of its own."""
        self._by_driver(lambda: self._backend.put_blob(digest, data))

    def version(self) -> int | None:
        """A number that is another one after anybody committed a change, or None if that cannot be told."""
        return self._backend.version()

    def _by_driver(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except self._backend.errors as error:
            raise self._backend.as_esper_error(error) from error
        except (DBAPIError, UnicodeEncodeError):  # in memory, or no digest: as anywhere else
            with self._translated():
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._backend.as_esper_error(error.orig) from error
        except (OverflowError, UnicodeEncodeError) as error:  # a number or a text that no column can hold
            raise LibraryError(f"the kernel library {self.where} cannot look that up: {error}") from error

    def _bring_up_to_date(self) -> None:
        with self.reading() as connection:
            if _revision(connection, self.where) == REVISION:
                return
        with self.writing() as connection:
            # Read again under the lock: another process may have made the tables, and nothing is left to do.
            revision = _revision(connection, self.where)
            from esper.urza.migrations import known_revisions, upgrade

            if revision is not None and revision not in known_revisions():
                raise LibraryError(
                    f"the kernel library {self.where} was written by a newer version of Esper "
                    f"(schema {revision})",
                    hint="upgrade Esper, or choose another library",
                )
            self._backend.migrating(connection)
            upgrade(connection)


def open_database(url: str, *, seconds: float | None = None) -> Database:
    """The database at ``url``, its tables brought up to date.

    ``sqlite:///PATH`` is a file, made if it is not there; ``sqlite://`` lives in memory until it is closed;
    ``postgresql://USER@HOST:PORT/DATABASE`` is a database that is there. ``seconds`` bound a wait for another
    process's lock, 30 on SQLite, 10 on PostgreSQL, where twice as many bound a statement.

    Raises:
        ConfigError: ``url`` is none of these.
        LibraryError: the place is unreadable, no database, another program's, or of a newer version. It has
            not been changed. Or the server cannot be reached.
        StorageError: the folder or file cannot be made or written.
    """
    database = Database(_backend(url, seconds))
    try:
        database._bring_up_to_date()
        with database._translated():
            database._backend.opened()
    except BaseException:
        database.close()
        raise
    return database


def _backend(url: str, seconds: float | None) -> Backend:
    scheme, separator, _ = url.partition("://")
    hint = "give sqlite:///kernels.db, or postgresql://USER@HOST/DATABASE"
    if not separator:
        raise ConfigError("that is not a library's URL", hint=hint)
    if scheme == "sqlite":
        from esper.urza.sqlite import SqliteBackend

        return SqliteBackend(url, BUSY_SECONDS if seconds is None else seconds)
    if scheme in ("postgresql", "postgres"):
        from esper.urza.postgres import PostgresBackend

        return PostgresBackend(url, 10.0 if seconds is None else seconds)
    raise ConfigError(f"the kernel library cannot be kept in {scheme!r}", hint=hint)


def _revision(connection: Connection, where: str) -> str | None:
    """The revision of a library, ``None`` for an empty database; raises for anything else."""
    tables = set(inspect(connection).get_table_names())
    if VERSION_TABLE in tables:
        revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
        if revision is not None:
            return revision
    others = sorted(tables - {VERSION_TABLE})
    if others:
        raise LibraryError(
            f"{where} is a database of something else (it has the tables {', '.join(others[:4])})",
            hint="choose another place for the kernel library",
        )
    return None
