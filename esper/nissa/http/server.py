"""Serves the HTTP API until it is told to stop.

Connections that are no use are dropped: no whole request head or TLS handshake within ``HEAD_SECONDS``, an
idle one after the same time, a client that does not take its answer for ``STALLED_SECONDS`` (on Linux).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, RawData, Updated
from hypercorn.typing import ASGIFramework, LifespanState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Receive, Scope, Send

from esper.nissa.api.kept_metrics import REPEATABLE
from esper.nissa.http.bodies import BoundedRequests
from esper.nissa.http.limits import ConnectionLimit
from esper.nissa.http.listener import BACKLOG, DEFAULT_HOST, Listener, bind
from esper.nissa.http.repeats import RepeatingProtocol, Repeats
from esper.nissa.http.tls import with_certificate

DEFAULT_PORT = 9464
"""The port that OpenTelemetry's Prometheus exporters use."""

HEAD_SECONDS = 3
GRACE_SECONDS = 0.8
"""How long requests under way may go on once the server is told to stop."""

MAX_HEAD_BYTES = 16 * 1024

log = logging.getLogger(__name__)


class MetricsServer:
    """One server on one address.

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
        tls: ssl.SSLContext | None = None,
        connections: ConnectionLimit | None = None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = BoundedRequests(app)
        self._tls = tls
        self._on_stop = on_stop
        self._listener = bind(host, port, connections or ConnectionLimit())
        self._stop: Callable[[], object] | None = None
        self._stopped = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:9464``."""
        host, port = self._listener.address
        return f"{'https' if self._tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

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
        connections = _Connections(self._app, self._tls)
        server = await loop.create_server(
            lambda: RepeatingProtocol(connections.serve, loop),
            sock=self._listener,
            backlog=BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=HEAD_SECONDS if self._tls else None,
            ssl_shutdown_timeout=1 if self._tls else None,
        )
        if on_ready is not None:
            on_ready(self.url)
        await stopping.wait()
        loop.remove_reader(self._listener)
        await asyncio.sleep(0)  # a connection accepted just now would never be closed by a closed server
        await asyncio.sleep(0)
        server.close()
        self._on_stop()
        await connections.end(self._listener)


class _Connections:
    """Those that are open, each of them Hypercorn's to serve."""

    def __init__(self, app: ASGIApp, tls: ssl.SSLContext | None) -> None:
        self._app = app
        self._tls = tls
        self._config = _hypercorn_config()
        self._context = WorkerContext(None)

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, repeats: Repeats
    ) -> None:
        """Serve one until it ends."""
        app = with_certificate(self._app, writer.get_extra_info("ssl_object"), self._tls)

        async def told(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, REPEATABLE: repeats.keep}, receive, send)

        wrapped = wrap_app(cast(ASGIFramework, told), self._config.wsgi_max_body_size, "asgi")
        streams = asyncio.get_running_loop(), self._config, self._context, LifespanState(), reader, writer
        await _Connection(repeats, wrapped, *streams)

    async def end(self, listener: Listener) -> None:
        """Let requests under way end for ``GRACE_SECONDS``, then drop what is left."""
        await self._context.terminated.set()
        if not await _closed(listener):
            # Closing a connection waits until its client has taken all data; a stalled one never does.
            listener.drop_connections()
            await _closed(listener)


class _Connection(TCPServer):
    """One that tells ``repeats`` what it answers, knows HTTP/1.1 alone, and ends with its client.

    Hypercorn's speaks HTTP/2 to whoever begins with it, and waits for the end of the idle time when its
    client has left.
    """

    def __init__(self, repeats: Repeats, *hypercorn: Any) -> None:
        super().__init__(*hypercorn)
        self._repeats = repeats

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            self._repeats.sent(event.data)
        await super().protocol_send(event)
        if isinstance(event, Updated) and event.idle:
            self._repeats.answered()

    async def _read_data(self) -> None:
        setattr(self.protocol.protocol, "_check_protocol", _http_1_alone)  # noqa: B010 (a method to mypy)
        await super()._read_data()
        await self.idle_task.stop()


async def _http_1_alone(_: object) -> None:
    """In the place of what changes to HTTP/2."""


async def _closed(listener: Listener) -> bool:
    """Whether all connections were closed within ``GRACE_SECONDS``."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            while listener.has_connections:
                await asyncio.sleep(0.01)
    return not listener.has_connections


def _hypercorn_config() -> Config:
    config = Config()
    # The idle time runs from the connection to the end of the request head, however slowly that drips in.
    # The read time-out has none to do: it takes a client that waits for an answer for one that has left.
    config.keep_alive_timeout = HEAD_SECONDS
    config.read_timeout = None
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.include_server_header = False
    config.errorlog = None
    return config


def _on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if isinstance(context.get("exception"), OSError):  # and ssl.SSLError, which is one
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
