"""Answers as they leave: without places of this machine and secrets, whoever wrote them into a text."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_KINDS = ("application/json", "application/problem+json", "text/event-stream")


class PrivateBodies:
    """Passes the bodies of JSON and of events, each chunk by itself, through ``clean``."""

    def __init__(self, app: ASGIApp, clean: Callable[[str], str]) -> None:
        self._app = app
        self._clean = clean

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []  # the start of an answer that is cleaned: its length is known with the body
        cleaning = False

        async def cleaned(message: Message) -> None:
            nonlocal cleaning
            if message["type"] == "http.response.start":
                kind = MutableHeaders(raw=message["headers"]).get("content-type", "")
                cleaning = kind.startswith(_KINDS)
                if cleaning:
                    held.append(message)
                    return
            elif cleaning and message.get("body"):
                body = self._clean(message["body"].decode()).encode()
                if held:
                    headers = MutableHeaders(raw=held[0]["headers"])
                    if "content-length" in headers:
                        headers["content-length"] = str(len(body))
                message = {**message, "body": body}
            if held:
                await send(held.pop())
            await send(message)

        await self._app(scope, receive, cleaned)
