"""How long the API takes to answer over many runs: at its first look at their folder, and after it.

Exits 1 when a list takes more than 100 ms then.

    python -m drills.api_reading [--runs 200] [--events 10000]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from unit.nissa_support import RunWriter

from esper.messages import SeedState
from esper.nissa.api.application import create_app
from esper.nissa.api.monitor import Monitor
from esper.nissa.http.server import MetricsServer
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.runs import RunStore

PATHS = ("runs", "runs?status=running", "adaptations", "adaptations?outcome=kept", "runs/latest", "status")
WITHIN_MS = 100
EPOCHS_A_TRIAL = 20
STATES = (*list(SeedState)[1:5], SeedState.CULLED, SeedState.EMBARGOED, SeedState.DORMANT)


def write_runs(root: Path, runs: int, events: int) -> int:
    """So many runs of so many events, of which the last goes on; bytes of a journal."""
    first = write_run(root, "20261128-100000-resnet-0000", events)
    for number in range(1, runs):
        folder = root / f"20261128-1{number // 3600}{number // 60 % 60:02}{number % 60:02}-resnet-{number:04}"
        folder.mkdir()
        shutil.copy(first, folder / JOURNAL_NAME)
    return first.stat().st_size


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
        app = create_app(Monitor(RunStore(root, keep_packets=False), lambda: []))
        server = MetricsServer(app, port=0, on_stop=app.state.hub.stop)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            found = measure(server.url)
        finally:
            server.stop()
            thread.join()
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"runs": asked.runs, "journal_bytes": size, "rss_mib": round(mebibytes), **found}))
    return int(max(found["ms"].values()) > WITHIN_MS)


def measure(url: str) -> dict[str, dict[str, float]]:
    """Seconds of the first look, and milliseconds of each list after it, the best of nine."""
    times: dict[str, float] = {}
    began = time.perf_counter()
    while httpx.get(f"{url}/api/v1/{PATHS[0]}", timeout=60).status_code == 503:
        time.sleep(0.2)
    first = time.perf_counter() - began
    with httpx.Client(base_url=f"{url}/api/v1/", timeout=600) as client:
        for path in PATHS:
            times[path] = round(1000 * min(seconds(client, path) for _ in range(9)), 1)
    return {"first": {"seconds": round(first, 1)}, "ms": times}


def seconds(client: httpx.Client, path: str) -> float:
    """How long one answer takes."""
    began = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
