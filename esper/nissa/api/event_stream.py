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
    """Sends what ``told`` yields until that ends or the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, told: AsyncGenerator[tuple[Told, str] | None, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; of HEAD the head alone."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
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
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        async def body(text: str) -> None:
            await send({"type": "http.response.body", "body": text.encode("ascii"), "more_body": True})

        await body("retry: 1000\n\n")
        async with contextlib.aclosing(self._told) as events:
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
