"""A client of Redis or Valkey whose calls end in time, whatever the server does.

The driver's time-outs are for each read, and many small ones add up; its own retries and the making of a TLS
context come on top. Here a call has one deadline, which every wait on its socket is cut to.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.connection import Connection, UnixDomainSocketConnection, parse_url
from redis.exceptions import ConnectionError, InvalidResponse, RedisError, ResponseError, TimeoutError
from redis.retry import Retry

from esper.errors import ConfigError, TierUnavailable
from esper.urza.local import is_local

CALL_SECONDS: Final = 0.05
"""How long one call may take, connecting included, unless told otherwise."""

READ_BYTES: Final = 2**18
"""How much is read at a time: a kernel at once, most often."""

_pack: Final[Callable[..., bytes]] = hiredis.pack_command  # to its stubs a command has one word

_QUERY: Final = {"db", "ssl_ca_certs"}
_HINT: Final = "for example redis://host:6379/0, rediss://host:6379/0 or unix:///path/redis.sock"


class BoundedRedis:
    """Connections to one server, which threads share; a forked child makes its own by itself."""

    def __init__(self, url: str, seconds: float = CALL_SECONDS, *, what: str = "Redis cache") -> None:
        """``url``: ``redis://[:password@]host:port/db``, ``rediss://`` for TLS or ``unix:///path``, a socket.
        Errors call the server ``what``.

        Over TLS the certificate and its host name are always verified, with the system's authorities or
        ``?ssl_ca_certs=FILE``. Connects to nothing yet. Looking up a name is the system's business and may
        take longer than ``seconds``; an address does not.

        Raises:
            ConfigError: ``url`` is none of these, or names another machine without TLS.
        """
        try:
            parts = urlsplit(url)
            options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
            unknown = set(parse_qs(parts.query)) - _QUERY
            port = parts.port or 6379
        except ValueError:
            raise ConfigError(f"the URL of the {what} cannot be read", hint=_HINT) from None
        if unknown:
            raise ConfigError(
                f"the URL of the {what} sets {', '.join(sorted(unknown))}, which it cannot",
                hint="it may set db and ssl_ca_certs",
            )
        if parts.scheme == "redis" and not is_local(parts.hostname or ""):
            raise ConfigError(
                f"the {what} {parts.hostname}:{port} is on another machine, and redis:// hides nothing",
                hint="use rediss://, which verifies its certificate",
            )
        kinds: dict[str, type[Any]] = {"redis": _Bounded, "rediss": _BoundedTls, "unix": _BoundedUnix}
        options["connection_class"] = kinds[parts.scheme]
        authorities = options.pop("ssl_ca_certs", None)
        if parts.scheme == "rediss":
            options["context"] = _context(authorities, what)
        self._pool = ConnectionPool(
            protocol=2,  # no greeting to wait for, and data between two calls shows a connection gone wrong
            socket_timeout=seconds,
            socket_read_size=READ_BYTES,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,  # a broken connection is seen without a PING, by polling it
            **options,
        )
        self._idle: deque[Any] = deque()  # whose ends are changed by one thread at a time
        self._owner = os.getpid()
        self.where = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{port}"
        self._seconds = seconds
        self._what = what
        self._translating = _Translating(self)
        password = parts.password or ""
        self._secrets = sorted({password, unquote(password)} - {""}, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"BoundedRedis({self.where!r})"

    def call(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """What is asked inside ends after ``seconds`` in all; raises ``TierUnavailable``, nothing else."""
        _call.deadline = time.monotonic() + (self._seconds if seconds is None else seconds)
        return self._translating

    def ask(self, *command: str | bytes | int) -> Any:
        """The server's reply to ``command``, as it came; to be used inside :meth:`call`."""
        return self._exchange([_pack(command)], 1)[0]

    def ask_all(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """The replies to ``commands``, sent together; raises the first of them that is an error."""
        packed = [_pack(tuple(command)) for command in commands]
        if sum(map(len, packed)) < READ_BYTES:
            packed = [b"".join(packed)]
        return self._exchange(packed, len(commands))

    def send(self, commands: bytes, replies: int) -> None:
        """Send packed ``commands`` and wait for as many ``replies``; to be used inside :meth:`call`.

        Raises the first reply that is an error.
        """
        self._exchange([commands], replies)

    def _exchange(self, packed: Sequence[bytes], replies: int) -> list[Any]:
        connection = self._connection()
        try:
            received: list[Any] = connection._sock.exchange(packed, replies)
        except BaseException:
            connection.disconnect()  # so that no reply is left in it for another to take for its own
            raise
        self._idle.append(connection)
        return received

    def _connection(self) -> Any:
        """One that nobody uses: the pool's own way to it takes as long as a third of a call."""
        if self._owner != os.getpid():  # a forked child, whose parent uses those
            self._idle, self._owner = deque(), os.getpid()
        try:
            while (connection := self._idle.pop())._sock.has_gone_wrong():
                connection.disconnect()
        except IndexError:
            # The pool itself would count those that could not connect, and make no more at some number.
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
            connection.connect()
        return connection

    def subscription(self) -> PubSub:
        """A subscription on a connection of its own, which whoever asks for it closes."""
        subscription: PubSub = Redis(connection_pool=self._pool).pubsub()  # type: ignore[no-untyped-call]
        return subscription

    def unavailable(self, reason: str) -> TierUnavailable:
        """The error for ``reason``, without the password."""
        reason = self.without_password(" ".join(reason.split()))
        return TierUnavailable(
            f"the {self._what} {self.where} did not answer as it should: {reason[:200]}",
            hint="check that the server runs and that the URL and password are right",
        )

    def without_password(self, text: str) -> str:
        """``text``, which a server or a driver may have put the password into."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().disconnect()
        self._pool.close()


class _Translating(AbstractContextManager[None]):
    """Raises what goes wrong inside as the server's ``TierUnavailable``; a generator would take longer."""

    def __init__(self, server: BoundedRedis) -> None:
        self._server = server

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A reply that means nothing can also surface as an error of decoding or of types.
        if isinstance(error, (RedisError, OSError, ValueError, TypeError, LookupError, AttributeError)):
            # From None: a server may repeat what it was sent, the password too, and the cause would show it.
            raise self._server.unavailable(f"{type(error).__name__}: {error}") from None


class _Call(threading.local):
    """When the call of this thread must have ended, and where it reads to."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.buffer = bytearray(READ_BYTES)

    def left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("out of time")
        return left


_call = _Call()


class _BoundedSocket:
    """A socket whose every wait ends with the call, or little later.

    Setting a time-out is a call of the system. It is left out while the one that is set is about right: a
    call that goes well then costs none, and one that does not takes at most a fifth longer.
    """

    __slots__ = ("_poll", "_timeout", "connected")

    def __init__(self, connected: socket.socket) -> None:
        self.connected = connected
        self._timeout = 0.0
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)

    def has_gone_wrong(self) -> bool:
        """Whether there is something to read before anything was asked: a farewell, or a late reply."""
        return bool(self._poll.poll(0))

    def exchange(self, packed: Iterable[bytes], replies: int) -> list[Any]:
        """Send ``packed`` commands and read as many ``replies``; raises the first that is an error."""
        for commands in packed:
            self.sendall(commands)
        reader = hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError)
        received: list[Any] = []
        while len(received) < replies:
            count = self.recv_into(_call.buffer)
            if not count:
                raise ConnectionError("the server closed the connection")
            reader.feed(_call.buffer, 0, count)  # type: ignore[arg-type]  # its stubs know no buffers
            while (reply := reader.gets()) is not False:
                received.append(reply)
        if reader.has_data() or len(received) > replies:
            raise ConnectionError("the server replied to what it was not asked")
        for reply in received:
            if isinstance(reply, ResponseError):
                raise reply
        return received

    def recv_into(self, buffer: bytearray) -> int:
        self._cut()
        return self.connected.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        self._cut()
        self.connected.sendall(data)

    def _cut(self) -> None:
        left = _call.left()
        if not 0.9 * left <= self._timeout <= 1.2 * left:
            self.connected.settimeout(left)
            self._timeout = left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connected, name)


class _Bounded(Connection):
    def _connect(self) -> Any:
        # A name with two addresses, both silent, takes the time-out twice.
        self.socket_connect_timeout = _call.left() / 2
        return _BoundedSocket(super()._connect())  # type: ignore[no-untyped-call]


class _BoundedTls(_Bounded):
    """With one context for all connections: the driver makes one for each, which takes half a call's time."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._context = context

    def _connect(self) -> Any:
        plain = super()._connect()
        try:
            plain.settimeout(_call.left())
            return _BoundedSocket(self._context.wrap_socket(plain.connected, server_hostname=self.host))
        except BaseException:
            plain.close()
            raise


class _BoundedUnix(UnixDomainSocketConnection):
    def _connect(self) -> Any:
        self.socket_connect_timeout = _call.left()
        return _BoundedSocket(super()._connect())  # type: ignore[no-untyped-call]


def _context(authorities: str | None, what: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise ConfigError(
            f"cannot read the authorities of the {what}, {authorities}: {error.strerror or error}",
            hint="ssl_ca_certs names a file of certificates in PEM",
        ) from error
