"""The HTTP API: an ASGI application, built from the table in ``esper.nissa.api.endpoints``.

Every error is a problem of RFC 9457, in JSON. Who may ask what is for the server in front of it to say.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from esper.errors import EsperError
from esper.nissa.api.answers import on_bug, on_esper_error, on_http_error, on_timeout, tagged_answer
from esper.nissa.api.catalogue import BoundedLibrary, Library
from esper.nissa.api.changes import Changes
from esper.nissa.api.endpoints import ENDPOINTS
from esper.nissa.api.event_hub import EventHub
from esper.nissa.api.history import HistoryReads
from esper.nissa.api.monitor import Monitor
from esper.nissa.api.openapi import openapi
from esper.nissa.api.private_bodies import PrivateBodies
from esper.nissa.api.queries import NoQuery
from esper.nissa.api.reads import Handler, Reads
from esper.nissa.api.requests import read_query
from esper.nissa.api.run_history import RunHistories
from esper.nissa.page import index, page_file
from esper.nissa.runs import RunStore

_SMALL = 1000
"""Bytes below which nothing is gained by compressing an answer."""


def create_app(
    monitor: Monitor, library: Library | None = None, *, clean: Callable[[str], str] = str
) -> Starlette:
    """The application that answers from ``monitor`` and ``library``; blocking work is off the event loop.

    ``clean`` takes out of an answer what may not leave this machine.
    ``app.state.hub`` ends its streams of events when it is stopped.
    """
    hub = EventHub(RunStore(monitor.root))
    bounded = BoundedLibrary(library)
    document = openapi()

    async def describe(request: Request) -> Response:
        read_query(request, NoQuery)
        return tagged_answer(request, document)

    handlers: dict[str, Handler] = {
        "index": index,
        "page_file": page_file,
        "openapi": describe,
        "run_history": HistoryReads(RunHistories(monitor.root)).run_history,
        **Reads(monitor, bounded, hub).handlers(),
        **Changes(monitor, bounded).handlers(),
    }
    app = Starlette(
        routes=[
            Route(each.path, handlers[each.name], methods=[each.method], name=each.name) for each in ENDPOINTS
        ],
        middleware=[
            Middleware(GZipMiddleware, minimum_size=_SMALL, compresslevel=5),
            Middleware(PrivateBodies, clean=clean),
        ],
        exception_handlers={
            HTTPException: on_http_error,
            EsperError: on_esper_error,
            TimeoutError: on_timeout,
            500: on_bug,
        },
    )
    app.state.hub = hub
    return app
