"""Kill the process that writes a journal at random moments, and look for events that it had acknowledged.

Two threads write as fast as they can while a sink of JSON lines takes everything; after each event is written
its number goes to the parent through a pipe. What came through the pipe must be in the journal, in order and
whole, and the next process goes on in the same file. Exits 1 otherwise.

    PYTHONPATH=tests python -m drills.journal_kills [--kills 200] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.nissa.journal import Journal
from esper.nissa.journal_reader import JournalReader
from esper.nissa.telemetry.json_lines import JsonLines
from esper.nissa.telemetry.telemetry import Telemetry

WRITERS = 2
EVENTS = ("seed", "epoch", "decision", "trial")
"""What is written in turn: one of them is synced."""


@dataclass
class Found:
    """Over all kills: events that were acknowledged, how many are missing, lines cut off by a kill."""

    acknowledged: int = 0
    missing: int = 0
    damaged: int = 0


def write(path: Path, process: int) -> None:
    """Write until killed, and say what was written."""
    with Journal(path) as journal:

        def allow(_: str, fields: Mapping[str, Any], __: str | None = None) -> Mapping[str, Any]:
            return fields

        sink = JsonLines(path.with_name("telemetry.jsonl"), "run")
        telemetry = Telemetry([sink], path, lambda: journal.end, allow=allow)

        def tell(writer: int) -> None:
            count = 0
            while True:
                journal.write(
                    EVENTS[count % len(EVENTS)], by=(process, writer, count), filler="x" * (count % 3000)
                )
                os.write(1, b"%d %d %d\n" % (process, writer, count))
                telemetry.step({"n": count})
                count += 1

        threads = [threading.Thread(target=tell, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def drill(folder: Path, kills: int, seed: int) -> Found:
    """Kill as many writers of one journal, one after another; what was found."""
    path, draw, found = folder / "journal.jsonl", random.Random(seed), Found()
    acknowledged: list[tuple[int, ...]] = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for process in range(kills):
        command = [sys.executable, "-m", "drills.journal_kills", "--write", str(path), str(process)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            first = child.stdout.readline()  # it has begun
            killer = threading.Timer(draw.uniform(0.0, 0.1), child.kill)
            killer.start()
            lines = [first, *child.stdout]
            killer.join()
        acknowledged += [tuple(map(int, line.split())) for line in lines if line.endswith(b"\n")]
    reader = JournalReader(path)
    written = [tuple(event["by"]) for event in reader.read()]
    found.acknowledged, found.damaged = len(acknowledged), reader.damaged
    found.missing = len(set(acknowledged) - set(written))
    for one in {event[:2] for event in written}:
        counts = [event[2] for event in written if event[:2] == one]
        assert counts == list(range(len(counts))), "written twice, or out of order"
    return found


def main() -> None:
    """Drill, print, and exit with 1 if an acknowledged event is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        return write(Path(asked.write[0]), int(asked.write[1]))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = drill(Path(folder), asked.kills, asked.seed)
    took = time.monotonic() - began
    print(
        f"{asked.kills} kills in {took:.0f} s: {found.acknowledged:,} acknowledged events, "
        f"{found.missing} missing; {found.damaged} lines cut off by a kill"
    )
    raise SystemExit(found.missing > 0)


if __name__ == "__main__":
    main()
