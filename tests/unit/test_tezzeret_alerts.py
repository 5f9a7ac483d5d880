"""One alert for a kernel that nothing gives: the log, a real server that hears of it, and hooks that fail."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tezzeret_support import MLP, SLOT, Hostile

from esper.errors import ConfigError
from esper.messages import CompilationRecord, KernelArtefact
from esper.tezzeret.alerts import FailureAlert
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.worker import compile_missing

RECORD = CompilationRecord(
    "blueprint_1",
    "mlp",
    SLOT,
    "torchscript",
    "failed",
    1.0,
    "2026-11-25",
    stage="compile",
    reason="no [torchscript, cpu]",
)


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[Any]]]:
    """An HTTP server, its address, and what was posted to it."""
    posted: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/hook?token=secret", posted
        finally:
            running.shutdown()
            thread.join()


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte a while, for ever: no single read takes long."""
    try:
        for _ in range(12):
            handler.wfile.write(b"H")
            handler.wfile.flush()
            time.sleep(0.5)
    except OSError:
        pass


def test_the_log_and_the_hook_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with server(status(204)) as (url, posted):
        FailureAlert(url, pytest.fail)(RECORD)
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR]
    assert caplog.messages == ["mlp for features 8->6 cannot be compiled: compile: no [torchscript, cpu]"]
    (body,) = posted
    assert body["event"] == "compilation_failed"
    assert (body["blueprint_name"], body["slot"]["in_features"], body["stage"]) == ("mlp", 8, "compile")


@pytest.mark.parametrize(
    ("answer", "reason"), [(status(500), "Internal Server Error"), (status(307, Location="/x"), "Redirect")]
)
def test_a_hook_that_refuses_is_told_of(answer: Any, reason: str) -> None:
    told: list[str] = []
    with server(answer) as (url, posted):
        FailureAlert(url, told.append)(RECORD)
    assert len(posted) == 1
    assert told[0].startswith("the alert about mlp did not reach 127.0.0.1: ")
    assert reason in told[0]
    assert "secret" not in told[0]


def test_a_hook_that_nobody_serves_or_that_is_slow_is_not_waited_for() -> None:
    told: list[str] = []
    FailureAlert("http://127.0.0.1:1/", told.append)(RECORD)
    assert "Connection refused" in told.pop()
    with server(drip) as (url, _):
        FailureAlert(url, told.append)(RECORD)
    assert told == ["the alert about mlp did not reach 127.0.0.1: it takes longer than 2 s"]


def test_only_http_addresses_are_taken() -> None:
    with pytest.raises(ConfigError, match="is no http"):
        FailureAlert("file:///etc/passwd")


class Library:
    """Takes everything in."""

    def __init__(self) -> None:
        self.kernels: list[str] = []
        self.records: list[CompilationRecord] = []

    def contains(self, kernel_id: str) -> bool:
        return kernel_id in self.kernels

    def put(self, artefact: KernelArtefact) -> None:
        self.kernels.append(artefact.metadata.kernel_id)

    def record_compilation(self, record: CompilationRecord) -> None:
        self.records.append(record)


def fail() -> None:
    raise RuntimeError("it fails on purpose")


def test_two_attempts_give_one_alert_and_name_their_configuration() -> None:
    alerts: list[CompilationRecord] = []
    library = Library()
    pairs = [(MLP, SLOT), (MLP, SLOT)]  # asked for twice, compiled once
    compile_missing(Pipeline(Hostile(fail)), library, pairs, on_failure=alerts.append)
    reasons = [str(record.reason) for record in library.records]
    assert [reason.partition("purpose")[2] for reason in reasons] == [
        " [torchscript, cpu, float32, optimised]",
        " [torchscript, cpu, float32, not optimised]",
    ]
    assert alerts == library.records[1:]
