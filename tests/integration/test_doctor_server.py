"""``esper doctor`` where something else listens in place of the metrics server, or says nothing."""

from __future__ import annotations

import os
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from esper.assembly import server_check
from esper.assembly.server_check import check_server
from esper.errors import SecurityError, ServerError
from esper.security import local_peers
from esper_cli.config import compose


def check(port: int) -> str:
    return check_server(compose([f"nissa.port={port}"]))


class _Another(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        live = self.path == "/health/live"
        body = b'{"status": "ok"}' if live else b"nonsense {"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return None


def test_a_token_is_not_shown_to_what_another_user_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_TOKEN", "secret")
    came = []

    class Noting(_Another):
        def do_GET(self) -> None:
            came.append((self.path, self.headers.get("Authorization")))
            super().do_GET()

    with HTTPServer(("127.0.0.1", 0), Noting) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServerError, match="cannot be read"):
            check(server.server_port)
        monkeypatch.setattr(local_peers, "_uid_of_peer", lambda _: os.getuid() + 1)
        with pytest.raises(SecurityError, match=f"another user .uid {os.getuid() + 1}. listens"):
            check(server.server_port)
        server.shutdown()
    live = ("/health/live", None)
    assert came == [live, ("/metrics", "Bearer secret"), live]


class _Unknown(_Another):
    def do_GET(self) -> None:
        self.send_error(404)


@pytest.mark.parametrize(
    ("handler", "words"),
    [(_Another, "metrics of .* cannot be read"), (_Unknown, "is not esper serve-metrics")],
)
def test_something_else_is_told_of(handler: type[BaseHTTPRequestHandler], words: str) -> None:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ServerError, match=words):
            check(server.server_port)
        server.shutdown()


def test_a_server_that_says_nothing_is_waited_for_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_check, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerError, match="timed out"):
        check(silent.getsockname()[1])
