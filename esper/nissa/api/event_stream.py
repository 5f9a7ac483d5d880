"""Events as server-sent events: one answer that goes on until either side ends it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from esper.nissa.api.event_hub import Told

_LOOK_SECONDS = 1.0


class EventStream(Response):
    """Sends what ``told`` yields until that ends or the client is gone, the first left out.

    With that it is known that ``told`` listens, and only then does the answer begin: whoever sees it begin
    misses nothing that comes later.
    """

    media_type = "text/event-stream"

    def __init__(self, told: AsyncGenerator[tuple[Told, str] | None, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; of HEAD the head alone."""
        if scope["method"] == "HEAD":
            await self._begin(send)
            await send({"type": "http.response.body", "body": b""})
            return
        sending = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when="FIRST_COMPLETED")
        finally:
            for task in (sending, gone):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if not sending.cancelled():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _send_all(self, send: Send) -> None:
        async def body(text: str) -> None:
            await send({"type": "http.response.body", "body": text.encode("ascii"), "more_body": True})

        async with contextlib.aclosing(self._told) as events:
            await anext(events, None)
            await self._begin(send)
            await body("retry: 1000\n\n")
            async for event in events:
                if event is None:
                    await body(": nothing new\n\n")
                else:
                    told, place = event
                    await body(f"id: {place}\nevent: {told.kind}\ndata: {told.data}\n\n")


async def _gone(receive: Receive) -> None:
    """Return once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(_LOOK_SECONDS)  # a server that always has an answer is not asked without end
