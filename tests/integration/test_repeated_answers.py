"""Answers that are repeated, over real connections: to whom, to what, and for how long."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from servers.api import running
from servers.tls import make_certificates
from waiting import LONG, until

from esper.errors import TokenRefused
from esper.nissa.api import kept_metrics
from esper.nissa.api.application import create_app
from esper.nissa.api.kept_metrics import KeptMetrics
from esper.nissa.api.monitor import Monitor
from esper.nissa.http import server as http_server
from esper.nissa.http.guard import Admission, Caller, Guard
from esper.nissa.http.repeats import RepeatingProtocol, Repeats
from esper.nissa.http.server import MetricsServer
from esper.nissa.http.tls import server_tls
from esper.nissa.runs import RunStore

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
LIVE = GET.replace(b"/metrics", b"/health/live")
TOKEN = GET[:-2] + b"Authorization: Bearer abc\r\n\r\n"


@dataclass
class Serving:
    """Metrics are how often they were ``computed``; ``reached`` are the requests to the application."""

    port: int = 0
    reached: list[str] = field(default_factory=list)
    computed: int = 0
    refused: TokenRefused | None = None
    taken: int = 0
    """Packets that the server has taken."""
    now: float = 0.0

    def monotonic(self) -> float:
        """The server's own clock."""
        return self.now

    def verify(self, _: str) -> Caller:
        if self.refused is not None:
            raise self.refused
        return Caller("anna", "viewer")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LONG)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    with serving(tmp_path, monkeypatch) as made:
        yield made


@contextlib.contextmanager
def serving(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext | None = None
) -> Iterator[Serving]:
    made = Serving()
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 10 * LONG)
    monkeypatch.setattr(kept_metrics, "time", made)
    monkeypatch.setattr(Repeats.__init__, "__kwdefaults__", {"clock": made.monotonic})
    take = RepeatingProtocol.data_received

    def taking(protocol: RepeatingProtocol, data: bytes) -> None:
        take(protocol, data)
        made.taken += 1

    monkeypatch.setattr(RepeatingProtocol, "data_received", taking)

    def compute(*_: object) -> tuple[bytes, str]:
        made.computed += 1
        return b"%d" % made.computed * 100, "text/plain"

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        made.reached.append(scope["method"] + scope["path"])
        await app(scope, receive, send)

    monkeypatch.setattr(Monitor, "metrics", compute)
    app = create_app(KeptMetrics(RunStore(folder), lambda: []))
    admission = Admission(made.verify, anonymous=Caller("anonymous", "viewer"))
    server = MetricsServer(Guard(counting, admission), port=0, tls=tls)
    made.port = int(server.url.rsplit(":", 1)[1])
    with running(server):
        yield made


def receive(connection: socket.socket, *, head: bool = False) -> tuple[int, bytes]:
    """The status and body of one answer, and not a byte of what comes after it."""
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        got += (piece := connection.recv(1))
        assert piece, got
    length = re.search(rb"content-length: (\d+)", got)
    assert length is not None
    body = b""
    while not head and len(body) < int(length[1]):
        body += connection.recv(int(length[1]) - len(body))
    return int(got[9:12]), body


def ask(connection: socket.socket, request: bytes) -> tuple[int, bytes]:
    connection.sendall(request)
    return receive(connection, head=request.startswith(b"HEAD"))


def ask_in_parts(connection: socket.socket, there: Serving, *packets: bytes) -> tuple[int, bytes]:
    for packet in packets:
        taken = there.taken
        connection.sendall(packet)
        until(lambda taken=taken: there.taken > taken)
    return receive(connection)


def silent(connection: socket.socket) -> bool:
    """Whether nothing more comes."""
    connection.settimeout(0.1)
    try:
        return not connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(LONG)


def known(connection: socket.socket, there: Serving) -> None:
    """Have the server know GET on this connection."""
    ask(connection, GET)
    ask(connection, GET)
    before = len(there.reached)
    ask(connection, GET)
    assert len(there.reached) == before, "it is not repeated at all"


def test_the_application_is_asked_again_when_its_answer_is_old(there: Serving) -> None:
    with there.connect() as connection:
        known(connection, there)
        asked = len(there.reached)
        there.now = 0.9 * kept_metrics.KEPT_SECONDS
        assert ask(connection, GET) == (200, b"1" * 100)
        assert len(there.reached) == asked
        there.now = kept_metrics.KEPT_SECONDS
        assert ask(connection, GET) == (200, b"2" * 100)
        assert len(there.reached) == asked + 1


def test_each_gets_what_it_asks_for(there: Serving) -> None:
    with there.connect() as connection, there.connect() as other:
        known(connection, there)
        assert b"ok" in ask(connection, LIVE)[1]
        assert ask(connection, HEAD) == (200, b"")
        assert ask(connection, HEAD) == (200, b"")
        before = len(there.reached)
        assert ask(connection, HEAD) == (200, b"")
        assert silent(connection)
        assert len(there.reached) == before
        assert len(ask(connection, GET)[1]) == 100
        ask(other, GET)
        assert len(there.reached) == before + 2, "another connection has no answer to repeat"
        assert ask(connection, GET.replace(b"metrics", b"metric"))[0] == 404


@pytest.mark.parametrize("parts", [(GET[:10], GET[10:]), (GET[:-1], GET[-1:])])
def test_a_request_in_parts_is_one_request(there: Serving, parts: tuple[bytes, ...]) -> None:
    with there.connect() as connection:
        known(connection, there)
        for _ in range(3):
            before = len(there.reached)
            assert ask_in_parts(connection, there, *parts)[0] == 200
            assert len(there.reached) == before + 1
        assert silent(connection)


def test_the_bytes_of_a_request_within_another_are_none(there: Serving) -> None:
    with there.connect() as connection:
        known(connection, there)
        assert ask_in_parts(connection, there, GET[:9], GET)[0] == 400
        assert silent(connection)
    with there.connect() as connection:
        known(connection, there)
        long = LIVE[:-2] + b"Content-Length: %d\r\n\r\n" % len(GET)
        assert b"ok" in ask_in_parts(connection, there, long, GET)[1]
        assert silent(connection)


@pytest.mark.parametrize("requests", [(GET, GET), (GET, LIVE), (LIVE, GET)])
def test_requests_that_come_together_are_answered_in_turn(
    there: Serving, requests: tuple[bytes, ...]
) -> None:
    with there.connect() as connection:
        known(connection, there)
        for _ in range(2):
            connection.sendall(b"".join(requests))
            bodies = [receive(connection)[1] for _ in requests]
            assert [b"ok" in body for body in bodies] == [request == LIVE for request in requests]
        assert silent(connection)


@pytest.mark.parametrize("expired", [True, False])
def test_a_token_is_asked_for_each_time(there: Serving, expired: bool) -> None:
    """So nothing is said once it has ended or was revoked."""
    with there.connect() as connection:
        known(connection, there)
        before = len(there.reached)
        assert [ask(connection, TOKEN)[0] for _ in range(4)] == [200] * 4
        assert len(there.reached) == before + 4
        there.refused = TokenRefused("no", expired=expired)
        assert ask(connection, TOKEN)[0] == 401


def test_over_tls_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_certificates(tmp_path)
    trusting = ssl.create_default_context(cafile=made.authority)
    with (
        serving(tmp_path, monkeypatch, server_tls(made.certificate, made.key)) as there,
        there.connect() as raw,
    ):
        connection = trusting.wrap_socket(raw, server_hostname="localhost")
        known(connection, there)
        assert {ask(connection, GET) for _ in range(5)} == {(200, b"1" * 100)}
        assert b"ok" in ask(connection, LIVE)[1]
        connection.close()
