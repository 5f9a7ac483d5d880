"""The page at ``/``: static files, read once, sent as they are to whoever may see them.

No build step and no request to anywhere else: a strict Content-Security-Policy lets the page run its own
files and talk to its own server only. ``page/uPlot.*`` is uPlot, as its authors ship it, with its licence.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

INDEX = "index.html"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text that came from a run can become markup or a script.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}

_HEADERS = {
    # A newer version is seen at once, and what is still the same is not sent again.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page, plain and compressed, and the digest of what is in it."""

    media_type: str
    body: bytes
    compressed: bytes
    digest: str


@cache
def page_files() -> dict[str, PageFile]:
    """Every file of the page, by name."""
    found = {}
    for entry in files("esper.nissa").joinpath("page").iterdir():
        media_type = _TYPES.get(PurePosixPath(entry.name).suffix)
        if media_type is not None:
            body = entry.read_bytes()
            digest = hashlib.sha256(body).hexdigest()[:32]
            found[entry.name] = PageFile(media_type, body, gzip.compress(body, mtime=0), digest)
    return found


async def index(request: Request) -> Response:
    """``GET /``."""
    return _send(page_files()[INDEX], request)


async def page_file(request: Request) -> Response:
    """``GET /page/{file}``; 404 for what is no file of the page."""
    file = page_files().get(request.path_params["file"])
    if file is None:
        raise HTTPException(404, "the page has no such file")
    return _send(file, request)


def _send(file: PageFile, request: Request) -> Response:
    compress = _takes_gzip(request.headers.get("accept-encoding", ""))
    tag = f'"{file.digest}{"-gzip" if compress else ""}"'
    headers = {**_HEADERS, "ETag": tag}
    if tag in (
        part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")
    ):
        return Response(status_code=304, headers=headers)
    if compress:
        headers["Content-Encoding"] = "gzip"
    return Response(file.compressed if compress else file.body, headers=headers, media_type=file.media_type)


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
