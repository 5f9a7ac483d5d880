"""What the API answers to POST: requests to runs, and tags of kernels."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from esper.errors import RunError
from esper.nissa.api.answers import json_answer, problem
from esper.nissa.api.catalogue import BoundedLibrary
from esper.nissa.api.monitor import Monitor
from esper.nissa.api.queries import NoQuery, RollbackBody, TagsBody, WaitQuery
from esper.nissa.api.reads import Handler, name_of
from esper.nissa.api.requests import read_body, read_query
from esper.nissa.control import Action, ControlRequest, ask
from esper.nissa.run_records import ControlRecord

_LOOK_SECONDS = 0.1


class Changes:
    """Handlers of what changes something."""

    def __init__(self, monitor: Monitor, library: BoundedLibrary) -> None:
        self._monitor = monitor
        self._library = library

    def handlers(self) -> dict[str, Handler]:
        """Each by the name of its endpoint."""
        return {
            "pause_run": self.pause,
            "resume_run": self.resume,
            "rollback_run": self.rollback,
            "tag_kernel": self.tag,
        }

    async def pause(self, request: Request) -> Response:
        """Ask a run to wait."""
        return await self._ask(request, "pause")

    async def resume(self, request: Request) -> Response:
        """Ask a run that waits to go on."""
        return await self._ask(request, "resume")

    async def rollback(self, request: Request) -> Response:
        """Ask a run to go back to a checkpoint."""
        body = await read_body(request, RollbackBody)
        return await self._ask(request, "rollback", epoch=body.epoch, step=body.step)

    async def tag(self, request: Request) -> Response:
        """Give tags to a kernel and take tags from it."""
        read_query(request, NoQuery)
        name = name_of(request, "kernel_id")
        tags = await read_body(request, TagsBody)
        now = await run_in_threadpool(self._library, lambda library: library.retag(name, tags))
        return json_answer({"kernel_id": name, "tags": now})

    async def _ask(
        self, request: Request, action: Action, *, epoch: int | None = None, step: int | None = None
    ) -> Response:
        """202 once the request is on the disk, 200 once the run has done it, 409 where it does not."""
        wait = read_query(request, WaitQuery).wait
        folder = await run_in_threadpool(self._monitor.folder, name_of(request, "run_id"))
        if self._library:
            await run_in_threadpool(
                self._library,
                lambda library: library.note_request(action, folder.name, epoch=epoch, step=step),
            )
        try:
            asked = await run_in_threadpool(lambda: ask(folder, action, epoch=epoch, step=step))
        except RunError as error:
            return problem(request, 409, error.message, hint=error.hint)
        outcome = await self._outcome(folder.name, asked, wait) if wait else None
        if outcome is not None and not outcome.done:
            return problem(request, 409, f"the run refused: {outcome.reason}")
        content = _requested(folder.name, asked, outcome)
        look = {"Location": content["look"]}
        return json_answer(content, 202 if outcome is None else 200, look if outcome is None else None)

    async def _outcome(self, run_id: str, asked: ControlRequest, seconds: int) -> ControlRecord | None:
        """What the run answers within ``seconds``; 409 when it ends before it does."""
        deadline = time.monotonic() + seconds
        while True:
            outcome, goes_on = await run_in_threadpool(self._monitor.control, run_id, asked.request)
            if outcome is not None:
                return outcome
            if not goes_on:
                raise HTTPException(409, f"run {run_id} ended before it read the request")
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(_LOOK_SECONDS)


def _requested(run_id: str, asked: ControlRequest, outcome: ControlRecord | None) -> dict[str, Any]:
    return {
        "request": asked.request,
        "run_id": run_id,
        "action": asked.action,
        "epoch": asked.epoch,
        "step": asked.step,
        "at": asked.at,
        "outcome": None if outcome is None else outcome.to_json(),
        "look": f"/api/v1/runs/{quote(run_id)}",
    }
