"""What a browser must not be made to do for somebody else's page, and the cookie that it keeps a token in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http.cookies import SimpleCookie
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Message, Send

from esper.nissa.http.refusal import Refusal

TOKEN: Final = "esper_token"
LINK: Final = "esper_link"
"""Names of cookies: with the token that requests count by, and with that of a link until it is confirmed."""

LINK_SECONDS: Final = 120
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})

_HEADERS: Final = {
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


def check_host(request: Request, hosts: frozenset[str] | None) -> None:
    """Refuse what is asked of this machine under the name of a stranger, who made that name lead here."""
    given = request.headers.getlist("host")
    if len(given) != 1:
        raise Refusal(400, "one header Host is wanted")
    if hosts is not None and re.sub(r":\d*$", "", given[0]).lower() not in hosts:
        raise Refusal(421, "this server has another name", hint="allow more with nissa.hosts=[NAME]")


def check_origin(request: Request, *, by_cookie: bool) -> None:
    """Refuse what a page of somebody else asks for; programs send none of these headers, and no cookie."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin is not None:
        scheme, _, host = origin.partition("://")
        # A proxy may have taken TLS off; what it was added to is no page of ours.
        same = host == request.headers["host"] and scheme in ("https", request.scope["scheme"])
    else:
        same = site == "same-origin" or (site is None and not by_cookie)
    if not same:
        raise Refusal(403, "a page from elsewhere asks for this")


def kept_by(request: Request, name: str) -> str:
    """What the browser keeps in the cookie ``name``, "" if nothing."""
    return request.cookies.get(_full(request, name), "")


def cookie(request: Request, name: str, token: str) -> str:
    """Has a browser keep ``token`` out of reach of scripts and of other pages; "" has it forgotten."""
    made: SimpleCookie = SimpleCookie()
    full = _full(request, name)
    made[full] = token
    attributes = {
        "path": "/",
        "httponly": True,
        # A link may stand on another page. It is only asked about, so nothing comes of that.
        "samesite": "Lax" if name == LINK else "Strict",
        "secure": request.scope["scheme"] == "https",
        "max-age": 0 if not token else LINK_SECONDS if name == LINK else "",
    }
    for attribute, value in attributes.items():
        made[full][attribute] = value
    return made[full].OutputString()


def sent_on(request: Request, cookies: Mapping[str, str]) -> Response:
    """To the page, at an address without a token, with these cookies."""
    others = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
    answer = RedirectResponse("/" + ("?" + urlencode(others) if others else ""), 303)
    answer.headers["Cache-Control"] = "no-store"
    for name, token in cookies.items():
        answer.headers.append("Set-Cookie", cookie(request, name, token))
    return answer


def _full(request: Request, name: str) -> str:
    """The whole name of a cookie. Over TLS it is one that no other host can have a browser send here."""
    return f"__Host-{name}" if request.scope["scheme"] == "https" else name


def with_headers(send: Send) -> Send:
    """``send``, with the headers of every answer that it lacks."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            more = [(name, value) for name, value in _HEADERS.items() if name not in present]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending
