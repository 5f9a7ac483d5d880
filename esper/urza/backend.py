"""What a database must be for a library to live in it; SQLite and PostgreSQL are the two that are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from sqlalchemy import Connection, Engine

from esper.errors import EsperError

Access = Literal["snapshot", "statement", "write"]
"""How a connection is used: to read one consistent state, for one statement, or to write, one at a time."""


WRITE_BLOB: Final = (
    "INSERT INTO blobs (digest, data, key_id) SELECT ?, ?, '' FROM (SELECT {lock}) AS held WHERE true "
    "ON CONFLICT (digest) DO UPDATE SET data = excluded.data, key_id = '' WHERE blobs.data <> excluded.data"
)
"""Under ``lock``, the statement that takes the lock of a writer where the database does not by itself."""

_Connection = TypeVar("_Connection", bound="_Closable")


class _Closable(Protocol):
    def close(self) -> None: ...


class Idle(Generic[_Connection]):
    """Connections of a driver, each used by one thread at a time and kept for the next."""

    def __init__(self, make: Callable[[], _Connection]) -> None:
        self._make = make
        self._idle: deque[_Connection] = deque()  # whose ends are changed by one thread at a time

    def use(
        self, call: Callable[[_Connection], Any], unless: Callable[[_Connection], bool] | None = None
    ) -> Any:
        """What ``call`` returns, given a connection of which ``unless`` is not true.

        One that it raised with is not used again.
        """
        try:
            connection = self._idle.pop()
            while unless is not None and unless(connection):
                connection.close()
                connection = self._idle.pop()
        except IndexError:
            connection = self._make()
        try:
            result = call(connection)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return result

    def close(self) -> None:
        """Close those that are not in use."""
        while self._idle:
            self._idle.pop().close()


class Backend(Protocol):
    """A place for a library's tables. Threads may share one; a forked child must make its own."""

    where: str
    """The place in words for error messages, without any secret."""

    in_memory: bool
    """Whether it lives in this process alone."""

    errors: type[Exception]
    """What its driver raises."""

    engine: Engine
    """The pool of its connections."""

    def connect(self, kind: Access) -> Connection:
        """A connection that is to be used in that way."""
        ...

    def rows(self, statement: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows that ``statement`` reads, each ``?`` in it one of ``values``.

        By the driver itself, for what is read so often that SQLAlchemy's own time counts. May raise what the
        driver raises.
        """
        ...

    def put_blob(self, digest: str, data: bytes) -> None:
        """Store ``data`` under ``digest`` in a transaction of its own; may raise what its driver raises."""
        ...

    def migrating(self, connection: Connection) -> None:
        """Prepare the transaction of ``connection``, which is about to change the tables."""
        ...

    def opened(self) -> None:
        """What is left to do once the database is known to be a library."""
        ...

    def version(self) -> int | None:
        """A number that is another one after anybody committed a change, or None if that cannot be told."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...

    def as_esper_error(self, error: BaseException | None) -> EsperError:
        """What ``error``, raised by the driver, means to the user."""
        ...
