"""The library's database: open it, bring its tables up to date, and run transactions in it.

SQLite in write-ahead mode lets readers go on while one process writes; a second writer waits its turn. Every
failure leaves here as an ``EsperError``, so nothing above this module knows which driver is below.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from esper.errors import ConfigError, EsperError, LibraryError, StorageError

REVISION: Final = "0001"
"""The newest revision in ``migrations/versions``; kept here so that opening need not import alembic."""

VERSION_TABLE: Final = "esper_library_version"
"""Where the revision is kept. Its name is also the mark that a database is a kernel library."""

BUSY_SECONDS: Final = 30.0
"""How long a statement waits for another process's lock. Transactions here take milliseconds."""

_SQLITE_HEADER: Final = b"SQLite format 3\0"

_WRITE: Final = MappingProxyType({"esper_write": True})


class Database:
    """An open library database. Threads may share one; a forked child must open its own."""

    def __init__(self, engine: Engine, where: str) -> None:
        """For :func:`open_database`; ``where`` names the place in error messages."""
        self._engine = engine
        self.where = where

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one consistent state. Do not open another inside it."""
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction: all of it is stored when the block ends, none of it when the block raises."""
        with (
            self._translated(),
            self._engine.connect().execution_options(**_WRITE) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise as_esper_error(error.orig, self.where) from error
        except (OverflowError, UnicodeEncodeError) as error:  # a number or a text that no column can hold
            raise LibraryError(f"the kernel library {self.where} cannot look that up: {error}") from error


def open_database(url: str) -> Database:
    """The database at ``url``, made if it is not there, its tables brought up to date.

    ``sqlite:///PATH`` is a file: ``~`` is the home folder, missing folders are made, and no other character
    has a meaning. ``sqlite://`` lives in memory until it is closed.

    Raises:
        ConfigError: ``url`` is none of these.
        LibraryError: the file is unreadable, no database, another program's, or of a newer version. It has
            not been changed.
        StorageError: the folder or file cannot be made or written.
    """
    path = _path(url)
    if path is not None:
        _prepare(path)
    where = "memory" if path is None else str(path)
    engine = _sqlite_engine(path)
    database = Database(engine, where)
    try:
        with database._translated():
            _bring_up_to_date(engine, where)
            if path is not None:
                _write_ahead(engine)
    except BaseException:
        engine.dispose()
        raise
    return database


def _path(url: str) -> Path | None:
    """The file that ``url`` names, every character of it taken as it stands; ``None`` for memory."""
    scheme, separator, place = url.partition("://")
    if not separator:
        raise ConfigError(f"{url!r} is not a library's URL", hint="for example sqlite:///kernels.db")
    if scheme != "sqlite":
        hint = "give a SQLite file: sqlite:///kernels.db"
        raise ConfigError(f"the kernel library cannot be kept in {scheme!r}", hint=hint)
    if place in ("", "/", "/:memory:"):
        return None
    if not place.startswith("/"):
        hint = f"a file takes three slashes: sqlite:///{place}"
        raise ConfigError(f"{url!r} names a host, which SQLite has none of", hint=hint)
    return Path(place[1:]).expanduser()


def _prepare(path: Path) -> None:
    hint = "choose another file for the kernel library"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError.from_os(error, path.parent, "cannot make the kernel library's folder") from error
    try:
        if not path.exists():
            return
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "not a plain file"
            raise LibraryError(f"{path} is {kind}, not a kernel library", hint=hint)
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_HEADER))
    except OSError as error:
        reason = error.strerror or error
        raise LibraryError(f"cannot read the kernel library {path}: {reason}", hint=hint) from error
    # SQLite itself takes a file of a few bytes for an empty database and writes over it.
    if head not in (b"", _SQLITE_HEADER):
        raise LibraryError(f"{path} is not a kernel library: it is no SQLite database", hint=hint)


def _sqlite_engine(path: Path | None) -> Engine:
    # A database in memory is its one connection, which threads then take in turns.
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if path is None else {}
    engine = create_engine(
        URL.create("sqlite", database=None if path is None else str(path)),
        poolclass=QueuePool,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        **pool,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        # None stops the driver from starting transactions on its own, after the first read of ours.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: a reader that turns writer later can be refused without a wait.
        write = connection.get_execution_options().get("esper_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _bring_up_to_date(engine: Engine, where: str) -> None:
    with engine.connect() as connection:
        if _revision(connection, where) == REVISION:
            return
    with engine.connect().execution_options(**_WRITE) as connection, connection.begin():
        # Read again under the lock: another process may have made the tables, and nothing is left to do.
        revision = _revision(connection, where)
        from esper.urza.migrations import known_revisions, upgrade

        if revision is not None and revision not in known_revisions():
            raise LibraryError(
                f"the kernel library {where} was written by a newer version of Esper (schema {revision})",
                hint="upgrade Esper, or choose another library",
            )
        upgrade(connection)


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
            hint="choose another file for the kernel library",
        )
    return None


def _write_ahead(engine: Engine) -> None:
    """Switch to write-ahead mode. The change needs the file to itself and does not wait for it: we do."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise OperationalError("PRAGMA journal_mode", None, error) from error
            time.sleep(0.01)
        finally:
            connection.close()


def as_esper_error(error: BaseException | None, where: str) -> EsperError:
    """What ``error``, raised by the driver for the database at ``where``, means to the user."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF  # the upper bits only say more of the same
    if primary == sqlite3.SQLITE_FULL:
        return StorageError(f"no space left to store in {where}", hint="free some space and try again")
    if primary == sqlite3.SQLITE_IOERR:
        return StorageError(
            f"reading or writing {where} failed: {error}", hint="check the disk and its quota"
        )
    if primary == sqlite3.SQLITE_READONLY:
        return StorageError(f"{where} is read-only", hint="check its permissions, or choose another library")
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        kind = LibraryError if Path(where).exists() else StorageError
        return kind(f"cannot open {where}: {error}", hint="check the permissions of the file and its folder")
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        hint = "choose another file, or restore this one from a copy"
        return LibraryError(f"{where} is not a kernel library, or is damaged: {error}", hint=hint)
    if primary == sqlite3.SQLITE_BUSY:
        hint = "wait for the process that holds it to finish"
        return LibraryError(f"{where} was locked for {BUSY_SECONDS:.0f} s by another process", hint=hint)
    return LibraryError(f"the kernel library {where} failed: {error}")
