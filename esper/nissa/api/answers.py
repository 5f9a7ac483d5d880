"""Answers in JSON, weak ETags, and errors as problem details (RFC 9457)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from esper.errors import EsperError, KernelNotFound, RunError
from esper.nissa.journal import dumps

PROBLEM = "application/problem+json"

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of every answer: nobody keeps it, and no browser guesses what it is."""

log = logging.getLogger(__name__)


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """``content`` as JSON; see ``esper.nissa.journal.dumps`` for numbers that JSON lacks."""
    body = dumps(content) + "\n"
    return Response(body, status, {**HEADERS, **(headers or {})}, media_type="application/json")


def tagged_answer(request: Request, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """As ``json_answer``, or 304 to whoever has the same already; the client alone may keep it."""
    body = (dumps(content) + "\n").encode()
    # Weak: the same content may be sent compressed or not.
    tag = f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    kept = {**HEADERS, "Cache-Control": "private, no-cache", "ETag": tag, **(headers or {})}
    if _matches(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=kept)
    return Response(body, 200, kept, media_type="application/json")


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    hint: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """What went wrong with ``request`` (``detail``), and what to do next (``hint``)."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": request.url.path[:1000],
        "hint": hint,
    }
    return Response(dumps(body) + "\n", status, {**HEADERS, **(headers or {})}, media_type=PROBLEM)


async def on_http_error(request: Request, error: Exception) -> Response:
    """The answer to an HTTPException."""
    assert isinstance(error, HTTPException)
    hint = "GET /api/v1/openapi.json lists what there is" if error.status_code == 404 else None
    return problem(request, error.status_code, error.detail, hint=hint, headers=error.headers)


async def on_esper_error(request: Request, error: Exception) -> Response:
    """The answer to an error of Esper's: 404 for what is not there, else 503."""
    assert isinstance(error, EsperError)
    status = 404 if isinstance(error, (RunError, KernelNotFound)) else 503
    return problem(request, status, error.message, hint=error.hint)


async def on_timeout(request: Request, error: Exception) -> Response:
    """The answer where something behind the server did not answer in time."""
    return problem(request, 503, str(error), hint="try again in a moment", headers={"Retry-After": "2"})


async def on_bug(request: Request, error: Exception) -> Response:
    """The answer to a defect, which only the log tells of."""
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return problem(request, 500, "an error of the server; its log has the details")


def _matches(wanted: str, tag: str) -> bool:
    candidates = {candidate.strip() for candidate in wanted.split(",")}
    return "*" in candidates or tag in candidates or tag.removeprefix("W/") in candidates
