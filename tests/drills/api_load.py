"""The server of a run under load, and held by clients that mean it no good.

Connections are opened that never say all they should, without and with TLS, while /health is asked again and
again; a body is sent that is far too large; /health is asked while all cores train. Then a run trains in a
process of one thread, and another process asks ``esper serve-metrics`` for /metrics, so many times a second
on a schedule that does not wait for answers. Each window has one of silence before it or after it, in turn,
so that what drifts is not taken for the load. The epochs of both are compared, by the clock and by what they
used of the processor, which tells more where others use the machine. Exits 1 where a goal is missed.

Run: PYTHONPATH=tests python -m drills.api_load [--only load] [--rate 2000] [--seconds 60] [--windows 4]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import httpx
from servers.tls import Certificates, make_certificates

from drills import load_client
from drills.load_client import Load
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal

HALF_OPEN = 300
SERVER_MS = 0.08
"""CPU of a request that the server may use."""

MIB = 2**20


def _load(port: int, rate: float, seconds: float) -> Load:
    """Requests of a process of its own."""
    command = [sys.executable, load_client.__file__, str(port), str(rate), str(seconds)]
    return Load(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def _cpu(pid: int) -> float:
    """Seconds of the processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _process(*arguments: str, home: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "esper_cli", *arguments]
    known = {**os.environ, "ESPER_HOME": str(home / ".esper"), **environment}
    with (home / f"{arguments[0]}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=home, env=known, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def _serving(home: Path, *overrides: str, verify: ssl.SSLContext | bool = True) -> Iterator[tuple[str, int]]:
    """The URL of ``esper serve-metrics`` and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    scheme = "http" if verify is True else "https"
    url = f"{scheme}://127.0.0.1:{port}"
    with _process("serve-metrics", "--port", str(port), *overrides, home=home) as process:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/health/live", verify=verify)
                break
            time.sleep(0.1)
        yield url, process.pid


@contextlib.contextmanager
def _training(home: Path, experiment: str = "smoke") -> Iterator[int]:
    """A run of one thread that goes on and on: its process, once it has begun."""
    training = [f"+experiment={experiment}", "tolaria.epochs=100000", "tamiyo=never", "urza=memory"]
    with _process("train", *training, home=home, OMP_NUM_THREADS="1") as process:
        while not list(home.glob(f"runs/*/{JOURNAL_NAME}")):
            time.sleep(0.2)
        time.sleep(10)
        yield process.pid


def _epoch(home: Path, pid: int, meanwhile: Callable[[], object]) -> tuple[float, float]:
    """Seconds of an epoch and those of the processor, of the epochs that lie within ``meanwhile``."""
    (journal,) = home.glob(f"runs/*/{JOURNAL_NAME}")
    begin, cpu = time.time(), _cpu(pid)
    meanwhile()
    end, cpu = time.time(), _cpu(pid) - cpu
    found, count = [], 0
    for event in read_journal(journal)[0]:
        if event["event"] == "epoch":
            at = datetime.fromisoformat(event["at"]).timestamp()
            count += begin <= at <= end
            if begin <= at - event["seconds"] and at <= end:
                found.append(float(event["seconds"]))
    return statistics.median(found), cpu / count


def load(home: Path, rate: float, seconds: float, windows: int) -> bool:
    """Requests beside a run, window by window, each beside one of silence."""
    results: list[Load] = []
    quiet, loaded, server_ms = [], [], []
    with _training(home, "resnet") as run, _serving(home) as (url, server):
        port = httpx.URL(url).port or 0

        def silence() -> None:
            quiet.append(_epoch(home, run, lambda: time.sleep(seconds)))

        def requests() -> None:
            cpu = _cpu(server)
            loaded.append(_epoch(home, run, lambda: results.append(_load(port, rate, seconds))))
            server_ms.append((_cpu(server) - cpu) / results[-1].asked * 1e3)

        for number in range(windows):
            for window in (requests, silence) if number % 2 else (silence, requests):
                window()
            print(f"  {_words(results[-1], server_ms[-1])}", flush=True)
            for name, (wall, used) in (("quiet", quiet[-1]), ("under load", loaded[-1])):
                print(f"  epoch {name}: {wall * 1e3:.2f} ms, CPU {used * 1e3:.2f} ms", flush=True)
    slower, more = (
        statistics.median(b[of] / a[of] for a, b in zip(quiet, loaded, strict=True)) - 1 for of in (0, 1)
    )
    errors = sum(result.errors for result in results)
    print(
        f"load: {rate:.0f} a second, {windows} x {seconds:.0f} s: {errors} errors; "
        f"training {slower:+.1%} slower, {more:+.1%} CPU"
    )
    late = max(result.p99 for result in results)
    return errors == 0 and slower <= 0.02 and statistics.median(server_ms) <= SERVER_MS and late < 1


def _words(result: Load, server_ms: float) -> str:
    median, p99, longest = (1e3 * each for each in (result.median, result.p99, result.longest))
    return (
        f"{result.asked} requests, {result.errors} errors; CPU a request: server {server_ms:.3f} ms, client "
        f"{result.cpu / result.asked * 1e3:.3f} ms; median {median:.1f} ms, 99 % {p99:.1f} ms, "
        f"longest {longest:.0f} ms"
    )


def busy(home: Path) -> bool:
    """/health of a server beside as many runs as there are cores."""
    with contextlib.ExitStack() as running:
        for number in range(os.cpu_count() or 1):
            (home / f"busy{number}").mkdir()
            running.enter_context(_training(home / f"busy{number}"))
        url, _ = running.enter_context(_serving(home))
        client = running.enter_context(httpx.Client(base_url=url))
        waits = []
        for _ in range(300):
            asked = time.monotonic()
            assert client.get("/health").status_code == 200
            waits.append(time.monotonic() - asked)
            time.sleep(0.05)
    median, longest = statistics.median(waits), max(waits)
    print(f"all cores train: /health median {median * 1e3:.0f} ms, longest {longest * 1e3:.0f} ms")
    return longest < 0.1


def half_open(home: Path, certificates: Certificates | None) -> bool:
    """Connections that never say all they should, and /health beside them."""
    overrides, verify, beginning = [], True, b"GET /health HTTP/1.1\r\nHost: a\r\nX: "
    context: ssl.SSLContext | bool = verify
    if certificates is not None:
        overrides = [f"nissa.tls_certificate={certificates.certificate}", f"nissa.tls_key={certificates.key}"]
        context = ssl.create_default_context(cafile=certificates.authority)
        beginning = b"\x16\x03\x01\x02\x00\x01\x00"
    with (
        _serving(home, *overrides, verify=context) as (url, _),
        httpx.Client(base_url=url, verify=context) as client,
        contextlib.ExitStack() as opened,
    ):
        address = (httpx.URL(url).host, httpx.URL(url).port or 0)
        client.get("/health")
        began = time.monotonic()
        half = [opened.enter_context(socket.create_connection(address)) for _ in range(HALF_OPEN)]
        for connection in half[::2]:
            connection.sendall(beginning)
        waits = []
        with selectors.DefaultSelector() as left:
            for connection in half:
                left.register(connection, selectors.EVENT_READ)
            while left.get_map():
                asked = time.monotonic()
                assert client.get("/health").status_code == 200
                waits.append(time.monotonic() - asked)
                _forget_closed(left)
        gone = time.monotonic() - began
    how = "with TLS" if certificates else "plain"
    print(
        f"{HALF_OPEN} half-open connections, {how}: gone after {gone:.1f} s; /health {len(waits)} times, "
        f"median {statistics.median(waits) * 1e3:.0f} ms, longest {max(waits) * 1e3:.0f} ms"
    )
    return gone < 5 and max(waits) < 0.1


def _forget_closed(left: selectors.DefaultSelector) -> None:
    for key, _ in left.select(0.02):
        assert isinstance(key.fileobj, socket.socket)
        with contextlib.suppress(ConnectionError):
            if key.fileobj.recv(65536):
                continue
        left.unregister(key.fileobj)


def large_body(home: Path) -> bool:
    """400 MiB to an endpoint that takes 64 KiB."""
    with _serving(home) as (url, pid):
        host, port = httpx.URL(url).host, httpx.URL(url).port or 0
        httpx.post(f"{url}/api/v1/runs/a/pause", content=b"x" * 65536)
        before, sent = _held(pid), 0
        with socket.create_connection((host, port), timeout=20) as connection:
            length = 400 * MIB
            connection.sendall(
                b"POST /api/v1/runs/a/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                % length
            )
            with contextlib.suppress(ConnectionError):
                while sent < length:
                    connection.sendall(b"x" * 65536)
                    sent += 65536
            status = connection.recv(100)[9:12].decode()
        more = _held(pid) - before
    print(f"a body of 400 MiB: {status} after {sent / MIB:.1f} MiB, {more / MIB:.1f} MiB more memory")
    return status == "413" and more < 20 * MIB


def _held(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Run the drill."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=2000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--only", choices=["half-open", "body", "busy", "load"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        parts: dict[str, Callable[[], bool]] = {
            "half-open": lambda: half_open(home, None) & half_open(home, make_certificates(home)),
            "body": lambda: large_body(home),
            "busy": lambda: busy(home),
            "load": lambda: load(home, given.rate, given.seconds, given.windows),
        }
        good = [part() for name, part in parts.items() if given.only in (None, name)]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
