"""What Hypercorn does not say of a connection, or says wrongly.

It listens to a client until that was silent for as long as a request may take to arrive, and then says that
the client has left. Answers still reach it, and what it asks after that is heard by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONNECTED: Final = "esper.connected"
"""Where in a request's scope the server may say whether its client is still there."""


def with_connection(app: ASGIApp, connected: Callable[[], bool]) -> ASGIApp:
    """``app``, which can ask with ``connected`` whether the client of a request is still there."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, CONNECTED: connected}, receive, send)

    return told


def closing(scope: Scope, start: Message) -> Message:
    """``start`` of an answer that comes late, after which the client asks over another connection."""
    if not scope.get("http_version", "").startswith("1"):
        return start
    return {**start, "headers": [*start["headers"], (b"connection", b"close")]}
