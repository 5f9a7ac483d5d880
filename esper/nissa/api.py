"""The HTTP API: an ASGI application over a Monitor.

``GET /health`` (503 when degraded), ``/metrics``, ``/api/v1/status`` and
``/api/v1/adaptations?limit=50&run=RUN``. Every error is JSON: ``{"error": {"status", "message", "hint"}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from esper.errors import EsperError, RunError
from esper.nissa.journal import dumps
from esper.nissa.monitor import Monitor

DEFAULT_LIMIT = 50
MAX_LIMIT = 1000

log = logging.getLogger(__name__)

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

_INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Esper</title></head><body><h1>Esper</h1><ul>
<li><a href="/health">/health</a>: overall system health</li>
<li><a href="/metrics">/metrics</a>: Prometheus metrics</li>
<li><a href="/api/v1/status">/api/v1/status</a>: detailed component status</li>
<li><a href="/api/v1/adaptations">/api/v1/adaptations</a>: recent adaptation history
(<code>?limit=50&amp;run=RUN</code>)</li>
</ul><p>This server has no authentication.</p></body></html>
"""


def create_app(monitor: Monitor) -> Starlette:
    """The application that answers from ``monitor``; its blocking work runs off the event loop."""

    async def index(request: Request) -> Response:
        _query(request)
        return Response(_INDEX, media_type="text/html", headers=_HEADERS)

    async def health(request: Request) -> Response:
        _query(request)
        report = await run_in_threadpool(monitor.health)
        return _json(report.to_json(), 200 if report.healthy else 503)

    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        body, content_type = await run_in_threadpool(monitor.metrics, accept)
        return Response(body, headers={**_HEADERS, "Content-Type": content_type})

    async def status(request: Request) -> Response:
        _query(request)
        return _json(await run_in_threadpool(monitor.status))

    async def adaptations(request: Request) -> Response:
        query = _query(request, "limit", "run")
        limit = _limit(query.get("limit"))
        return _json(await run_in_threadpool(monitor.adaptations, limit, query.get("run")))

    endpoints: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": index,
        "/health": health,
        "/metrics": metrics,
        "/api/v1/status": status,
        "/api/v1/adaptations": adaptations,
    }
    return Starlette(
        routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in endpoints.items()],
        exception_handlers={HTTPException: _on_http_error, EsperError: _on_esper_error, 500: _on_bug},
    )


def _query(request: Request, *allowed: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in allowed:
            known = f"known: {', '.join(allowed)}" if allowed else "none is known here"
            raise HTTPException(400, f"unknown query parameter {name[:100]!r}; {known}")
        if name in query:
            raise HTTPException(400, f"query parameter {name!r} is given more than once")
        query[name] = value
    return query


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    # int() takes "+5", " 5 " and "1_000" too, and digits of other scripts.
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise HTTPException(400, f"limit must be a whole number from 1 to {MAX_LIMIT}, not {text[:100]!r}")
    return limit


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = dumps(content) + "\n"
    return Response(body, status, {**_HEADERS, **(headers or {})}, media_type="application/json")


def _error(
    status: int, message: str, hint: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    return _json({"error": {"status": status, "message": message, "hint": hint}}, status, headers)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = "GET / lists what there is" if error.status_code == 404 else None
    return _error(error.status_code, error.detail, hint, dict(error.headers or {}))


async def _on_esper_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, EsperError)
    return _error(404 if isinstance(error, RunError) else 503, error.message, error.hint)


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return _error(500, "an error of the server; its log has the details")
