"""A real server on a free port, real HTTP, and the clients that mean it no good."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers.api import running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from waiting import LONG, until

from esper.errors import ConfigError, LibraryError, ServerError
from esper.messages import AdaptationDecision, CompilationRecord, Slot
from esper.nissa.api.application import create_app
from esper.nissa.api.monitor import Monitor
from esper.nissa.api.queries import MAX_LIMIT, AdaptationsQuery
from esper.nissa.http import server as http_server
from esper.nissa.http.listener import is_loopback
from esper.nissa.http.server import HEAD_SECONDS, MetricsServer
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.run_records import CacheTier
from esper.nissa.runs import RunStore

COMPILATIONS = [CompilationRecord("b", "b", Slot("features", 1, 1), "torchscript", "compiled", 0.03, "")]


def new_journal(root: Path, run_id: str) -> Journal:
    (root / run_id).mkdir(parents=True)
    journal = Journal(root / run_id / JOURNAL_NAME, fsync=False)
    journal.write(
        "run_started", run_id=run_id, experiment="smoke", layers={"a": {"kind": "linear", "seeds": 2}}
    )
    return journal


def decide(journal: Journal, epoch: int, status: str = "grafted") -> None:
    decision = AdaptationDecision("add_seed", "a", {"seed_idx": 0}, 0.9, 0.1, reason="plateau")
    outcome = {"status": status, "kernel_id": f"kernel_{epoch}", "reason": ""}
    journal.write("decision", epoch=epoch, decision=decision.to_json(), outcome=outcome)


def finish_epoch(journal: Journal, epoch: int) -> None:
    packet = {"epoch": epoch, "loss": 1 / (epoch + 1), "accuracy": 0.5, "layer_metrics": {}}
    journal.write("epoch", packet=packet, seconds=1, samples_per_second=100)


def serving(app: Starlette) -> AbstractContextManager[MetricsServer]:
    return running(MetricsServer(app, port=0))


@contextmanager
def client_of(
    root: Path, compilations: Callable[[], Sequence[CompilationRecord]] = lambda: COMPILATIONS
) -> Iterator[httpx.Client]:
    monitor = Monitor(RunStore(root, keep_packets=False), compilations)
    with serving(create_app(monitor)) as server, httpx.Client(base_url=server.url, timeout=LONG) as client:
        yield client


def gauge(text: str, name: str) -> list[float]:
    return [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]


# What it serves


def test_every_address_answers_before_the_first_run(tmp_path: Path) -> None:
    with client_of(tmp_path / "runs") as client:
        index = client.get("/")
        assert index.status_code == 200
        for path in ("/health", "/metrics", "/api/v1/status", "/api/v1/adaptations"):
            assert path in index.text
            assert client.get(path).status_code == 200
        assert client.get("/api/v1/adaptations").json() == {"total": 0, "adaptations": [], "next": None}
        assert client.head("/health").status_code == 200


def test_the_history_is_newest_first_limited_and_by_run(tmp_path: Path) -> None:
    with (
        new_journal(tmp_path, "20261123-100000-a-0000") as a,
        new_journal(tmp_path, "20261123-110000-b-0000") as b,
    ):
        for epoch in range(3):
            decide(a, epoch)
            time.sleep(0.002)  # times are in whole milliseconds
            decide(b, epoch, "refused")
            time.sleep(0.002)
    with client_of(tmp_path) as client:
        everything = client.get("/api/v1/adaptations").json()
        assert everything["total"] == 6
        assert [(item["run_id"][16], item["epoch"]) for item in everything["adaptations"]] == [
            ("b", 2),
            ("a", 2),
            ("b", 1),
            ("a", 1),
            ("b", 0),
            ("a", 0),
        ]
        newest = everything["adaptations"][0]
        assert newest["outcome"] == {"status": "refused", "kernel_id": "kernel_2", "reason": ""}
        assert newest["decision"]["reason"] == "plateau"
        two = client.get("/api/v1/adaptations", params={"limit": 2, "run": "20261123-10"}).json()
        assert two["total"] == 3
        assert [item["epoch"] for item in two["adaptations"]] == [2, 1]


def test_status_tells_of_components_and_runs(tmp_path: Path) -> None:
    with new_journal(tmp_path, "20261123-100000-a-0000") as journal:
        packet = {"epoch": 1, "loss": float("nan"), "accuracy": 0.5, "layer_metrics": {}}
        journal.write("epoch", packet=packet)
        journal.write("cache", tiers={"memory": (2, 1), "redis": CacheTier(0, 1, 4, "open")})
        with client_of(tmp_path) as client:
            response = client.get("/api/v1/status")
    assert "NaN," not in response.text.replace('"NaN"', "")
    status = response.json()
    assert status["status"] == "ok"
    names = [check["name"] for check in status["checks"]]
    assert names == ["runs folder", "journals", "kernel library", "disk", "newest run"]
    assert status["run_counts"] == {"running": 1}
    (run,) = status["runs"]
    assert (run["run_id"], run["status"], run["loss"]) == ("20261123-100000-a-0000", "running", "NaN")
    assert run["seeds"] == {"a": ["DORMANT", "DORMANT"]}
    assert run["cache"] == {
        "memory": {"hits": 2, "misses": 1, "errors": 0, "state": None},
        "redis": {"hits": 0, "misses": 1, "errors": 4, "state": "open"},
    }


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "limit: Input should be greater than or equal to 1, not '0'"),
        (f"limit={MAX_LIMIT + 1}", f"limit: Input should be less than or equal to {MAX_LIMIT}"),
        ("limit=-1", "limit: not a whole number, not '-1'"),
        ("limit=", "limit: not a whole number"),
        ("limit=1e2", "limit: not a whole number"),
        ("limit=%D9%A3", "limit: not a whole number"),
        ("limit=" + "9" * 5000, "limit: not a whole number"),
        ("limit=1&limit=2", "more than once"),
        ("lmit=1", "unknown query parameter 'lmit'; known: limit, cursor, run"),
        ("since=yesterday", "since: not a time in ISO 8601"),
        ("outcome=good", "outcome: Input should be 'performed'"),
        ("cursor=abc", "this cursor is of another list"),
    ],
)
def test_a_bad_query_is_a_clear_400(api: httpx.Client, query: str, message: str) -> None:
    response = api.get(f"/api/v1/adaptations?{query}")
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert message in response.json()["detail"]
    assert len(response.content) < 500


@pytest.mark.parametrize("path", ["/nope", "/api/v2/status", "/../etc/passwd", "/api/v1/adaptations?run=zz"])
def test_what_is_not_there_is_json_404(api: httpx.Client, path: str) -> None:
    response = api.get(path)
    assert response.status_code == 404
    assert response.json()["status"] == 404
    assert response.json()["hint"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(api: httpx.Client, method: str) -> None:
    response = api.request(method, "/metrics", content=b"x" * 60_000)
    assert response.status_code == 405
    assert "GET" in response.headers["allow"]
    assert response.json()["title"] == "Method Not Allowed"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("runs")
    new_journal(root, "20261123-100000-a-0000").close()
    with client_of(root) as client:
        yield client


# What goes wrong behind it


def test_a_library_that_fails_degrades_health_but_not_metrics(tmp_path: Path) -> None:
    def fail() -> list[CompilationRecord]:
        raise LibraryError("the database is damaged")

    with new_journal(tmp_path, "20261123-100000-a-0000") as journal, client_of(tmp_path, fail) as client:
        finish_epoch(journal, 1)
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "degraded"
        assert health.json()["reasons"] == ["kernel library: the database is damaged"]
        text = client.get("/metrics").text
        assert gauge(text, "esper_library_up") == [0]
        assert gauge(text, "esper_training_loss") == [0.5]


def test_a_library_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    release = threading.Event()

    def hang() -> list[CompilationRecord]:
        release.wait()
        return []

    try:
        with client_of(tmp_path, hang) as client:
            assert client.get("/health").status_code == 503
            assert gauge(client.get("/metrics").text, "esper_library_up") == [0]
    finally:
        release.set()


def test_an_error_of_ours_is_json_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[CompilationRecord]:
        raise ZeroDivisionError("secret detail")

    with client_of(tmp_path, broken) as client:
        response = client.get("/metrics")
    assert response.status_code == 500
    assert response.json()["status"] == 500
    assert "secret" not in response.text
    assert "secret detail" in caplog.text


def test_answers_are_sent_at_once() -> None:
    """A system waits 40 ms with the end of each, unless it is told not to."""
    with serving(Starlette()) as server, httpx.Client(base_url=server.url) as client:
        client.get("/")
        (connection,) = server._listener._accepted
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# While training writes


def test_scrapes_follow_a_run_that_is_being_written(tmp_path: Path) -> None:
    done = threading.Event()

    def train() -> int:
        with new_journal(tmp_path, "20261123-100000-a-0000") as journal:
            for epoch in itertools.count():
                finish_epoch(journal, epoch)
                decide(journal, epoch)
                if done.wait(0.002):
                    break
            journal.write("run_finished", summary={})
        return epoch + 1

    with client_of(tmp_path) as client:

        def scrape() -> None:
            counts: list[float] = []
            while len(set(counts)) < 20:
                response = client.get("/metrics")
                assert response.status_code == 200
                counts += gauge(response.text, "esper_adaptation_count")
                assert counts == sorted(counts)
                assert client.get("/api/v1/status").status_code == 200

        with ThreadPoolExecutor(5) as pool:
            training = pool.submit(train)
            try:
                for scraping in [pool.submit(scrape) for _ in range(4)]:
                    scraping.result()
            finally:
                done.set()
            epochs = training.result()
        text = client.get("/metrics").text
    assert gauge(text, "esper_adaptation_count") == [epochs]
    assert gauge(text, "esper_epoch") == [epochs - 1]


class OneAtATime:
    """What notices when two threads are in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._entered = threading.Lock()

    def __call__(self, *given: Any) -> Any:
        assert self._entered.acquire(blocking=False), "two threads in one store"
        try:
            time.sleep(0.01)
            return self._function(*given)
        finally:
            self._entered.release()


def test_threads_take_turns_at_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_journal(tmp_path, "20261123-100000-a-0000").close()
    store = RunStore(tmp_path)
    monkeypatch.setattr(store, "view", OneAtATime(store.view))
    monkeypatch.setattr(store.outlines, "begun", OneAtATime(store.outlines.begun))
    monitor = Monitor(store, lambda: COMPILATIONS)
    asks: list[Callable[[], object]] = [
        monitor.health,
        monitor.status,
        lambda: monitor.metrics(""),
        lambda: monitor.adaptations(AdaptationsQuery(limit=5)),
    ]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda ask: ask(), asks * 4))


# Clients that mean it no good


def until_closed(connection: socket.socket) -> None:
    """Take what comes until the server closes it; raises TimeoutError if it does not."""
    connection.settimeout(LONG)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is made in this test closes no connection because it is idle."""
    monkeypatch.setattr(http_server, "HEAD_SECONDS", 10 * LONG)


def test_half_open_connections_are_dropped_and_hold_nobody_up(api: httpx.Client) -> None:
    address = (api.base_url.host, api.base_url.port or 0)
    beginnings = [
        b"GET /hea",
        b"",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    sockets = [socket.create_connection(address) for _ in range(100)]
    try:
        for index, connection in enumerate(sockets):
            connection.sendall(beginnings[index % len(beginnings)])
        assert api.get("/health").status_code == 200
        for connection in sockets:
            until_closed(connection)
    finally:
        for connection in sockets:
            connection.close()


def test_a_request_head_that_drips_in_is_cut_off(api: httpx.Client) -> None:
    with socket.create_connection((api.base_url.host, api.base_url.port or 0)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        connection.settimeout(0.3)

        def cut_off() -> bool:
            try:
                connection.sendall(b"a")
                return not connection.recv(100)
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        until(cut_off)


def test_an_endless_head_is_refused(api: httpx.Client) -> None:
    assert api.get("/health", headers={"X-Long": "x" * 100_000}).status_code in (400, 431)


@pytest.mark.parametrize("head", [b"Content-Length: 104857600", b"Transfer-Encoding: chunked"])
def test_a_large_body_is_cut_off(api: httpx.Client, head: bytes) -> None:
    with socket.create_connection((api.base_url.host, api.base_url.port or 0), timeout=LONG) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n")
        piece = b"x" * 65536 if b"Length" in head else b"10000\r\n" + b"x" * 65536 + b"\r\n"

        def upload() -> None:
            for _ in range(1600):
                connection.sendall(piece)

        with pytest.raises(ConnectionError):
            upload()
    assert api.get("/health").status_code == 200


def test_a_slow_answer_is_not_cut_off() -> None:
    """The client is heard after it as well, and while it waits it has not left."""
    left: list[Any] = []

    async def answer(request: Request) -> Response:
        await request.body()
        if request.url.path == "/slow":
            with contextlib.suppress(TimeoutError):
                left.append(await asyncio.wait_for(request.receive(), HEAD_SECONDS + 0.5))
        return Response(request.url.path)

    def ask(connection: socket.socket, path: str) -> None:
        connection.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
        got = b""
        while not got.endswith(path.encode()):
            got += (piece := connection.recv(1000))
            assert piece, got

    with serving(Starlette(routes=[Route("/{path}", answer)])) as server:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        with socket.create_connection(address, timeout=LONG) as connection:
            ask(connection, "/slow")
            ask(connection, "/quick")
            until_closed(connection)
    assert left == []


@pytest.mark.usefixtures("patient")
def test_http_2_is_not_spoken() -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with serving(Starlette(routes=[Route("/", Response("here"))])) as server:
        address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        with socket.create_connection(address, timeout=LONG) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        with socket.create_connection(address, timeout=LONG) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 4")
            until_closed(connection)


# Start and stop


def big(request: Request) -> Response:
    return Response(b"x" * 50_000_000)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_a_client_that_does_not_take_its_answer_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("esper.nissa.http.listener.STALLED_SECONDS", 1)
    with serving(Starlette(routes=[Route("/big", big)])) as server:
        with socket.create_connection(
            ("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=LONG
        ) as stalled:
            stalled.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            until(lambda: server._listener.has_connections)
            until(lambda: not server._listener.has_connections)
            taken = 0
            with contextlib.suppress(ConnectionResetError):
                while piece := stalled.recv(1 << 20):
                    taken += len(piece)
        assert taken < 50_000_000
    assert caplog.text == ""


@pytest.mark.usefixtures("patient")
def test_stopping_waits_neither_for_idle_nor_for_stalled_clients() -> None:
    server = MetricsServer(Starlette(routes=[Route("/big", big)]), port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    with socket.create_connection(address) as stalled, socket.create_connection(address) as half:
        stalled.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        half.sendall(b"GET /bi")
        assert stalled.recv(10)
        server.stop()
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_server_stopped_before_it_runs_does_not_run() -> None:
    server = MetricsServer(Starlette(), port=0)
    server.stop()
    server.run()


def test_a_port_in_use_is_named_with_the_next_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError) as caught:
            MetricsServer(Starlette(), port=port)
    assert caught.value.message == f"port {port} on 127.0.0.1 is in use"
    assert f"--port {port + 1}" in str(caught.value.hint)
    assert f"sport = :{port}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("host", "port", "error"),
    [
        ("127.0.0.1", 65536, ConfigError),
        ("127.0.0.1", -1, ConfigError),
        ("192.0.2.1", 0, ServerError),
        ("no such host", 0, ServerError),
        ("x" * 300, 0, ServerError),
    ],
)
def test_an_address_that_cannot_be_had_is_one_clear_error(
    host: str, port: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        MetricsServer(Starlette(), host=host, port=port)


def test_it_listens_on_ipv6_too() -> None:
    try:
        server = MetricsServer(Starlette(), host="::1", port=0)
    except ServerError:
        pytest.skip("this machine has no IPv6")
    assert server.url.startswith("http://[::1]:")
    server.stop()
    server.run()


def test_loopback_is_what_only_this_machine_can_reach() -> None:
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        assert not is_loopback(host)


PROGRAM = """
import sys
from pathlib import Path
from esper.nissa.api.application import create_app
from esper.nissa.api.monitor import Monitor
from esper.nissa.runs import RunStore
from esper.nissa.http import server
server.HEAD_SECONDS = 1000
monitor = Monitor(RunStore(Path(sys.argv[1])), lambda: [])
server.MetricsServer(create_app(monitor), port=0).run(lambda url: print(url, flush=True))
print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/health").status_code == 200
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as half:
            half.sendall(b"GET /")
            process.send_signal(number)
            out, err = process.communicate(timeout=LONG)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_json_bodies_are_strict(api: httpx.Client) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    for path in ("/health", "/api/v1/status", "/api/v1/adaptations", "/nope"):
        json.loads(api.get(path).content, parse_constant=refuse)
