"""A library in a SQLite file, or in memory: its engine, and what its driver's errors mean.

Write-ahead mode lets readers go on while one process writes; a second writer waits its turn.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from esper.errors import ConfigError, EsperError, LibraryError, StorageError
from esper.urza.backend import WRITE_BLOB, Access, Idle

_WRITE: Final = WRITE_BLOB.format(lock=1)
_NO_TRACES: Final = "PRAGMA secure_delete = ON"  # what is sealed in place leaves no plain bytes
_HEADER: Final = b"SQLite format 3\0"


class SqliteBackend:
    """The file that a ``sqlite:///PATH`` names, or memory; ``where`` names it in error messages."""

    errors: type[Exception] = sqlite3.Error

    def __init__(self, url: str, seconds: float) -> None:
        """``~`` in the path is the home folder, missing folders are made, no other character has a meaning.

        A statement waits ``seconds`` for another process's lock. Raises ConfigError, and LibraryError or
        StorageError for a file that is no SQLite database or cannot be made; it has not been changed.
        """
        path = path_of(url)
        if path is not None:
            _prepare(path)
        self._path = path
        self._seconds = seconds
        self.where = "memory" if path is None else str(path)
        self.in_memory = path is None
        self.engine = _engine(path, seconds)
        self._idle = Idle(self._bare)
        self._watching: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    def connect(self, kind: Access) -> Connection:
        """A connection that is to be used in that way."""
        return self.engine.connect().execution_options(esper=kind)

    def rows(self, statement: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows that ``statement`` reads."""
        values = tuple(values)
        if self._path is None:  # the one connection that there is belongs to the engine
            with self.connect("statement") as connection:
                return [tuple(row) for row in connection.exec_driver_sql(statement, values)]
        found: list[tuple[Any, ...]]
        # All rows, for a statement that is not at its end would hold on to a state of the database.
        found = self._idle.use(lambda connection: connection.execute(statement, values).fetchall())
        return found

    def put_blob(self, digest: str, data: bytes) -> None:
        """Store ``data`` under ``digest`` in a transaction of its own."""
        if self._path is None:
            with self.connect("write") as connection, connection.begin():
                connection.exec_driver_sql(_WRITE, (digest, data))
            return
        self._idle.use(lambda connection: connection.execute(_WRITE, (digest, data)))

    def _bare(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            str(self._path), timeout=self._seconds, isolation_level=None, check_same_thread=False
        )
        connection.execute(_NO_TRACES)
        return connection

    def migrating(self, connection: Connection) -> None:
        """Nothing: the transaction has begun by taking the only lock that there is."""

    def opened(self) -> None:
        """Switch to write-ahead mode. The change needs the file to itself and does not wait for it: we do."""
        if self._path is None:
            return
        deadline = time.monotonic() + self._seconds
        while True:
            connection = self.engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise OperationalError("PRAGMA journal_mode", None, error) from error
                time.sleep(0.01)
            finally:
                connection.close()

    def version(self) -> int | None:
        """What SQLite counts of the commits of others, seen by a connection that never writes.

        In memory there are no others, and this process tells itself.
        """
        if self._path is None:
            return 0
        try:
            with self._lock:
                if self._watching is None:
                    path = f"{self._path.absolute().as_uri()}?mode=ro"
                    self._watching = sqlite3.connect(path, self._seconds, uri=True, check_same_thread=False)
                found: int = self._watching.execute("PRAGMA data_version").fetchone()[0]
                return found
        except sqlite3.Error as error:
            raise self.as_esper_error(error) from error

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            if self._watching is not None:
                self._watching.close()
                self._watching = None
        self._idle.close()
        self.engine.dispose()

    def as_esper_error(self, error: BaseException | None) -> EsperError:
        """What ``error``, raised by the driver, means to the user."""
        where = self.where
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF  # the upper bits only say more of the same
        if primary == sqlite3.SQLITE_FULL:
            return StorageError(f"no space left to store in {where}", hint="free some space and try again")
        if primary == sqlite3.SQLITE_IOERR:
            hint = "check the disk and its quota"
            return StorageError(f"reading or writing {where} failed: {error}", hint=hint)
        if primary == sqlite3.SQLITE_READONLY:
            hint = "check its permissions, or choose another library"
            return StorageError(f"{where} is read-only", hint=hint)
        if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            kind = LibraryError if Path(where).exists() else StorageError
            hint = "check the permissions of the file and its folder"
            return kind(f"cannot open {where}: {error}", hint=hint)
        if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            hint = "choose another file, or restore this one from a copy"
            return LibraryError(f"{where} is not a kernel library, or is damaged: {error}", hint=hint)
        if primary == sqlite3.SQLITE_BUSY:
            hint = "wait for the process that holds it to finish"
            return LibraryError(f"{where} was locked for {self._seconds:.0f} s by another process", hint=hint)
        return LibraryError(f"the kernel library {where} failed: {error}")


def path_of(url: str) -> Path | None:
    """The file that ``url`` names, every character of it taken as it stands; ``None`` for memory."""
    place = url.partition("://")[2]
    if place in ("", "/", "/:memory:"):
        return None
    if not place.startswith("/"):
        hint = f"a file takes three slashes: sqlite:///{place}"
        raise ConfigError(f"{url!r} names a host, which SQLite has none of", hint=hint)
    return Path(place[1:]).expanduser()


def _prepare(path: Path) -> None:
    """Make the folder, and refuse what is there and is no SQLite database, before SQLite can touch it."""
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
            head = file.read(len(_HEADER))
    except OSError as error:
        reason = error.strerror or error
        raise LibraryError(f"cannot read the kernel library {path}: {reason}", hint=hint) from error
    # SQLite itself takes a file of a few bytes for an empty database and writes over it.
    if head not in (b"", _HEADER):
        raise LibraryError(f"{path} is not a kernel library: it is no SQLite database", hint=hint)


def _engine(path: Path | None, seconds: float) -> Engine:
    # A database in memory is its one connection, which threads then take in turns.
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if path is None else {}
    engine = create_engine(
        URL.create("sqlite", database=None if path is None else str(path)),
        poolclass=QueuePool,
        connect_args={"timeout": seconds, "check_same_thread": False},
        **pool,
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        # None stops the driver from starting transactions on its own, after the first read of ours.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(_NO_TRACES)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes the lock at once: a reader that turns writer later can be refused without a wait.
        kind = connection.get_execution_options().get("esper", "statement")
        if kind != "statement":
            connection.exec_driver_sql("BEGIN IMMEDIATE" if kind == "write" else "BEGIN")

    return engine
