"""The page at ``/``: static files, read once, sent as they are to whoever may see them.

No build step and no request to anywhere else: a strict Content-Security-Policy lets the page run its own
files and talk to its own server only. ``page/uPlot.*`` is uPlot, as its authors ship it, with its licence.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from string import Template

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

INDEX = "index.html"
SIGN_IN = "sign_in.html"

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


_HOW_TO_SIGN_IN = """<p>Whoever runs this server can issue one:</p>
<pre>esper token issue --person --role viewer --for NAME</pre>
<p>Then open this page with it, once:</p>
<pre>/?token=TOKEN</pre>"""

# Posted to the address of the page, with its fragment, which a browser carries on to where it is sent then.
_SIGN_IN = """<form method="post"><button autofocus>Sign in as $name</button></form>
<p>If that is not who you are, close this page: nothing has changed.</p>"""

_MAY = {
    "viewer": "read everything",
    "operator": "read everything, pause, resume and roll back runs, and tag kernels",
    "admin": "do everything",
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
    for entry in _folder().iterdir():
        media_type = _TYPES.get(PurePosixPath(entry.name).suffix)
        if media_type is not None and entry.name != SIGN_IN:
            body = entry.read_bytes()
            digest = hashlib.sha256(body).hexdigest()[:32]
            found[entry.name] = PageFile(media_type, body, gzip.compress(body, mtime=0), digest)
    return found


def _folder() -> Traversable:
    return files("esper.nissa").joinpath("page")


async def index(request: Request) -> Response:
    """``GET /``."""
    return _send(page_files()[INDEX], request)


async def page_file(request: Request) -> Response:
    """``GET /page/{file}``; 404 for what is no file of the page."""
    file = page_files().get(request.path_params["file"])
    if file is None:
        raise HTTPException(404, "the page has no such file")
    return _send(file, request)


def refused(status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """The page of who is not let in: in words what is wrong, and how to sign in."""
    title = {401: "Not signed in", 403: "Not allowed"}.get(status, "Not now")
    detail = f"{detail[:1].upper()}{detail[1:]}."
    return _in_words(status, title, detail, _HOW_TO_SIGN_IN if status == 401 else "", headers)


def sign_in(name: str, role: str) -> Response:
    """The page that asks whether to sign in by a link, which anybody may have made."""
    detail = f"Who is signed in as {name} may {_MAY[role]}, and what is done counts as done by {name}."
    form = Template(_SIGN_IN).substitute(name=html.escape(name))
    # With no referrer at all, browsers would hide from the server that its own page posts the form.
    return _in_words(200, f"Sign in as {name}?", detail, form, {"Referrer-Policy": "strict-origin"})


def _in_words(status: int, title: str, detail: str, more: str, headers: Mapping[str, str]) -> Response:
    """A page that needs no other file; ``more`` is markup."""
    template, policy = _sign_in()
    text = template.substitute(title=html.escape(title), detail=html.escape(detail), more=more)
    kept = {**_HEADERS, **headers, "Cache-Control": "no-store", "Content-Security-Policy": policy}
    return Response(text, status, kept, media_type=_TYPES[".html"])


@cache
def _sign_in() -> tuple[Template, str]:
    template = _folder().joinpath(SIGN_IN).read_text("utf-8")
    style = template[template.index("<style>") + len("<style>") : template.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    sources = f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'"
    return Template(template), f"{sources}; base-uri 'none'; frame-ancestors 'none'"


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
