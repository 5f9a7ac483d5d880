"""The middle tier: bytes in Redis or Valkey, shared by processes and machines, and never waited for long."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import Connection, UnixDomainSocketConnection, parse_url
from redis.exceptions import RedisError, TimeoutError
from redis.retry import Retry

from esper.errors import ConfigError, TierUnavailable
from esper.urza.tiers import MISSING, Missing

CALL_SECONDS: Final = 0.05
"""How long one call may take, connecting included, unless told otherwise."""

TTL_SECONDS: Final = 86_400.0
"""How long Redis holds an entry, give or take a tenth, so that what was put together does not go together."""

MAX_VALUE_BYTES: Final = 4 * 2**20
"""Larger values are not put into Redis: they would hold up everybody on the same server."""

_QUERY: Final = {"db", "ssl_ca_certs"}
_HINT: Final = "for example redis://host:6379/0, rediss://host:6379/0 or unix:///path/redis.sock"


class RedisTier:
    """Entries of one Redis server under a prefix. Threads may share it, and forked children too.

    Every method raises ``TierUnavailable``, and nothing else, when the server does not do as asked within
    ``seconds``; after that its connection is dropped, so no late reply is ever taken for another's.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "esper:",
        seconds: float = CALL_SECONDS,
        ttl: float = TTL_SECONDS,
        max_value_bytes: int = MAX_VALUE_BYTES,
        name: str = "redis",
    ) -> None:
        """``url``: ``redis://[:password@]host:port/db``, ``rediss://`` for TLS or ``unix:///path``, a socket.

        Over TLS the certificate and its host name are always verified, with the system's authorities or
        ``?ssl_ca_certs=FILE``. ``prefix`` keeps libraries that share a server apart. Connects to nothing yet.

        Raises:
            ConfigError: ``url`` is none of these.
        """
        self._redis, self.where, self._secret = _client(url, seconds)
        self._ask: Callable[..., Any] = self._redis.execute_command
        self._prefix = prefix
        self._seconds = seconds
        self._ttl = ttl
        self._max_value_bytes = max_value_bytes
        self._name = name

    @property
    def name(self) -> str:
        """The name that its hits and misses are counted under."""
        return self._name

    def __repr__(self) -> str:
        return f"RedisTier({self.where!r})"

    def get(self, key: str) -> bytes | Missing:
        """The value under ``key``, or ``MISSING``."""
        with self._bounded():
            value = self._ask("GET", self._prefix + key)
        return MISSING if value is None else self._checked(value)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of ``keys`` that are held, by one command."""
        if not keys:
            return {}
        with self._bounded():
            values = self._ask("MGET", *[self._prefix + key for key in keys])
        if not isinstance(values, list) or len(values) != len(keys):
            raise self._unavailable("a reply of the wrong shape")
        return {
            key: self._checked(value) for key, value in zip(keys, values, strict=True) if value is not None
        }

    def put(self, key: str, value: bytes) -> None:
        """Hold ``value`` under ``key`` for about ``ttl``, unless it is too large: then hold nothing."""
        self.put_many({key: value})

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """As :meth:`put` for each, in one exchange."""
        if not items:
            return
        with self._bounded(), self._redis.pipeline(transaction=False) as pipeline:
            for key, value in items.items():
                if len(value) > self._max_value_bytes:
                    pipeline.delete(self._prefix + key)
                else:
                    milliseconds = max(1, int(1000 * self._ttl * random.uniform(0.9, 1.1)))
                    pipeline.set(self._prefix + key, value, px=milliseconds)
            replies = pipeline.execute()
        if len(replies) != len(items) or any(type(reply) not in (bool, int) for reply in replies):
            raise self._unavailable("a reply of the wrong shape")

    def delete(self, key: str) -> None:
        """Hold nothing under ``key``."""
        with self._bounded():
            self._ask("DEL", self._prefix + key)

    def ping(self) -> None:
        """Ask the server for a sign of life; raises as every method does."""
        with self._bounded():
            self._ask("PING")

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        _call.deadline = time.monotonic() + self._seconds
        try:
            yield
        # A reply that means nothing can also surface as an error of decoding or of types.
        except (RedisError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            # From None: a server may repeat what it was sent, the password too, and the cause would show it.
            raise self._unavailable(f"{type(error).__name__}: {error}") from None

    def _checked(self, value: object) -> bytes:
        if type(value) is not bytes:
            raise self._unavailable("a reply of the wrong type")
        return value

    def _unavailable(self, reason: str) -> TierUnavailable:
        reason = " ".join(reason.split())[:200]
        for secret in self._secret:
            reason = reason.replace(secret, "***")
        return TierUnavailable(
            f"the Redis cache {self.where} did not answer as it should: {reason}",
            hint="check that the server runs and that the URL and password are right",
        )


class _Call(threading.local):
    """When the call of this thread must have ended."""

    deadline = 0.0

    def left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("out of time")
        return left


_call = _Call()


class _BoundedSocket:
    """A socket whose every wait ends with the call: a time-out for each read lets many small ones add up."""

    __slots__ = ("connected",)

    def __init__(self, connected: socket.socket) -> None:
        self.connected = connected

    def recv_into(self, buffer: bytearray) -> int:
        self.connected.settimeout(_call.left())
        return self.connected.recv_into(buffer)

    def sendall(self, data: bytes) -> None:
        self.connected.settimeout(_call.left())
        self.connected.sendall(data)

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


def _client(url: str, seconds: float) -> tuple[Redis, str, tuple[str, ...]]:
    """A client that tries once and waits ``seconds``, its place to name in errors, and what to keep out."""
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        unknown = set(parse_qs(parts.query)) - _QUERY
    except ValueError:
        raise ConfigError("the URL of the Redis cache cannot be read", hint=_HINT) from None
    if unknown:
        raise ConfigError(
            f"the URL of the Redis cache sets {', '.join(sorted(unknown))}, which it cannot",
            hint="it may set db and ssl_ca_certs",
        )
    kinds: dict[str, type[Any]] = {"redis": _Bounded, "rediss": _BoundedTls, "unix": _BoundedUnix}
    options["connection_class"] = kinds[parts.scheme]
    authorities = options.pop("ssl_ca_certs", None)
    if parts.scheme == "rediss":
        options["context"] = _context(authorities)
    pool = ConnectionPool(
        protocol=2,  # no greeting to wait for, and any data between two calls shows a connection gone wrong
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,  # a broken connection is seen without a PING, by polling it
        **options,
    )
    where = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    password = parts.password or ""
    secrets = tuple(sorted({password, unquote(password)} - {""}, key=len, reverse=True))
    return Redis(connection_pool=pool), where, secrets


def _context(authorities: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise ConfigError(
            f"cannot read the authorities of the Redis cache, {authorities}: {error.strerror or error}",
            hint="ssl_ca_certs names a file of certificates in PEM",
        ) from error
