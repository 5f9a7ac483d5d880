"""Why a request is not let in, as an exception that knows its answer."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from esper.nissa.api.answers import problem
from esper.nissa.page import refused


class Refusal(Exception):
    """``challenge`` is what the header WWW-Authenticate adds to its scheme; None leaves that header away."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        hint: str | None = None,
        challenge: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.hint = hint
        self.headers = dict(headers or {})
        if challenge is not None:
            self.headers["WWW-Authenticate"] = ", ".join(filter(None, ('Bearer realm="esper"', challenge)))

    def answer(self, request: Request) -> Response:
        """Problem details; words for a person who opens the page."""
        if request.scope["path"] == "/" and "text/html" in request.headers.get("accept", ""):
            return refused(self.status, str(self), self.headers)
        return problem(request, self.status, str(self), hint=self.hint, headers=self.headers)
