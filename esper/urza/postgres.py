"""A library in PostgreSQL: its engine, time-outs of ours, and what the server's errors mean.

psycopg 3 is an extra, imported only when a library is on PostgreSQL.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Generator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DisconnectionError

from esper.errors import ConfigError, EsperError, LibraryError, StorageError
from esper.urza.backend import WRITE_BLOB, Access, Idle
from esper.urza.local import is_local

if TYPE_CHECKING:
    import psycopg

_LOCK: Final = 0x65737065725F6B6C  # "esper_kl": one number for every library, of which a database holds one

_LOCKED: Final = f"pg_advisory_xact_lock({_LOCK})"

_WRITE: Final = WRITE_BLOB.format(lock=_LOCKED).replace("?", "%s")

_MIGRATION_SECONDS: Final = 600.0

_KEPT_BYTES: Final = 2**20

_HINTS: Final = {
    "28P01": "check the password: in the URL, PGPASSWORD or a passfile",
    "28000": "check the user and the server's pg_hba.conf",
    "3D000": "make the database first, with: createdb NAME",
    "42501": "give the user the right to use and create tables there",
    "53300": "raise max_connections, or run fewer processes",
    "57P03": "wait until the server has started",
}


class PostgresBackend:
    """The database that a ``postgresql://`` URL names; ``where`` names it, without user and password."""

    def __init__(self, url: str, seconds: float, *, what: str = "kernel library") -> None:
        """A wait for a lock ends after ``seconds``, a statement after twice as long, silence a little later.
        Errors call the database ``what``.

        Raises ConfigError for a URL that is none, one that would send a password or kernels over a network
        without a verified certificate, and where psycopg is not installed.
        """
        driver = _driver()
        try:
            info: dict[str, Any] = dict(driver.conninfo.conninfo_to_dict(url))
        except driver.Error:  # its text repeats the URL, and with it the password
            hint = "postgresql://USER@HOST:PORT/DATABASE"
            raise ConfigError("the library's URL is not one that PostgreSQL takes", hint=hint) from None
        host = str(info.get("host") or info.get("hostaddr") or os.environ.get("PGHOST") or "")
        port = info.get("port") or os.environ.get("PGPORT") or 5432
        name = info.get("dbname") or os.environ.get("PGDATABASE") or info.get("user") or ""
        self.where = f"postgresql://{host or 'localhost'}:{port}/{name}"
        self.in_memory = False
        self._seconds = seconds
        self._what = what
        if not all(is_local(each) for each in host.split(",")):
            _demand_tls(info, self.where)
        limits = {"lock_timeout": seconds, "statement_timeout": 2 * seconds}
        limits["idle_in_transaction_session_timeout"] = 6 * seconds
        settings = [f"-c {name}={round(1000 * limit)}" for name, limit in limits.items()]
        info["options"] = " ".join([info.get("options") or "", *settings]).strip()
        info |= {
            "application_name": "esper",
            "connect_timeout": max(2, round(seconds)),  # libpq takes no less
            "tcp_user_timeout": round(2000 * seconds),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }
        # A plan made for any value does not know how few rows LIMIT asks for, and reads all of them.
        planned = info | {"options": f"{info['options']} -c plan_cache_mode=force_custom_plan"}
        patience = 2 * seconds + 1
        self.errors: type[Exception] = driver.Error
        self.engine = _engine(partial(_connect, driver, planned, patience))
        self._idle: Idle[Any]
        self._idle = Idle(partial(_connect, driver, info, patience, autocommit=True))
        self._engines = {
            "snapshot": self.engine.execution_options(isolation_level="REPEATABLE READ"),
            "statement": self.engine.execution_options(isolation_level="AUTOCOMMIT"),
            "write": self.engine.execution_options(esper="write"),
        }

    def connect(self, kind: Access) -> Connection:
        """A connection that is to be used in that way."""
        return self._engines[kind].connect()

    def rows(self, statement: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows that ``statement`` reads."""
        statement = statement.replace("?", "%s")
        found: list[tuple[Any, ...]]
        found = self._idle.use(lambda connection: connection.rows(statement, values), unless=_is_gone)
        return found

    def put_blob(self, digest: str, data: bytes) -> None:
        """Store ``data`` under ``digest`` in a transaction of its own, in one exchange."""
        self._idle.use(lambda connection: connection.execute(_WRITE, (digest, data)), unless=_is_gone)

    def migrating(self, connection: Connection) -> None:
        """Wait for other processes that migrate, and give the statements of a migration time."""
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.answer_seconds = _MIGRATION_SECONDS
        connection.execute(text(f"SET LOCAL statement_timeout = {round(1000 * _MIGRATION_SECONDS)}"))
        connection.execute(text(f"SET LOCAL lock_timeout = {round(1000 * _MIGRATION_SECONDS)}"))

    def opened(self) -> None:
        """Drop the connection that had a migration's patience."""
        self.engine.dispose()

    def version(self) -> int | None:
        """None: the server counts commits of all its databases, not of this one."""
        return None

    def close(self) -> None:
        """Close every connection."""
        self._idle.close()
        self.engine.dispose()

    def as_esper_error(self, error: BaseException | None) -> EsperError:
        """What ``error``, raised by the driver, means to the user; by the SQLSTATE where there is one."""
        where = f"the {self._what} {self.where}"
        state = getattr(error, "sqlstate", None) or _state_of_a_connection(str(error))
        reason = _first_line(error)
        if state == "53100":
            return StorageError(f"no space left to store in {where}", hint="free some space on its server")
        if state == "25006":
            hint = "name the primary server, not a standby"
            return StorageError(f"{where} is read-only", hint=hint)
        if state.startswith("58"):
            hint = "check the server's disk and its log"
            return StorageError(f"reading or writing {where} failed: {reason}", hint=hint)
        if state == "55P03":
            hint = "wait for the process that holds it to finish"
            return LibraryError(f"{where} was locked for {self._seconds:.0f} s by another process", hint=hint)
        if state in ("57014", "esper"):
            hint = "check that its server is not overloaded or stopped"
            return LibraryError(f"{where} did not answer in {2 * self._seconds:.0f} s", hint=hint)
        if state in _HINTS:
            return LibraryError(f"{where} cannot be used: {reason}", hint=_HINTS[state])
        if state[:2] in ("08", "57") or state == "25P03":
            hint = "check that the server runs and can be reached, then try again"
            return LibraryError(f"{where} cannot be reached: {reason}", hint=hint)
        return LibraryError(f"{where} failed: {reason}")


def _driver() -> Any:
    try:
        import psycopg
    except ImportError as error:
        hint = "install it with: pip install 'esper-morph[postgres]'"
        raise ConfigError("a kernel library on PostgreSQL needs psycopg", hint=hint) from error
    return psycopg


def _demand_tls(info: dict[str, Any], where: str) -> None:
    """Between machines only over TLS with a certificate that is verified, and for that very host."""
    mode = info.setdefault("sslmode", "verify-full")
    if mode != "verify-full":
        hint = "leave sslmode out; name the authority's certificate with sslrootcert=FILE"
        raise ConfigError(f"{where} is on another machine, and sslmode={mode} trusts anyone", hint=hint)
    own = Path("~/.postgresql/root.crt").expanduser()
    if not info.get("sslrootcert") and "PGSSLROOTCERT" not in os.environ and not own.exists():
        info["sslrootcert"] = "system"


def _connect(
    driver: Any, info: dict[str, Any], answer_seconds: float, *, autocommit: bool = False
) -> psycopg.Connection[Any]:
    connection: Any = _connection_class(driver).connect(**info, autocommit=autocommit)
    connection.answer_seconds = answer_seconds
    return cast("psycopg.Connection[Any]", connection)


def _is_gone(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has closed it: its socket then is readable, which is seen without asking it."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _engine(connect: Callable[[], psycopg.Connection[Any]]) -> Engine:
    engine = create_engine("postgresql+psycopg://", creator=connect, pool_use_lifo=True)

    @event.listens_for(engine, "checkout")
    def checked(connection: psycopg.Connection[Any], *_: Any) -> None:
        if _is_gone(connection):
            raise DisconnectionError

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("esper") == "write":
            # One writer at a time, as SQLite has it: what is argued for the one holds for the other.
            connection.exec_driver_sql(f"SELECT {_LOCKED}")

    return engine


@cache
def _connection_class(driver: Any) -> Any:
    """A connection that waits for an answer for ``answer_seconds``, then gives the server up.

    statement_timeout is the server's own, and TCP still acknowledges for a server that is stopped.
    """

    class TimedConnection(driver.Connection):  # type: ignore[misc]
        answer_seconds = 30.0
        _reader: Any = None

        def rows(self, statement: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
            # Binary, for bytes would come as hexadecimals. The cursor is kept: to make one is a third of the
            # time. Not one that has read much, which it holds until it reads again.
            cursor = self._reader or self.cursor(binary=True)
            found: list[tuple[Any, ...]] = cursor.execute(statement, values).fetchall()
            many = sum(len(row[-1]) for row in found if isinstance(row[-1], bytes)) > _KEPT_BYTES
            self._reader = None if many else cursor
            return found

        def wait(self, gen: Any, interval: float = 0.1) -> Any:
            try:
                return super().wait(_within(gen, self.answer_seconds), interval)
            except _NoAnswer as error:
                self.close()
                raise driver.OperationalError(str(error)) from None

    return TimedConnection


class _NoAnswer(Exception):
    pass


def _within(steps: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
    """The same generator of psycopg, given up when the server is silent after ``seconds``."""
    deadline = time.monotonic() + seconds
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted  # 0 at each interval in which nothing came
            if not ready and time.monotonic() > deadline:
                raise _NoAnswer(f"no answer in {seconds:.0f} s")
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value


def _state_of_a_connection(message: str) -> str:
    """The SQLSTATE that psycopg does not give for what goes wrong while it connects."""
    marks = {
        "no answer in": "esper",
        "password authentication failed": "28P01",
        "no password supplied": "28P01",
        "pg_hba.conf": "28000",
        "does not exist": "3D000",
        "too many clients": "53300",
        "starting up": "57P03",
    }
    return next((state for mark, state in marks.items() if mark in message), "08006")


def _first_line(error: BaseException | None) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.removeprefix("connection failed: ")
