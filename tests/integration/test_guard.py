"""Who is let in: every role at every endpoint, and everybody who should not be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.routing import Route
from token_attacks import Forge, attacks
from waiting import LONG

from esper.errors import SecurityError
from esper.nissa.api.application import create_app
from esper.nissa.api.endpoints import CALLER, ENDPOINTS
from esper.nissa.api.kept_metrics import REPEATABLE
from esper.nissa.api.monitor import Monitor
from esper.nissa.http.guard import RANKS, Admission, Caller, Guard
from esper.nissa.http.limits import RateLimit
from esper.nissa.http.tls import CERTIFICATE, HOLDS
from esper.nissa.runs import RunStore
from esper.security.audit import acting, actor
from esper.security.token_keys import TokenAuthority
from esper.security.token_trust import TrustedFile
from esper.security.tokens import ROLES, TokenRules, TokenVerifier, issue

RULES = TokenRules()
VIEWER = Caller("anonymous", "viewer")
OWN = ("origin", "http://localhost:9464")

ROLE_OF = {
    ("GET", "/"): "viewer",
    ("GET", "/page/{file}"): "viewer",
    ("GET", "/health"): "viewer",
    ("GET", "/health/live"): "public",
    ("GET", "/health/ready"): "viewer",
    ("GET", "/metrics"): "viewer",
    ("GET", "/api/v1/openapi.json"): "viewer",
    ("GET", "/api/v1/status"): "viewer",
    ("GET", "/api/v1/adaptations"): "viewer",
    ("GET", "/api/v1/runs"): "viewer",
    ("GET", "/api/v1/runs/{run_id}"): "viewer",
    ("GET", "/api/v1/runs/{run_id}/history"): "viewer",
    ("GET", "/api/v1/kernels"): "viewer",
    ("GET", "/api/v1/kernels/{kernel_id}"): "viewer",
    ("GET", "/api/v1/compilations"): "viewer",
    ("GET", "/api/v1/events"): "viewer",
    ("POST", "/api/v1/runs/{run_id}/pause"): "operator",
    ("POST", "/api/v1/runs/{run_id}/resume"): "operator",
    ("POST", "/api/v1/runs/{run_id}/rollback"): "operator",
    ("POST", "/api/v1/kernels/{kernel_id}/tags"): "operator",
}
"""Written out a second time: who changes the table changes this, and thinks twice."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    cookies: list[str]
    body: bytes
    reached: dict[str, Any] | None
    """The scope that the application behind the guard was called with."""


@dataclass
class Gate:
    """A guard before an application that says nothing but that it was reached."""

    folder: Path
    admission: Admission = field(init=False)
    authority: TokenAuthority = field(init=False)
    actors: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority = TokenAuthority(self.folder / "token_keys.json", self.folder / "tokens.json")
        self.authority.signing_key()
        trusted, verifier = TrustedFile(self.folder / "tokens.json"), TokenVerifier(RULES)

        def verify(token: str) -> Caller:
            holder = verifier.verify(token, trusted())
            return Caller(holder.name, holder.role)

        self.admission = Admission(verify, acting=acting)

    def token(self, role: str) -> str:
        return issue(self.authority, RULES, name="anna", role=role)[0]

    def ask(
        self,
        method: str = "GET",
        path: str = "/metrics",
        *headers: tuple[str, str],
        host: str | None = "localhost:9464",
        query: str = "",
        client: str = "127.0.0.1",
        **more: Any,
    ) -> Answer:
        given = [*([("host", host)] if host is not None else []), *headers]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("utf-8", "surrogatepass")) for name, value in given],
            "client": (client, 1234),
            "server": ("127.0.0.1", 9464),
            "scheme": "http",
            "root_path": "",
            **more,
        }
        return asyncio.run(self._ask(scope))

    async def _ask(self, scope: dict[str, Any]) -> Answer:
        reached, sent = [], []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            reached.append(scope)
            self.actors.append(actor())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def send(message: Any) -> None:
            sent.append(message)

        await Guard(app, self.admission)(scope, _receive, send)
        given = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
        cookies = [value for name, value in given if name == "set-cookie"]
        found = reached[0] if reached else None
        return Answer(sent[0]["status"], dict(given), cookies, sent[1]["body"], found)


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def header(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"


def cookie(token: str) -> tuple[str, str]:
    return "cookie", f"theme=dark; esper_token={token}"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"))


def open_gate(folder: Path, anonymous: Caller | None = VIEWER) -> Gate:
    """One that nobody may go through as a viewer."""
    gate = Gate(folder)
    gate.admission = replace(gate.admission, anonymous=anonymous)
    return gate


# The matrix


def test_the_table_has_every_endpoint_that_there_is_and_no_other(tmp_path: Path) -> None:
    table = {(row.method, row.path): row.role for row in ENDPOINTS}
    assert table == ROLE_OF
    app = create_app(Monitor(RunStore(tmp_path), lambda: []))
    there = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert len(app.routes) == len(ENDPOINTS)
    assert there == set(ROLE_OF)


@pytest.mark.parametrize("show", [header, cookie])
@pytest.mark.parametrize("role", ROLES)
def test_every_role_at_every_endpoint(gate: Gate, role: str, show: Callable[[str], tuple[str, str]]) -> None:
    token = gate.token(role)
    origin = ("origin", "http://localhost:9464")
    wrong = []
    for (method, path), needed in ROLE_OF.items():
        for asked in (method, "HEAD") if method == "GET" else (method,):
            answer = gate.ask(asked, path.replace("{", "").replace("}", ""), show(token), origin)
            allowed = RANKS[role] >= RANKS[needed]
            if (answer.reached is not None, answer.status) != (allowed, 200 if allowed else 403):
                wrong.append((asked, path, answer.status))
            if answer.reached is not None and needed != "public":
                assert answer.reached[CALLER] == Caller("anna", role)  # type: ignore[arg-type]
    assert wrong == []


@pytest.mark.parametrize("anonymous", [None, VIEWER])
def test_nobody_at_every_endpoint(tmp_path: Path, anonymous: Caller | None) -> None:
    gate = open_gate(tmp_path, anonymous)
    for (method, path), needed in ROLE_OF.items():
        answer = gate.ask(method, path.replace("{", "").replace("}", ""))
        allowed = needed == "public" or (needed == "viewer" and anonymous is not None)
        assert (answer.reached is not None) == allowed, path
        assert answer.status == (200 if allowed else 401)
        if not allowed:
            assert answer.headers["www-authenticate"] == 'Bearer realm="esper"'
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/nope", "/api/v2/status", "/metrics/", "/health/live/x", "//health/live", "/HEALTH/LIVE"]
)
def test_what_is_not_there_is_told_to_viewers_only(gate: Gate, path: str) -> None:
    assert gate.ask("GET", path).status == 401
    assert gate.ask("GET", path, header(gate.token("viewer"))).reached is not None


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"])
def test_so_are_methods(gate: Gate, method: str) -> None:
    assert gate.ask(method, "/health/live").status == 401
    assert gate.ask(method, "/api/v1/runs/a/pause").status == 401


def test_what_is_asked_for_is_what_is_routed_whatever_a_client_calls_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions of Starlette join Host and path and read that anew: a path in the Host then counts."""
    gate = open_gate(tmp_path, None)
    gate.admission = replace(gate.admission, hosts=None)
    token = gate.token("viewer")
    for path, query in (("/health/live", ""), ("/", f"token={token}")):
        monkeypatch.setattr(Request, "url", URL(f"https://x{path}"))
        answer = gate.ask("GET", "/metrics", host=f"x{path}?", query=query)
        assert (answer.status, answer.reached) == (401, None)
    monkeypatch.setattr(Request, "url", URL("https://x/metrics"))
    assert gate.ask("GET", "/health/live", host="x/metrics?").status == 200


# What is shown


def test_attacks_do_not_come_in_by_header_or_cookie(tmp_path: Path) -> None:
    gate = open_gate(tmp_path)
    forge = Forge.at(tmp_path)
    assert gate.ask("GET", "/metrics", header(forge.good)).reached is not None
    came_in = []
    for name, token in attacks(forge).items():
        if not token.isascii() or not token:
            continue  # no server passes such a header on
        for show in (header, cookie):
            answer = gate.ask("GET", "/metrics", show(token))
            # A cookie ends at these: what is left is a whole token again, or none.
            whole = show is cookie and token.strip(" \n\0;") != token
            if answer.reached is not None and not whole:
                came_in.append((name, show.__name__))
            assert token not in answer.body.decode() + str(answer.headers)
    assert came_in == []


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer  {}",
        "Bearer\t{}",
        "BearerX {}",
        "Basic {}",
        "Token {}",
        "{}",
        "Bearer {} x",
        "Bearer {},{}",
        "Bearer {}\n",
        " Bearer {}",
    ],
)
def test_other_schemes_and_spellings_are_refused(gate: Gate, value: str) -> None:
    answer = gate.ask("GET", "/metrics", ("authorization", value.replace("{}", gate.token("admin"))))
    assert (answer.status, answer.reached) == (401, None)
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_in_any_case(gate: Gate, scheme: str) -> None:
    assert gate.ask("GET", "/metrics", ("authorization", f"{scheme} {gate.token('viewer')}")).status == 200


def test_nothing_stands_in_for_a_token_that_is_not_valid(tmp_path: Path) -> None:
    gate = open_gate(tmp_path)
    good, bad = gate.token("admin"), "a.b.c"
    for shown in (
        [header(bad)],
        [cookie(bad)],
        [header(bad), cookie(good)],
        [header(good), header(good)],
        [header(good), header(bad)],
        [header(bad), header(good)],
    ):
        assert gate.ask("GET", "/metrics", *shown).reached is None
    cleared = gate.ask("GET", "/metrics", cookie(bad)).headers["set-cookie"]
    assert cleared.startswith("esper_token=")
    assert "Max-Age=0" in cleared


def test_a_token_in_the_address_is_for_the_page_alone(gate: Gate) -> None:
    token = gate.token("admin")
    for method, path in (("GET", "/metrics"), ("POST", "/"), ("HEAD", "/"), ("GET", "/page/x")):
        assert gate.ask(method, path, OWN, query=f"token={token}").reached is None
    answer = gate.ask("GET", "/", query=f"a=1&token={token}&b=2")
    assert (answer.status, answer.headers["location"], answer.reached) == (303, "/?a=1&b=2", None)
    kept = answer.headers["set-cookie"]
    assert kept.startswith(f"esper_link={token}; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=120"} <= set(kept.split("; "))
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert gate.ask("GET", "/", query="token=a.b.c").status == 401
    assert gate.ask("GET", "/", query=f"token={token}&token={token}").status == 400


def test_a_link_signs_in_once_it_is_confirmed_on_a_page_that_says_whose_it_is(gate: Gate) -> None:
    token = gate.token("operator")
    waiting = ("cookie", f"esper_link={token}")
    asked = gate.ask("GET", "/", waiting)
    assert (asked.status, asked.reached, "set-cookie" in asked.headers) == (200, None, False)
    assert b"Sign in as anna?" in asked.body
    assert b"roll back runs" in asked.body
    policy = asked.headers["content-security-policy"].split("; ")
    assert {"form-action 'self'", "frame-ancestors 'none'"} <= set(policy)
    # Which somebody else's page cannot do, nor what hides where it is from.
    for shown in (
        [],
        [("origin", "null")],
        [("origin", "https://evil.example")],
        [("sec-fetch-site", "none")],
    ):
        posted = gate.ask("POST", "/", waiting, *shown)
        assert (posted.status, "set-cookie" in posted.headers) == (403, False)
    posted = gate.ask("POST", "/", waiting, OWN, query="b=2")
    assert (posted.status, posted.headers["location"], posted.reached) == (303, "/?b=2", None)
    kept, forgotten = posted.cookies
    assert kept.startswith(f"esper_token={token}; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(kept.split("; "))
    assert "Max-Age" not in kept
    assert forgotten.startswith("esper_link=")
    assert "Max-Age=0" in forgotten


def test_a_link_that_waits_is_good_for_nothing_else(tmp_path: Path) -> None:
    gate = open_gate(tmp_path, None)
    waiting = ("cookie", f"esper_link={gate.token('admin')}")
    assert gate.ask("GET", "/metrics", waiting).status == 401
    assert gate.ask("POST", "/api/v1/runs/a/pause", waiting, OWN).status == 401
    for method in ("GET", "POST"):
        expired = gate.ask(method, "/", ("cookie", "esper_link=a.b.c"), OWN)
        assert (expired.status, expired.headers["set-cookie"].split("=")[0]) == (401, "esper_link")
        assert "Max-Age=0" in expired.headers["set-cookie"]


def test_over_tls_a_cookie_that_another_host_may_have_set_counts_for_nothing(tmp_path: Path) -> None:
    gate = open_gate(tmp_path, None)
    token = gate.token("viewer")
    assert gate.ask("GET", "/metrics", cookie(token), scheme="https").status == 401
    waiting = ("cookie", f"__Host-esper_link={token}")
    kept = gate.ask("POST", "/", waiting, ("sec-fetch-site", "same-origin"), scheme="https").cookies[0]
    assert "Secure" in kept
    assert gate.ask("GET", "/metrics", ("cookie", kept.partition(";")[0]), scheme="https").status == 200


def test_a_certificate_is_as_good_as_the_configuration_says(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    gate.admission = replace(gate.admission, certificates={"scraper.internal": "viewer"})
    shown = {CERTIFICATE: ("other.internal", "scraper.internal")}
    reached = gate.ask("GET", "/metrics", **shown).reached
    assert reached is not None
    assert reached[CALLER] == Caller("scraper.internal", "viewer")
    assert gate.ask("POST", "/api/v1/runs/a/pause", **shown).status == 403
    assert gate.ask("GET", "/metrics", **{CERTIFICATE: ("other.internal",)}).status == 401
    assert gate.ask("POST", "/api/v1/runs/a/pause", header(gate.token("operator")), **shown).status == 200


def test_a_certificate_that_was_revoked_meanwhile_counts_no_more(tmp_path: Path) -> None:
    gate = open_gate(tmp_path)
    gate.admission = replace(gate.admission, certificates={"scraper.internal": "viewer"})
    shown = {CERTIFICATE: ("scraper.internal",), HOLDS: lambda: False}
    assert gate.ask("GET", "/metrics", **shown).status == 401, "nor as nobody, who may look"
    assert gate.ask("GET", "/metrics", **{**shown, HOLDS: lambda: True}).status == 200
    assert gate.ask("GET", "/metrics", header(gate.token("viewer")), **shown).status == 200


def test_who_acts_is_said_while_a_request_is_answered(gate: Gate) -> None:
    gate.actors.clear()
    gate.ask("GET", "/metrics", header(gate.token("viewer")))
    gate.ask("GET", "/health/live")
    assert gate.actors == ["token anna", None]


def test_where_no_token_can_be_verified_none_is_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(tmp_path)

    def broken(_: str) -> Caller:
        raise SecurityError("the file is damaged")

    token = gate.token("admin")
    gate.admission = replace(gate.admission, verify=broken)
    answer = gate.ask("GET", "/metrics", header(token))
    assert (answer.status, answer.reached) == (503, None)
    assert "damaged" not in answer.body.decode()
    assert "the file is damaged" in caplog.text
    assert token not in caplog.text


# Browsers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:80", 200),
        ("127.0.0.1:9464", 200),
        ("[::1]:9464", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("127.0.0.1.nip.io:9464", 421),
        ("", 421),
        (None, 400),
    ],
)
def test_a_name_that_a_stranger_made_lead_here_is_refused(
    tmp_path: Path, host: str | None, status: int
) -> None:
    gate = open_gate(tmp_path)
    assert gate.ask(host=host).status == status
    assert gate.ask("GET", "/health/live", host=host).status == status
    assert gate.ask("GET", "/health", ("host", "localhost")).status == 400  # twice


@pytest.mark.parametrize(
    ("headers", "by_cookie", "by_header"),
    [
        ([], 403, 200),
        ([("origin", "http://localhost:9464")], 200, 200),
        ([("sec-fetch-site", "same-origin")], 200, 200),
        ([("origin", "https://evil.example")], 403, 403),
        ([("origin", "http://localhost:9465")], 403, 403),
        ([("origin", "null")], 403, 403),
        ([("origin", "http://[")], 403, 403),
        ([("origin", "https://localhost:9464")], 200, 200),  # a proxy has taken TLS off
        ([("origin", "ftp://localhost:9464")], 403, 403),
        ([("sec-fetch-site", "cross-site")], 403, 403),
        ([("sec-fetch-site", "same-site")], 403, 403),
    ],
)
def test_a_page_from_elsewhere_changes_nothing(
    gate: Gate, headers: list[tuple[str, str]], by_cookie: int, by_header: int
) -> None:
    token = gate.token("admin")
    for shown, status in ((cookie(token), by_cookie), (header(token), by_header)):
        assert gate.ask("POST", "/api/v1/runs/a/pause", shown, *headers).status == status


def test_a_page_without_tls_changes_nothing_where_there_is_tls(gate: Gate) -> None:
    token = header(gate.token("admin"))
    for origin, status in (("http://localhost:9464", 403), ("https://localhost:9464", 200)):
        asked = gate.ask("POST", "/api/v1/runs/a/pause", token, ("origin", origin), scheme="https")
        assert asked.status == status


def test_no_web_socket_comes_in(gate: Gate) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError

    asyncio.run(Guard(app, gate.admission)({"type": "websocket", "path": "/"}, _receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# How often, and how long


def test_an_answer_may_be_repeated_only_where_nothing_but_the_request_counts(tmp_path: Path) -> None:
    gate, repeatable = open_gate(tmp_path), {REPEATABLE: print}
    gate.admission = replace(gate.admission, certificates={"prom": "viewer"}, hosts=None)
    token = gate.token("viewer")

    def kept(*headers: tuple[str, str], **more: Any) -> bool:
        answer = gate.ask("GET", "/metrics", *headers, **repeatable, **more)
        assert answer.status == 200
        assert answer.reached is not None
        return REPEATABLE in answer.reached

    assert kept()
    assert not kept(header(token))
    assert not kept(cookie(token))
    assert not kept(**{CERTIFICATE: ("prom",)})
    assert not kept(client="192.0.2.1")
    public = gate.ask("GET", "/health/live", client="192.0.2.1", **repeatable).reached
    assert REPEATABLE not in (public or repeatable)


def test_requests_are_limited_by_address_and_by_token_but_not_on_loopback(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    gate.admission = replace(gate.admission, hosts=None, rate=RateLimit(1, 3))
    token = header(gate.token("viewer"))
    assert {gate.ask("GET", "/metrics", token).status for _ in range(20)} == {200}
    answers = [gate.ask("GET", "/metrics", token, client=f"192.0.2.{n}") for n in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]  # one token, many addresses
    assert answers[-1].headers["retry-after"] == "1"
    answers = [gate.ask("GET", "/health/live", client=f"2001:db8::{n}") for n in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]  # one network


@pytest.mark.parametrize("by", ["token", "certificate"])
def test_a_stream_ends_with_its_token_or_certificate(tmp_path: Path, by: str) -> None:
    gate = Gate(tmp_path)
    gate.admission = replace(gate.admission, certificates={"scraper.internal": "viewer"})
    token, holder = issue(gate.authority, RULES, name="anna", role="viewer")
    sent: list[Any] = []
    revoked: list[bool] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    async def follow() -> None:
        headers = [(b"host", b"localhost")]
        if by == "token":
            headers.append((b"authorization", f"Bearer {token}".encode()))
        shown = {CERTIFICATE: ("scraper.internal",), HOLDS: lambda: not revoked}
        scope: dict[str, Any] = {
            **shown,
            "type": "http",
            "method": "GET",
            "path": "/api/v1/events",
            "headers": headers,
        }
        scope |= {"query_string": b"", "client": ("127.0.0.1", 1), "scheme": "http", "server": None}
        task = asyncio.create_task(Guard(endless, gate.admission)(scope, _receive, send))
        await asyncio.sleep(1.2)
        assert not task.done()
        revoked.append(True) if by == "certificate" else gate.authority.revoke(holder.id)
        await asyncio.wait_for(task, LONG)

    asyncio.run(follow())
    assert [message["type"] for message in sent] == ["http.response.start"]
