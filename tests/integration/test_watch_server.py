"""``esper watch --url``: a run of a real server, over TLS and with a token, over a network that fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
from servers.proxy import Proxy
from waiting import LONG, until

from esper.assembly.server_check import check_server
from esper.errors import RunError, ServerError
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.security import local_peers
from esper_cli import watch_remote
from esper_cli.app import run
from esper_cli.config import compose
from esper_cli.watch_remote import server_sent_events

ENDED, GOING = "20261128-100000-ended-0000", "20261128-110000-going-0000"
ESPER = [sys.executable, "-m", "esper_cli"]


def begin(folder: Path, run_id: str) -> Journal:
    (folder / run_id).mkdir(parents=True)
    journal = Journal(folder / run_id / JOURNAL_NAME, fsync=False)
    layers = {"a": {"kind": "linear", "seeds": 2}}
    journal.write(
        "run_started", run_id=run_id, experiment="smoke", task="digits", seed=0, total_epochs=9, parameters=1,
        resumed_from_epoch=None, layers=layers,
    )  # fmt: skip
    return journal


def finish_epoch(journal: Journal, epoch: int) -> None:
    packet = {"epoch": epoch, "loss": 1 / (epoch + 1), "held_out_loss": 1.0, "accuracy": 0.5}
    packet |= {"layer_metrics": {}, "total_epochs": 9}
    journal.write("epoch", packet=packet, seconds=1, samples_per_second=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("watched")
    with begin(made / "runs", ENDED) as journal:
        for epoch in range(9):
            finish_epoch(journal, epoch)
        journal.write("run_finished", summary={})
    return made


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Path:
    """Signed by itself, for 127.0.0.1; its key lies beside it."""
    made, key = folder / "certificate.pem", folder / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=here"
    name = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", made]
    subprocess.run(["openssl", *words.split(), *name], check=True, capture_output=True)
    key.chmod(0o600)
    return made


@pytest.fixture(scope="module")
def port(folder: Path, certificate: Path) -> Iterator[int]:
    """Of ``esper serve-metrics`` in that folder, which lets nobody in without a token."""
    tls = [f"nissa.tls_certificate={certificate}", f"nissa.tls_key={folder / 'key.pem'}"]
    command = [*ESPER, "serve-metrics", "nissa.anonymous=none", *tls, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout is not None
            said = (re.search(r"https://[^:]+:(\d+)", line) for line in serving.stdout)
            port = next(int(found[1]) for found in said if found)
            assert os.getpriority(os.PRIO_PROCESS, serving.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5
            yield port
        finally:
            serving.terminate()


@pytest.fixture(scope="module")
def token(folder: Path) -> str:
    done = forked.esper("token", "issue", "--role", "viewer", "--for", "watcher", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.fixture
def proxy(port: int, token: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Before that server, with the token and the certificate at hand."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("ESPER_TOKEN", token)
    monkeypatch.setattr(watch_remote, "QUIET_SECONDS", 1.0)  # of a busy machine
    with Proxy(port) as made:
        yield made


def watch(proxy: Proxy, *arguments: str) -> int:
    return run(["watch", *arguments, "--url", f"https://127.0.0.1:{proxy.port}"])


def test_a_run_of_a_server_is_the_run_of_its_journal(
    proxy: Proxy, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(proxy, "20261128-10", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lines = (folder / "runs" / ENDED / JOURNAL_NAME).read_text().splitlines()
    assert events == [{"run_id": ENDED, **json.loads(line)} for line in lines]
    assert watch(proxy, ENDED, "--epoch", "4") == 0
    assert "epoch 4/9" in capsys.readouterr().out


def test_what_is_written_is_shown_once_though_the_connection_is_cut(
    proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + silent[0], sleep=time.sleep)
    monkeypatch.setattr(watch_remote, "time", clock)
    for name in ("ANSWER_SECONDS", "SILENCE_SECONDS", "LOST_SECONDS"):
        monkeypatch.setattr(watch_remote, name, LONG)
    monkeypatch.setattr(watch_remote, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(watch_remote, "STATUS_SECONDS", 0.1)
    connected: list[object] = []
    open_any = watch_remote._Server.open

    def open_one(server: Any, path: str, last_event: str | None = None) -> Any:
        answer = open_any(server, path, last_event)
        connected.extend([answer] if last_event else [])
        return answer

    monkeypatch.setattr(watch_remote._Server, "open", open_one)
    with begin(folder / "runs", GOING) as journal:
        finish_epoch(journal, 0)

        def go_on() -> None:
            for epoch in range(1, 9):
                if epoch in (3, 6):
                    until(lambda times=epoch // 3: len(connected) >= times)
                    silent[0] += 2 * LONG  # it counts since it was lost, not since the last event
                    proxy.cut_after(10)
                time.sleep(0.2)
                if epoch in (4, 7):
                    proxy.heal()
                finish_epoch(journal, epoch)
            journal.write("run_finished", summary={})

        writer = threading.Thread(target=go_on)
        writer.start()
        assert watch(proxy, GOING) == 0
        writer.join()
    lines = capsys.readouterr().out.splitlines()
    epochs = [line.split()[1] for line in lines if line.startswith("epoch")]
    assert epochs == [f"{epoch}/9" for epoch in range(1, 10)]
    assert lines[-1] == f"run {GOING}: finished"


def test_a_run_that_is_killed_is_told_of(
    proxy: Proxy, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = begin(folder / "runs", "20261128-120000-killed-0000")
    with closing(journal):
        threading.Timer(1.0, journal.close).start()
        assert watch(proxy, "20261128-12") == 1
    out = capsys.readouterr().out
    assert "stopped" in out
    assert "nothing was saved" in out


def test_who_has_no_token_is_not_let_in(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("", "x.y.z"):
        monkeypatch.setenv("ESPER_TOKEN", value)
        assert watch(proxy, ENDED) == 12
        said = capsys.readouterr().err
        assert "does not let us in" in said
        assert "Traceback" not in said


def test_esper_doctor_is_let_in_by_the_same_token(
    port: int, token: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = [f"nissa.tls_certificate={certificate}", f"nissa.tls_key={certificate.parent / 'key.pem'}"]
    monkeypatch.setenv("ESPER_TOKEN", token)
    assert "metrics in" in check_server(compose([f"nissa.port={port}", *tls]))
    monkeypatch.setenv("ESPER_TOKEN", "another")
    assert "asks for a token" in check_server(compose([f"nissa.port={port}", *tls]))
    with pytest.raises(ServerError, match="does not answer as it should"):
        check_server(compose([f"nissa.port={port}"]))  # in plain HTTP


def test_a_certificate_that_nobody_vouches_for_is_refused(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    assert watch(proxy, ENDED) == 7
    assert "Name the file of who signed its certificate: SSL_CERT_FILE=FILE" in capsys.readouterr().err


def test_a_server_that_is_gone_for_too_long_is_an_error(
    proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch_remote, "LOST_SECONDS", 1.0)
    with begin(folder / "runs", "20261128-130000-lost-0000"):
        threading.Timer(2.0, proxy.close).start()
        assert watch(proxy, "20261128-13") == 7
    assert "no answer from https://127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("http://127.0.0.1:1", 7, "Is esper serve-metrics running there?"),
        ("http://user:word@127.0.0.1", 2, "is not the address of a server"),
        ("file:///etc/passwd", 2, "is not the address of a server"),
        ("http://203.0.113.1:9464", 2, "the token would go unencrypted"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(
    url: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESPER_TOKEN", "t")
    assert run(["watch", "--url", url]) == code
    assert words in capsys.readouterr().err
    assert run(["watch", "latest", "runs=elsewhere", "--url", url]) == 2


class _Elsewhere(BaseHTTPRequestHandler):
    """Sends everybody to another address, where it notes who came, and answers nonsense there."""

    came: list[Any] = []  # noqa: RUF012

    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.came.append(self.headers.get("Authorization"))
        self.send_response(200 if self.path == "/elsewhere" else 302)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        return None


def test_the_token_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("ESPER_TOKEN", "secret")
        assert run(["watch", "--url", f"http://127.0.0.1:{server.server_port}"]) == 7
        assert _Elsewhere.came == []
        # Another user's process has the port: nothing at all is sent there.
        monkeypatch.setattr(local_peers, "_uid_of_peer", lambda _: os.getuid() + 1)
        monkeypatch.setattr(_Elsewhere, "do_GET", lambda self: self.came.append(self.path))
        assert run(["watch", "--url", f"http://127.0.0.1:{server.server_port}"]) == 12
        server.shutdown()
    assert _Elsewhere.came == []


class _Lines:
    def __init__(self, *lines: bytes) -> None:
        self._lines = iter(lines)

    def readline(self, _limit: int) -> bytes:
        return next(self._lines, b"")


def test_events_are_read_as_they_were_sent() -> None:
    stream: Any = _Lines(
        b"retry: 1000\n", b"\n", b": nothing new\n", b"\n", b"id: 7\n", b"event: seed\n",
        b'data: {"a": ": "}\n', b"\n", b"data: 2\r\n", b"\r\n", b"data: unfinished\n",
    )  # fmt: skip
    assert list(server_sent_events(stream)) == [("7", '{"a": ": "}'), ("", "2")]
    endless: Any = _Lines(b"x" * watch_remote.MAX_BYTES)
    with pytest.raises(RunError, match="an event of more"):
        next(server_sent_events(endless))
