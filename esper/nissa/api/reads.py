"""What the API answers to GET."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from esper.errors import ConfigError
from esper.messages import CompilationRecord
from esper.nissa.api.answers import HEADERS, json_answer, tagged_answer
from esper.nissa.api.catalogue import BoundedLibrary
from esper.nissa.api.cursors import BadCursor, read_cursor, write_cursor
from esper.nissa.api.endpoints import CALLER
from esper.nissa.api.event_hub import EventHub
from esper.nissa.api.event_places import Places, scope_of
from esper.nissa.api.event_stream import EventStream
from esper.nissa.api.kept_metrics import REPEATABLE
from esper.nissa.api.monitor import Monitor
from esper.nissa.api.queries import (
    MAX_NAME,
    AdaptationsQuery,
    CompilationsQuery,
    EventsQuery,
    KernelsQuery,
    NoQuery,
    RunsQuery,
)
from esper.nissa.api.requests import read_query

Handler = Callable[[Request], Awaitable[Response]]


class Reads:
    """Handlers of what is read; their blocking work is off the event loop."""

    def __init__(self, monitor: Monitor, library: BoundedLibrary, hub: EventHub) -> None:
        self._monitor = monitor
        self._library = library
        self._hub = hub

    def handlers(self) -> dict[str, Handler]:
        """Each by the name of its endpoint."""
        return {
            "health": self.health,
            "health_live": self.health_live,
            "health_ready": self.health_ready,
            "metrics": self.metrics,
            "status": self.status,
            "adaptations": self.adaptations,
            "runs": self.runs,
            "run": self.run,
            "kernels": self.kernels,
            "kernel": self.kernel,
            "compilations": self.compilations,
            "events": self.events,
        }

    async def health(self, request: Request) -> Response:
        """All checks together; 503 when one fails."""
        read_query(request, NoQuery)
        report = await run_in_threadpool(self._monitor.health)
        return json_answer(report.to_json(), 200 if report.healthy else 503)

    async def health_live(self, request: Request) -> Response:
        """That this server answers."""
        read_query(request, NoQuery)
        return json_answer({"status": "ok"})

    async def health_ready(self, request: Request) -> Response:
        """Whether all that is read can be; 503 when something cannot."""
        read_query(request, NoQuery)
        report = await run_in_threadpool(self._monitor.ready)
        return json_answer(report.to_json(), 200 if report.healthy else 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus's text, in the format that is asked for."""
        accept = request.headers.get("accept", "")
        kept = self._monitor.kept_metrics(accept)
        if kept is None:
            body, content_type = await run_in_threadpool(self._monitor.metrics, accept)
        else:
            until, (body, content_type) = kept
            if REPEATABLE in request.scope:
                request.scope[REPEATABLE](until)
        return Response(body, headers={**HEADERS, "Content-Type": content_type})

    async def status(self, request: Request) -> Response:
        """Every component in detail."""
        read_query(request, NoQuery)
        return json_answer(await run_in_threadpool(self._monitor.status))

    async def adaptations(self, request: Request) -> Response:
        """Adaptations a page at a time."""
        return await self._page(request, self._monitor.adaptations, read_query(request, AdaptationsQuery))

    async def runs(self, request: Request) -> Response:
        """Runs a page at a time."""
        return await self._page(request, self._monitor.runs, read_query(request, RunsQuery))

    async def run(self, request: Request) -> Response:
        """One run whole."""
        read_query(request, NoQuery)
        return tagged_answer(request, await run_in_threadpool(self._monitor.run, name_of(request, "run_id")))

    async def kernels(self, request: Request) -> Response:
        """Kernels a page at a time."""
        query = read_query(request, KernelsQuery)
        return await self._page(request, lambda query: self._library(lambda it: it.page(query)), query)

    async def kernel(self, request: Request) -> Response:
        """One kernel whole."""
        read_query(request, NoQuery)
        name = name_of(request, "kernel_id")
        found = await run_in_threadpool(self._library, lambda library: library.kernel(name))
        return tagged_answer(request, found)

    async def compilations(self, request: Request) -> Response:
        """Attempts to compile a page at a time."""

        def read(query: CompilationsQuery) -> dict[str, Any]:
            page = _compilations_page(self._monitor.compilations(), query)
            return {**page, "broker": self._monitor.broker()}

        return await self._page(request, read, read_query(request, CompilationsQuery))

    async def events(self, request: Request) -> Response:
        """Events of runs as they come, after those that were seen."""
        query = read_query(request, EventsQuery)
        run_id = None
        if query.run is not None:
            run_id = (await run_in_threadpool(self._monitor.folder, query.run)).name
        after = request.headers.get("last-event-id") or query.after
        kinds = frozenset(query.types.split(",")) if query.types else frozenset()
        who = str(getattr(request.scope.get(CALLER), "name", ""))
        if self._hub.is_full(who):
            raise HTTPException(503, "too many clients follow already", {"Retry-After": "10"})
        places = _places(after, scope_of(run_id, kinds))
        return EventStream(self._hub.follow(places, run_id=run_id, kinds=kinds, who=who))

    async def _page(self, request: Request, read: Callable[[Any], dict[str, Any]], query: Any) -> Response:
        """A page of a list, with the address of the next one in a header as well."""
        try:
            page = await run_in_threadpool(read, query)
        except (BadCursor, ConfigError) as error:
            raise HTTPException(400, str(error)) from error
        return tagged_answer(request, page, _link(request, page["next"]))


def name_of(request: Request, parameter: str) -> str:
    """A part of the path; 404 for what can be the name of nothing."""
    name = str(request.path_params[parameter])
    if len(name) > MAX_NAME or not name.isprintable():
        raise HTTPException(404, "nothing is called that")
    return name


def _places(after: str | None, scope: str) -> Places | None:
    if not after:
        return None
    if after == "start":
        return Places(0.0)
    places = Places.parse(after)
    if places is None:
        raise HTTPException(400, "this is the id of no event; leave it out, or take start")
    if places.scope not in ("", scope):
        raise HTTPException(
            400, "this id is of a stream of another run or of other types; leave it out, or take start"
        )
    return places


def _link(request: Request, cursor: str | None) -> Mapping[str, str]:
    if cursor is None:
        return {}
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return {"Link": f'<{request.url.path}?{urlencode([*query, ("cursor", cursor)])}>; rel="next"'}


def _compilations_page(records: Sequence[CompilationRecord], query: CompilationsQuery) -> dict[str, Any]:
    """Numbered from the first on: the log only grows."""
    counts: dict[str, int] = {"compiled": 0, "failed": 0}
    for record in records:
        counts[record.status] += 1
    before = len(records) if query.cursor is None else read_cursor(query.cursor, int)[0]
    found = [
        (number, record)
        for number, record in enumerate(records[: max(before, 0)])
        if query.status in (None, record.status)
    ]
    shown = found[-query.limit :][::-1]
    return {
        "counts": counts,
        "compilations": [record for _, record in shown],
        "next": write_cursor(shown[-1][0]) if len(found) > len(shown) else None,
    }
