"""The server of a run under load, and held by clients that mean it no good.

Connections are opened that never say all they should, without and with TLS, while /health is asked again and
again; and a body is sent that is far too large. Then a run trains in a process of one thread, and another
process asks ``esper serve-metrics`` for /metrics, so many times a second on a schedule that does not wait for
answers. These windows change places with windows of silence: the epochs of both are compared. Exits 1 where a
goal is missed.

Run: PYTHONPATH=tests python -m drills.api_load [--rate 2000] [--seconds 60] [--windows 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import selectors
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import httpx
from servers.tls import Certificates, make_certificates

from esper.nissa.journal import JOURNAL_NAME, read_journal

CONNECTIONS = 16
HALF_OPEN = 300
MIB = 2**20


@dataclass(frozen=True)
class Load:
    """What a window of requests came to; times in seconds from when a request was due."""

    asked: int
    answered: int
    errors: int
    median: float
    p99: float


class _Asking(asyncio.Protocol):
    """One connection that asks when it is due, and again after the answer."""

    def __init__(self, request: bytes, due: Iterator[float], waits: list[float], errors: list[str]) -> None:
        self.request, self.due, self.waits, self.errors = request, due, waits, errors
        self.ended = asyncio.get_running_loop().create_future()
        self.got = b""
        self.at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._next()

    def _next(self) -> None:
        self.at = next(self.due, 0.0)
        if not self.at:
            self.ended.set_result(True)
            self.transport.close()
            return
        loop = asyncio.get_running_loop()
        loop.call_at(self.at, self.transport.write, self.request)

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, found, body = self.got.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if not found or (length and len(body) < int(length[1])):
            return
        self.got = b""
        self.waits.append(asyncio.get_running_loop().time() - self.at)
        if head[9:12] != b"200":
            self.errors.append(head[:60].decode())
        if b"connection: close" in head.lower():  # after a thousand requests; the next goes on
            self.ended.set_result(False)
            self.transport.close()
        else:
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.errors.append(f"connection lost: {error}")
            self.ended.set_result(False)


async def _ask(port: int, rate: float, seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    begin, asked = loop.time() + 0.1, int(rate * seconds)
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    waits: list[float] = []
    errors: list[str] = []

    async def one(place: int) -> None:
        due = iter([begin + number / rate for number in range(place, asked, CONNECTIONS)])
        done = False
        while not done:
            _, asking = await loop.create_connection(
                lambda: _Asking(request, due, waits, errors), "127.0.0.1", port
            )
            done = await asking.ended

    await asyncio.gather(*(one(place) for place in range(CONNECTIONS)))
    ordered = sorted(waits)
    return Load(asked, len(waits), len(errors), ordered[len(waits) // 2], ordered[int(len(waits) * 0.99)])


def _load(port: int, rate: float, seconds: float) -> Load:
    """As :func:`_ask`, in a process of its own."""
    command = [sys.executable, "-m", "drills.api_load", "--client", str(port), str(rate), str(seconds)]
    return Load(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


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


def _epochs(home: Path, begin: float, end: float) -> list[float]:
    """The seconds of the epochs that lie between."""
    (journal,) = home.glob(f"runs/*/{JOURNAL_NAME}")
    found = []
    for event in read_journal(journal)[0]:
        if event["event"] == "epoch":
            at = datetime.fromisoformat(event["at"]).timestamp()
            if begin <= at - event["seconds"] and at <= end:
                found.append(float(event["seconds"]))
    return found


def load(home: Path, rate: float, seconds: float, windows: int) -> bool:
    """Requests beside a run, window by window."""
    training = ["+experiment=smoke", "tolaria.epochs=100000", "tamiyo=never", "urza=memory"]
    with (
        _process("train", *training, home=home, OMP_NUM_THREADS="1"),
        _serving(home) as (url, _),
    ):
        while not list(home.glob(f"runs/*/{JOURNAL_NAME}")):
            time.sleep(0.2)
        time.sleep(10)
        port = httpx.URL(url).port or 0
        quiet, loaded, results = [], [], []
        for _ in range(windows):
            begin = time.time()
            time.sleep(seconds)
            quiet.append(statistics.median(_epochs(home, begin, time.time())))
            begin = time.time()
            results.append(_load(port, rate, seconds))
            loaded.append(statistics.median(_epochs(home, begin, time.time())))
            print(
                f"  {results[-1]}; epoch {quiet[-1]:.4f} s quiet, {loaded[-1]:.4f} s under load", flush=True
            )
    slower = statistics.median(b / a for a, b in zip(quiet, loaded, strict=True)) - 1
    errors = sum(result.errors + result.asked - result.answered for result in results)
    print(f"load: {rate:.0f} a second for {seconds:.0f} s: {errors} errors; training {slower:+.1%} slower")
    return errors == 0 and slower <= 0.02 and max(result.p99 for result in results) < 1


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
    """Run the drill, or be its client."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=2000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        port, rate, seconds = given.client
        print(json.dumps(asdict(asyncio.run(_ask(int(port), float(rate), float(seconds))))))
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        good = [
            half_open(home, None),
            half_open(home, make_certificates(home)),
            large_body(home),
            load(home, given.rate, given.seconds, given.windows),
        ]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
