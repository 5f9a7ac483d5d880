"""What a database must be for a library to live in it; SQLite and PostgreSQL are the two that are."""

from __future__ import annotations

from typing import Literal, Protocol

from sqlalchemy import Connection, Engine

from esper.errors import EsperError

Access = Literal["snapshot", "statement", "write"]
"""How a connection is used: to read one consistent state, for one statement, or to write, one at a time."""


class Backend(Protocol):
    """A place for a library's tables. Threads may share one; a forked child must make its own."""

    where: str
    """The place in words for error messages, without any secret."""

    in_memory: bool
    """Whether it lives in this process alone."""

    engine: Engine
    """The pool of its connections."""

    def connect(self, kind: Access) -> Connection:
        """A connection that is to be used in that way."""
        ...

    def migrating(self, connection: Connection) -> None:
        """Prepare the transaction of ``connection``, which is about to change the tables."""
        ...

    def opened(self) -> None:
        """What is left to do once the database is known to be a library."""
        ...

    def as_esper_error(self, error: BaseException | None) -> EsperError:
        """What ``error``, raised by the driver, means to the user."""
        ...
