"""Requests a second at /metrics of ``esper serve-metrics``, and their latency, against prometheus_client's.

Both answer with as many families and series, those of some runs. The peer is ``start_http_server`` over
gauges in its memory, which it writes out for each request; ours reads the journals of the runs, one of which
goes on, and what it writes out may be a quarter of a second old. Each is a process of its own, asked from
here over a connection for each request, as the peer knows no others; a further row has ours over connections
that are kept, as Prometheus does. Goal: not below 1.0x in requests, not above 1.0x in the median latency of
one at a time.

Run: python benchmarks/metrics_endpoint.py [--runs N] [--requests N] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from prometheus_client import CollectorRegistry, Gauge, start_http_server
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "unit"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from nissa_support import RunWriter
from servers.redis import free_port

TOGETHER = 8
START_SECONDS = 60.0
GET = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: %s\r\n\r\n"


def serve_peer(port: int, source: Path) -> None:
    """What prometheus_client serves: the families and series of ``source``, a page of metrics."""
    registry = CollectorRegistry()
    for family in text_string_to_metric_families(source.read_text()):
        gauges: dict[str, Gauge] = {}
        for sample in family.samples:
            names = tuple(sample.labels)
            gauge = gauges.get(sample.name)
            if gauge is None:
                gauge = gauges[sample.name] = Gauge(
                    sample.name, family.documentation, names, registry=registry
                )
            (gauge.labels(*sample.labels.values()) if names else gauge).set(sample.value)
    _, thread = start_http_server(port, "127.0.0.1", registry)
    thread.join()


@contextmanager
def server(port: int, *command: str) -> Iterator[None]:
    """A process that answers at ``port``."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5):
                        break
                except OSError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise
                    time.sleep(0.1)
            yield
        finally:
            process.terminate()


async def ask(port: int, requests: int, *, kept: bool) -> list[float]:
    """Seconds of each of ``requests`` one after another."""
    took: list[float] = []
    reader = writer = None
    for _ in range(requests):
        began = time.perf_counter()
        if reader is None or writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % (port, b"keep-alive" if kept else b"close"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.partition(b"\r\n")[0], head
        if kept:
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.partition(b":")[2]))
        else:
            assert len(await reader.read(-1)) > 1000
            writer.close()
            reader = writer = None
        took.append(time.perf_counter() - began)
    if writer is not None:
        writer.close()
    return took


async def measure(port: int, requests: int, *, kept: bool = False) -> tuple[float, float]:
    """Requests a second of several at a time, and the median milliseconds of one at a time."""
    began = time.perf_counter()
    await asyncio.gather(*(ask(port, requests // TOGETHER, kept=kept) for _ in range(TOGETHER)))
    rate = requests / (time.perf_counter() - began)
    return rate, 1e3 * statistics.median(await ask(port, max(20, requests // 5), kept=kept))


def write_runs(root: Path, count: int) -> RunWriter:
    """``count`` runs that ended, and one that goes on while what is returned is open."""
    for index in range(count + 1):
        journal = RunWriter(root, f"20261128-1200{index:02}-bench-{index:04x}")
        journal.started()
        for epoch in range(10):
            journal.epoch(epoch)
        if index < count:
            journal.write("run_finished", summary={})
            journal.close()
    return journal


def main() -> None:
    """Compare, print, and exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        return serve_peer(int(asked.peer[0]), Path(asked.peer[1]))
    print(f"/metrics; load of this machine {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name, write_runs(Path(name) / "runs", asked.runs):
        ours, peer = free_port(), free_port()
        places = [f"runs={name}/runs", "urza=memory", f"security.path={name}/keys.json"]
        with server(ours, "-m", "esper_cli", "serve-metrics", *places, "--port", str(ours)):
            with urlopen(f"http://127.0.0.1:{ours}/metrics") as answer:
                page = answer.read()
            source = Path(name) / "page"
            source.write_bytes(page)
            with server(peer, __file__, "--peer", str(peer), str(source)):
                raise SystemExit(not compare(ours, peer, page.count(b"\n"), asked.requests, asked.rounds))


def compare(ours: int, peer: int, lines: int, requests: int, rounds: int) -> bool:
    """Print the figures of both; whether the goal is reached."""
    rows: dict[str, list[tuple[float, float]]] = {"peer": [], "ours": [], "ours, kept": []}
    for _ in range(rounds):
        rows["peer"].append(asyncio.run(measure(peer, requests)))
        rows["ours"].append(asyncio.run(measure(ours, requests)))
        rows["ours, kept"].append(asyncio.run(measure(ours, requests, kept=True)))
    for name, measured in rows.items():
        rate, latency = (statistics.median(each) for each in zip(*measured, strict=True))
        print(f"  {name:11} {rate:7,.0f} requests a second, {latency:6.2f} ms one at a time ({lines} lines)")
    both = list(zip(rows["peer"], rows["ours"], strict=True))
    rates = statistics.median(mine[0] / theirs[0] for theirs, mine in both)
    latencies = statistics.median(mine[1] / theirs[1] for theirs, mine in both)
    reached = rates >= 1.0 and latencies <= 1.0
    print(f"  ours to peer: requests {rates:.2f}x, latency {latencies:.2f}x")
    print(f"  goal: requests at least 1.0x, latency at most 1.0x: {'reached' if reached else 'MISSED'}")
    return reached


if __name__ == "__main__":
    main()
