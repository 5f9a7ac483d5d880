"""A bound port, and the connections that were accepted from it."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import weakref
from typing import Any, Final

from esper.errors import ConfigError, ServerError
from esper.nissa.http.limits import ConnectionLimit, is_loopback_address

DEFAULT_HOST = "127.0.0.1"
STALLED_SECONDS = 10
BACKLOG: Final = 512


class Listener(socket.socket):
    """A listening socket that knows its connections, and accepts no more of them than ``limit`` admits."""

    def __init__(self, family: int, limit: ConnectionLimit) -> None:
        # With the protocol named, asyncio sets TCP_NODELAY; without it each answer takes 40 ms more.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._limit = limit
        self._accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.address = ("", 0)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that may be; the others are reset at once."""
        while True:
            accepted, address = super().accept()
            key = self._limit.admit(address[0])
            if key is not None:
                connection = _Connection(accepted, self._limit, key)
                self._accepted.add(connection)
                return connection, address
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

    @property
    def has_connections(self) -> bool:
        """Whether one is open."""
        return any(connection.fileno() >= 0 for connection in self._accepted)

    def drop_connections(self) -> None:
        """End every connection, whatever it is about."""
        for connection in list(self._accepted):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Connection(socket.socket):
    """An accepted connection that is counted until it is closed."""

    def __init__(self, accepted: socket.socket, limit: ConnectionLimit, key: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._release = weakref.finalize(self, limit.release, key)

    def close(self) -> None:
        self._release()
        super().close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``. Raises ServerError for a name without an address."""
    return all(is_loopback_address(str(address[0])) for _, address in _addresses(host, 0))


def bind(host: str, port: int, limit: ConnectionLimit) -> Listener:
    """Listen; port 0 takes a free one. Raises ServerError, or ConfigError for a port that is none."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} is none", hint="choose one from 1024 to 65535, or 0 for any free one")
    family, address = _addresses(host, port)[0]
    listener = Listener(family, limit)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)
        listener.bind(address)
        listener.listen(BACKLOG)  # only now is the port ours: two sockets can be bound to it, one can listen
        listener.setblocking(False)
        listener.address = listener.getsockname()[:2]
    except OSError as error:
        listener.close()
        raise _bind_error(error, host, port) from error
    return listener


def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"cannot find the address of host {host!r}", hint=f"try --host {DEFAULT_HOST}"
        ) from error
    return [(family, address) for family, _, _, _, address in found]


def _bind_error(error: OSError, host: str, port: int) -> ServerError:
    if error.errno == errno.EADDRINUSE:
        return ServerError(
            f"port {port} on {host} is in use",
            hint=f"see by whom: ss -ltnp 'sport = :{port}'; or choose another: --port {port + 1}",
        )
    hints = {
        errno.EACCES: "ports below 1024 need rights; choose a higher one with --port",
        errno.EADDRNOTAVAIL: f"this machine has no such address; try --host {DEFAULT_HOST}",
    }
    reason = error.strerror or str(error)
    return ServerError(f"cannot listen on {host} port {port}: {reason}", hint=hints.get(error.errno or 0))
