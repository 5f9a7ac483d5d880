"""Queries and bodies of requests, read into their models; what is wrong with one is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TypeVar

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from esper.nissa.api.queries import Model

MAX_BODY_BYTES = 64 * 1024

M = TypeVar("M", bound=Model)


def read_query(request: Request, model: type[M]) -> M:
    """The query of ``request``; 400 for what ``model`` does not know or does not take."""
    known = model.model_fields
    lists = {name for name, field in known.items() if field.default == ()}
    query: dict[str, str | list[str]] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            names = f"known: {', '.join(known)}" if known else "none is known here"
            raise HTTPException(400, f"unknown query parameter {name[:100]!r}; {names}")
        if name in lists:
            query[name] = [*query.get(name, ()), value]
        elif name in query:
            raise HTTPException(400, f"query parameter {name!r} is given more than once")
        else:
            query[name] = value
    try:
        return model.model_validate(query)
    except ValidationError as error:
        raise HTTPException(400, _first(error)) from error


async def read_body(request: Request, model: type[M]) -> M:
    """The JSON body of ``request``, none at all being ``{}``; 413, 415, 400 or 422 for what is not one."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a body has at most {MAX_BODY_BYTES} bytes")
    if not body:
        return _validated(model, {})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f"the body must be application/json, not {kind[:100]!r}")
    try:
        content = json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON") from error
    return _validated(model, content)


def _validated(model: type[M], content: object) -> M:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise HTTPException(422, _first(error)) from error


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError("a name is given twice")
        found[name] = value
    return found


def _first(error: ValidationError) -> str:
    """What is wrong first, and where."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    return f"{place}: {said}, not {shown[:100]}" if place else said
