"""Lets in who may come in: the one place where requests are told apart by who asks.

A caller shows a token in the header ``Authorization`` or in a cookie, or a certificate, or is nobody, which
on loopback may be as good as a viewer. The table of endpoints says what each asks for; a path that is not in
it asks for a viewer, so that nobody else learns what there is. docs/decisions/0119 has the reasons.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from esper.errors import EsperError, TokenRefused
from esper.nissa.api.endpoints import CALLER, ENDPOINTS, Endpoint
from esper.nissa.api.kept_metrics import REPEATABLE
from esper.nissa.http.browser import (
    LINK,
    LOOPBACK_NAMES,
    TOKEN,
    check_host,
    check_origin,
    cookie,
    kept_by,
    sent_on,
    with_headers,
)
from esper.nissa.http.limits import RateLimit, client_key, is_loopback_address
from esper.nissa.http.refusal import Refusal
from esper.nissa.http.tls import CERTIFICATE, HOLDS
from esper.nissa.page import sign_in

Allowed = Literal["viewer", "operator", "admin"]
RANKS: Final = {"public": 0, "viewer": 1, "operator": 2, "admin": 3}
RECHECK_SECONDS: Final = 1.0
"""How long an answer goes on, such as one that follows events, after its token is valid no more."""

_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_BEARER: Final = re.compile(r"bearer ([A-Za-z0-9._~+/=-]+)", re.IGNORECASE)
_INVALID: Final = 'error="invalid_token"'

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what is allowed."""

    name: str
    role: Allowed


@dataclass(frozen=True)
class Admission:
    """Who is let in, and how.

    ``verify`` says whom a token is for, or raises TokenRefused, or another EsperError if it cannot say.
    ``certificates`` are roles by name. ``hosts`` are the names a request may ask for, None any. ``acting`` is
    entered with who acts while a request is answered.
    """

    verify: Callable[[str], Caller]
    anonymous: Caller | None = None
    certificates: Mapping[str, Allowed] = field(default_factory=dict)
    hosts: frozenset[str] | None = LOOPBACK_NAMES
    rate: RateLimit = field(default_factory=lambda: RateLimit(100, 200))
    acting: Callable[[str], AbstractContextManager[object]] = lambda _: nullcontext()


@dataclass(frozen=True, slots=True)
class _Shown:
    """Who asks, and by what: a token (in a cookie), a certificate, or nothing."""

    caller: Caller | None
    kind: str = ""
    token: str | None = None
    by_cookie: bool = False


class Guard:
    """An application in front of ``app``, which hears only of those who may come in."""

    def __init__(self, app: ASGIApp, admission: Admission, endpoints: Sequence[Endpoint] = ENDPOINTS) -> None:
        self._app = app
        self._admission = admission
        self._roles = _Roles(endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        send = with_headers(send)
        request = Request(scope)
        try:
            answer = self._login(request)
            shown = _Shown(None) if answer else self._admitted(request)
        except Refusal as refusal:
            answer, shown = refusal.answer(request), _Shown(None)
        if answer is not None:
            return await answer(scope, receive, send)
        if shown.caller is not None:
            scope[CALLER] = shown.caller
        if shown.kind or not is_loopback_address(_address(request)):
            scope.pop(REPEATABLE, None)  # a token may end meanwhile, and a rate counts each request
        if shown.caller is None or not shown.kind:
            return await self._app(scope, receive, send)
        with self._admission.acting(f"{shown.kind} {shown.caller.name}"):
            return await self._answer(self._app(scope, receive, send), request, shown.token)

    async def _answer(self, answering: Awaitable[None], request: Request, token: str | None) -> None:
        """Answer, and cut off what takes long once ``token``, or the certificate, is valid no more."""
        task = asyncio.ensure_future(answering)
        try:
            while not (await asyncio.wait({task}, timeout=RECHECK_SECONDS))[0]:
                if token is not None:
                    self._verified(token)
                else:
                    _check_certificate(request)
        except Refusal as refusal:
            log.info("an answer is cut off: %s", refusal)
            return
        finally:
            task.cancel()
        task.result()

    def _login(self, request: Request) -> Response | None:
        """The answer to who opens a link with a token: whose it is, and once that is confirmed its cookie.

        Anybody may have made the link: no browser is signed in without a word of who uses it. Until then the
        token waits in a cookie of its own, so that it leaves the address at once.
        """
        if request.scope["path"] != "/" or request.method not in ("GET", "POST"):
            return None
        tokens = request.query_params.getlist("token") if request.method == "GET" else []
        waiting = kept_by(request, LINK)
        if not tokens and not waiting:
            return None
        self._check_client(request)
        if len(tokens) > 1:
            raise Refusal(400, "the parameter token is given more than once")
        if tokens:
            self._verified(tokens[0])
            return sent_on(request, {LINK: tokens[0]})
        caller = self._verified_cookie(request, LINK)
        if request.method == "GET":
            return sign_in(caller.name, caller.role)
        check_origin(request, by_cookie=True)
        return sent_on(request, {TOKEN: waiting, LINK: ""})

    def _admitted(self, request: Request) -> _Shown:
        """Who asks; raises Refusal for whom is not to be let in."""
        self._check_client(request)
        # What is routed by, not request.url: that begins with what the client sends as its Host.
        needed = self._roles.needed(request.method, request.scope["path"])
        if needed == "public":
            return _Shown(None)
        shown = self._shown(request)
        if shown.caller is not None and shown.kind:
            self._check_rate(request, f"{shown.kind} {shown.caller.name}")
        if request.method not in _SAFE:
            check_origin(request, by_cookie=shown.by_cookie)
        if shown.caller is not None and RANKS[shown.caller.role] >= RANKS[needed]:
            return shown
        if shown.caller is None or not shown.kind:
            raise Refusal(
                401,
                "this asks for a token",
                hint=f"esper token issue --role {needed} --for NAME; then header Authorization: Bearer TOKEN",
                challenge="",
            )
        raise Refusal(
            403,
            f"this asks for the role {needed}; {shown.caller.name} has {shown.caller.role}",
            challenge='error="insufficient_scope"',
        )

    def _shown(self, request: Request) -> _Shown:
        """Who asks. What is shown counts: nothing stands in for a token that is not valid."""
        given = request.headers.getlist("authorization")
        if given:
            match = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
            if match is None:
                raise Refusal(401, "one header Authorization: Bearer TOKEN is wanted", challenge=_INVALID)
            return _Shown(self._verified(match[1]), "token", match[1])
        kept = kept_by(request, TOKEN)
        if kept:
            return _Shown(self._verified_cookie(request, TOKEN), "token", kept, by_cookie=True)
        for name in request.scope.get(CERTIFICATE, ()):
            if name in self._admission.certificates:
                _check_certificate(request)
                return _Shown(Caller(name, self._admission.certificates[name]), "certificate")
        return _Shown(self._admission.anonymous)

    def _verified_cookie(self, request: Request, name: str) -> Caller:
        try:
            return self._verified(kept_by(request, name))
        except Refusal as refusal:
            refusal.headers["Set-Cookie"] = cookie(request, name, "")
            raise

    def _verified(self, token: str) -> Caller:
        try:
            return self._admission.verify(token)
        except TokenRefused as refused:
            log.info("a token was refused: %s", refused.reason)
            reason = "has expired" if refused.expired else "is not valid"
            raise Refusal(401, f"the token {reason}", hint=refused.hint, challenge=_INVALID) from None
        except EsperError as error:
            log.error("no token can be verified: %s", error)
            raise Refusal(503, "no token can be verified now; the log of the server says why") from None

    def _check_client(self, request: Request) -> None:
        check_host(request, self._admission.hosts)
        self._check_rate(request, f"address {client_key(_address(request))}")

    def _check_rate(self, request: Request, key: str) -> None:
        wait = 0.0 if is_loopback_address(_address(request)) else self._admission.rate.wait(key)
        if wait:
            raise Refusal(429, "too many requests", headers={"Retry-After": str(math.ceil(wait))})


class _Roles:
    """The table of endpoints, to look a request up in as the application does."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._rows = [(row.method, compile_path(row.path)[0], row.role) for row in endpoints]

    def needed(self, method: str, path: str) -> str:
        method = "GET" if method == "HEAD" else method
        for row_method, pattern, role in self._rows:
            if row_method == method and pattern.match(path):
                return role
        return "viewer"


def _check_certificate(request: Request) -> None:
    if not request.scope.get(HOLDS, lambda: True)():
        raise Refusal(
            401,
            "this certificate is revoked, or the list of those has ended",
            challenge="",
        )


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
