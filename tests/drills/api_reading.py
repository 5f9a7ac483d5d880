"""How long the API takes to answer over many runs: at its first look at their folder, and after it.

Each first look is a new server's. CPU seconds are of this process, the client's among them; /health is asked
meanwhile, and what this process computes until it answers is how long that takes where nobody else computes.
Exits 1 when a list takes more than 200 ms the next time, the lists more than 150 MiB of memory, or /health
more than 100 ms of that.

    python -m drills.api_reading [--runs 200] [--events 10000]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx
from servers.api import served_in_a_thread
from unit.nissa_support import RunWriter

from esper.messages import SeedState
from esper.nissa.api.application import create_app
from esper.nissa.api.monitor import Monitor
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.runs import RunStore

LISTS = (
    "api/v1/runs",
    "api/v1/adaptations",
    "api/v1/runs?status=running",
    "api/v1/adaptations?outcome=kept&until=2100-01-01",
)
WHOLE = ("api/v1/runs/latest", "api/v1/status", "metrics")
WITHIN_MS = 200
WITHIN_MIB = 150
EPOCHS_A_TRIAL = 20
STATES = (*list(SeedState)[1:5], SeedState.CULLED, SeedState.EMBARGOED, SeedState.DORMANT)


def write_runs(root: Path, runs: int, events: int) -> int:
    """So many runs of so many events, each of another day; bytes of a journal."""
    first = write_run(root, "resnet-0000", events).read_bytes()
    for number in range(1, runs):
        day = date(2020, 1, 1) + timedelta(number)
        folder = root / f"resnet-{number:04}"
        folder.mkdir()
        (folder / JOURNAL_NAME).write_bytes(re.sub(rb'"at":"[0-9-]{10}', f'"at":"{day}'.encode(), first))
    return len(first)


def write_run(root: Path, run_id: str, events: int) -> Path:
    """An epoch with its cache and checkpoint, and a trial in one epoch of twenty."""
    with RunWriter(root, run_id) as run:
        run.started()
        for epoch in range(round(events / (3 + 9 / EPOCHS_A_TRIAL))):
            run.epoch(epoch)
            run.write("cache", tiers={"memory": {"hits": epoch, "misses": 1, "errors": 0, "state": None}})
            path = f"checkpoints/step-{epoch}"
            run.write("checkpoint", epoch=epoch, step=epoch, path=path, seconds=0.1, paused=0.01)
            if epoch % EPOCHS_A_TRIAL == 0:
                run.decision(epoch)
                for state in STATES:
                    run.seed(epoch, state)
                run.trial(epoch)
        run.write("run_finished", summary={})
        return run.path


def main() -> int:
    """Serve, ask, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--events", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = write_runs(root, asked.runs, asked.events)
        print(json.dumps({"runs": asked.runs, "journal_bytes": size}))
        with serving(root) as url, httpx.Client(base_url=url, timeout=60) as client:
            before = memory_mib()
            found = {path: again_ms(client, path) for path in LISTS}
            lists_mib = memory_mib() - before
            found |= {path: again_ms(client, path) for path in WHOLE}
            whole_mib = memory_mib() - before
        print(
            json.dumps({"again_ms": found, "lists_mib": lists_mib, "with_whole_mib": whole_mib}), flush=True
        )
        first = [first_look(root, path) for path in ("health/live", *LISTS, *WHOLE)]
    late = [look for look in first if look["health_cpu_ms"] > 100]
    return int(max(found[path] for path in LISTS) > WITHIN_MS or lists_mib > WITHIN_MIB or bool(late))


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """A new server over ``root``, at that address."""
    app = create_app(Monitor(RunStore(root, keep_packets=False), lambda: []))
    gc.collect()  # the server before this one is no part of what is measured
    gc.freeze()
    with served_in_a_thread(app) as server:
        yield server.url


def first_look(root: Path, path: str) -> dict[str, Any]:
    """Seconds until a new server answers, and the longest that /health took meanwhile."""
    with (
        serving(root) as url,
        httpx.Client(base_url=url, timeout=60) as client,
        health_asked(f"{url}/health") as longest,
    ):
        client.get("/health/live")
        time.sleep(0.2)
        cpu, wall = time.process_time(), time.perf_counter()
        while client.get(f"/{path}").status_code == 503:
            time.sleep(0.1)
        look = {
            "first": path,
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
        }
        time.sleep(0.5)
    look["health_ms"], look["health_cpu_ms"] = (
        round(1000 * max(took), 1) for took in zip(*longest, strict=True)
    )
    print(json.dumps(look), flush=True)
    return look


@contextmanager
def health_asked(url: str) -> Iterator[list[tuple[float, float]]]:
    """Ask ``url`` ten times a second over one connection; how long each answer took and how much this process
    computed meanwhile, in seconds, the first left out.
    """
    took: list[tuple[float, float]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client() as client:
            client.get(url)
            while not stop.wait(0.1):
                computed = time.process_time()
                took.append((seconds(client, url), time.process_time() - computed))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()


def again_ms(client: httpx.Client, path: str) -> float:
    """How long an answer takes that was given before, the best of nine."""
    while client.get(path).status_code == 503:
        time.sleep(0.1)
    return round(1000 * min(seconds(client, path) for _ in range(9)), 1)


def seconds(client: httpx.Client, path: str) -> float:
    """How long one answer takes."""
    began = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - began


def memory_mib() -> int:
    """What this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


if __name__ == "__main__":
    sys.exit(main())
