"""``esper doctor`` and the metrics server: over TLS with a token, something else there, and a silent one."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from esper.assembly import server_check
from esper.assembly.server_check import check_server
from esper.errors import ServerError
from esper_cli.config import compose

ESPER = [sys.executable, "-m", "esper_cli"]


@contextmanager
def serving(folder: Path, *overrides: str) -> Iterator[int]:
    """The port of ``esper serve-metrics`` in ``folder``."""
    command = [*ESPER, "serve-metrics", *overrides, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = (re.search(r"https?://[^:]+:(\d+)", line) for line in process.stdout)
            yield next(int(found[1]) for found in said if found)
        finally:
            process.terminate()


def check(port: int, *overrides: str) -> str:
    return check_server(compose([f"nissa.port={port}", *overrides]))


def test_over_tls_and_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=elsewhere"
    files = ["-keyout", key, "-out", certificate]
    subprocess.run(["openssl", *make.split(), *files], check=True, capture_output=True)
    key.chmod(0o600)
    tls = [f"nissa.tls_certificate={certificate}", f"nissa.tls_key={key}"]
    issue = [*ESPER, "token", "issue", "--role", "viewer", "--for", "doctor"]
    token = subprocess.run(issue, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    with serving(tmp_path, "nissa.anonymous=none", *tls) as port:
        monkeypatch.setenv("ESPER_TOKEN", token)
        assert "metrics in" in check(port, *tls)
        monkeypatch.setenv("ESPER_TOKEN", "another")
        assert "asks for a token" in check(port, *tls)
        with pytest.raises(ServerError, match="does not answer as it should"):
            check(port)  # plain HTTP


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
