"""Serves the HTTP API until it is told to stop.

Connections that are no use are dropped: no whole request head within ``HEAD_SECONDS``, an idle connection
after the same time, a client that does not take its answer for ``STALLED_SECONDS`` (on Linux).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast

from hypercorn.asyncio.run import worker_serve
from hypercorn.config import Config, Sockets
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esper.errors import ConfigError, ServerError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 9464
"""The port that OpenTelemetry's Prometheus exporters use."""

HEAD_SECONDS = 3
STALLED_SECONDS = 10
GRACE_SECONDS = 0.8
"""How long requests under way may go on once the server is told to stop."""

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 1024 * 1024

log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def access_notice(host: str) -> str:
    """What to tell the user who listens on ``host``: there is no authentication yet."""
    if is_loopback(host):
        return "no authentication yet: every user of this machine can read these pages"
    return (
        f"WARNING: listening on {host} with no authentication: everyone who can reach this machine can read "
        f"your runs. Use --host {DEFAULT_HOST}, or a proxy that asks who is there."
    )


class MetricsServer:
    """One server on one address, for an application that reads no request bodies.

    Binding happens here, so that a port in use is known before anything else starts; port 0 takes a free one.
    ``on_stop`` is called in the event loop once it is told to stop, and ends answers that have no end of
    their own. Raises ServerError when the address cannot be had, ConfigError for a port that is none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = app
        self._on_stop = on_stop
        self._listener = _bind(host, port)
        self._stop: Callable[[], object] | None = None
        self._stopped = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:9464``."""
        host, port = self._listener.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self, on_ready: Callable[[str], None] | None = None) -> None:
        """Serve until ``stop``, or SIGINT or SIGTERM in the main thread; returns within 2 s of it.

        ``on_ready`` is called with the URL once requests are taken.
        """
        try:
            with _signals_call(self.stop):
                asyncio.run(self._serve(on_ready))
        finally:
            self._listener.close()

    def stop(self) -> None:
        """End ``run``; from any thread, also before it starts."""
        self._stopped.set()
        if self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped already
                self._stop()

    async def _serve(self, on_ready: Callable[[str], None] | None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_error)
        stopping = asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopping.set)
        if self._stopped.is_set():
            return
        config = _hypercorn_config()
        serving = asyncio.create_task(
            worker_serve(
                wrap_app(cast(ASGIFramework, _without_bodies(self._app)), config.wsgi_max_body_size, "asgi"),
                config,
                sockets=Sockets([], [self._listener], []),
                shutdown_trigger=stopping.wait,
            )
        )
        if on_ready is not None:
            on_ready(self.url)
        await asyncio.wait({serving, asyncio.create_task(stopping.wait())}, return_when="FIRST_COMPLETED")
        self._on_stop()
        await asyncio.wait({serving}, timeout=GRACE_SECONDS)
        if not serving.done():
            # Closing a connection waits until its client has taken all data; a stalled one never does.
            self._listener.drop_connections()
        await serving


class _Listener(socket.socket):
    """A listening socket that knows the connections it accepted."""

    def __init__(self, family: int) -> None:
        # With the protocol named, asyncio sets TCP_NODELAY; without it each answer takes 40 ms more.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._accepted: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.address = ("", 0)

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self._accepted.add(connection)
        return connection, address

    def drop_connections(self) -> None:
        for connection in list(self._accepted):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _bind(host: str, port: int) -> _Listener:
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} is none", hint="choose one from 1024 to 65535, or 0 for any free one")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ServerError(
            f"cannot find the address of host {host!r}", hint=f"try --host {DEFAULT_HOST}"
        ) from error
    listener = _Listener(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1000)
        listener.bind(address)
        listener.listen()  # only now is the port ours: two sockets can be bound to it, one can listen
        listener.setblocking(False)
        listener.address = listener.getsockname()[:2]
    except OSError as error:
        listener.close()
        raise _bind_error(error, host, port) from error
    return listener


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


def _hypercorn_config() -> Config:
    config = Config()
    # The idle time runs from the connection to the end of the request head, however slowly that drips in;
    # the read time-out ends what speaks HTTP/2 and then falls silent.
    config.keep_alive_timeout = HEAD_SECONDS
    config.read_timeout = HEAD_SECONDS
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.h2_max_header_list_size = MAX_HEAD_BYTES
    config.graceful_timeout = 2 * GRACE_SECONDS
    config.include_server_header = False
    config.errorlog = None
    return config


def _without_bodies(app: ASGIApp) -> ASGIApp:
    """``app``, with request bodies read and thrown away before it answers.

    Hypercorn queues a few pieces of a body and, when nobody takes them, can neither answer nor close: the
    connection would be held for ever. A body that is too large or too slow is not waited for; the answer
    then ends the connection.
    """

    async def nothing() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def discard(receive: Receive, enough: asyncio.Event) -> None:
        size = 0
        while (message := await receive())["type"] == "http.request":
            size += len(message.get("body", b""))
            if not message.get("more_body", False) or size > MAX_BODY_BYTES:
                enough.set()
        enough.set()

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        enough = asyncio.Event()
        discarding = asyncio.create_task(discard(receive, enough))
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), HEAD_SECONDS)
            return await app(scope, nothing, send)
        finally:
            discarding.cancel()

    return wrapped


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if isinstance(context.get("exception"), OSError):
        log.debug("connection lost: %s", context["exception"])
    else:
        loop.default_exception_handler(context)


@contextlib.contextmanager
def _signals_call(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call ``stop`` within the block; their handlers are put back after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_: int, __: FrameType | None) -> None:
        stop()

    before = {name: signal.signal(name, handle) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
