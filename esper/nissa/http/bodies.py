"""Bounds what a request may send and how long its answer may wait.

Hypercorn queues a few pieces of a body and, when nobody takes them, can neither answer nor close: the
connection would be held for ever. So each body is taken here, before anybody else is asked: whole and small,
or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esper.nissa.http.refusal import Refusal

MOST_BODY_BYTES: Final = 64 * 1024
BODY_SECONDS: Final = 2.0

ANSWER_SECONDS: Final = 30.0
"""How long an answer may take to begin."""

LINGER_SECONDS: Final = 0.5
LINGER_BYTES: Final = 1024 * 1024
"""How much of a body is thrown away, and how long, for a client that reads its answer only after sending."""


class BoundedRequests:
    """``app``, which gets bodies of at most ``MOST_BODY_BYTES`` and has to begin its answer in time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope)
        try:
            _check_length(request)
            body = await _body(receive)
        except Refusal as refusal:
            answer = refusal.answer(request)
            return await answer(scope, receive, _lingering(receive, send))
        except _Gone:
            return None
        return await self._answer(scope, _after(body, receive), send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, late = False, False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            if not late:
                await send(message)

        task = asyncio.ensure_future(self._app(scope, receive, watched))
        try:
            await asyncio.wait({task}, timeout=ANSWER_SECONDS)
            late = not (begun or task.done())
            if late:
                answer = Refusal(503, "this took too long", headers={"Retry-After": "5"}).answer(
                    Request(scope)
                )
                return await answer(scope, receive, send)
            return await task
        finally:
            task.cancel()


class _Gone(Exception):
    """The client has left before it sent all of its request."""


def _check_length(request: Request) -> None:
    length = request.headers.get("content-length", "0")
    # The server's parser lets no other text through.
    if len(length) > 9 or int(length) > MOST_BODY_BYTES:
        raise _too_large()


async def _body(receive: Receive) -> bytes:
    """All of the body, or Refusal."""
    pieces, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while (message := await receive())["type"] == "http.request":
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > MOST_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except TimeoutError:
        raise Refusal(408, "the body of the request did not arrive in time") from None
    raise _Gone


def _too_large() -> Refusal:
    return Refusal(413, f"the body of a request has at most {MOST_BODY_BYTES} bytes")


def _after(body: bytes, receive: Receive) -> Receive:
    """``body``, and then what else there is to hear of the client: that it has left."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _lingering(receive: Receive, send: Send) -> Send:
    """``send`` that throws a body away for a moment before it ends an answer, and with it the connection."""

    enough = asyncio.Event()

    async def discard() -> None:
        size = 0
        while (message := await receive()).get("more_body", False):
            size += len(message["body"])
            if size >= LINGER_BYTES:
                enough.set()
        enough.set()

    async def sending(message: Message) -> None:
        if message["type"] != "http.response.body":
            return await send(message)
        await send({**message, "more_body": True})
        discarding = asyncio.ensure_future(discard())
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), LINGER_SECONDS)
            # Meanwhile as well: Hypercorn queues the news of it, and a body may have filled its queue.
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            discarding.cancel()

    return sending
