"""Compile workers and their broker are killed while two commands ask for the same kernels.

Workers are ended with SIGKILL, at the rate that jobs end, and started again; so is the broker, a Redis server
with its append-only file, which loses up to a second of what it was told. Afterwards each kernel must be in
the library, once and whole. Workers are two ``esper worker`` of one process each; the two commands share a
library.

Run: PYTHONPATH=tests python -m drills.compile_workers --jobs 3000 --kills 40 --broker-kills 5
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice, product
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
from omegaconf import DictConfig
from servers.redis import RedisServer

from esper.assembly.kernels import build_pipeline, compile_pairs
from esper.assembly.storage import build_library
from esper.blueprint import Blueprint, parse_blueprint
from esper.errors import CorruptKernel
from esper.messages import Slot
from esper.urza.query import KernelQuery
from esper_cli.config import compose

SMALL: Blueprint = parse_blueprint(
    {
        "version": 1,
        "name": "small",
        "layouts": ["features"],
        "nodes": [{"id": "a", "op": "linear", "inputs": ["x"], "params": {"out": "out"}}],
        "output": "a",
    }
)
Pairs = list[tuple[Blueprint, Slot]]
WALL_SECONDS = 9


@dataclass(frozen=True)
class Report:
    """What became of it all; ``outcomes`` counts what workers stored."""

    jobs: int
    lost: int
    duplicates: int
    damaged: int
    outcomes: int
    workers_killed: int
    broker_killed: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.jobs} jobs, asked for by two commands at once, in {self.seconds:.0f} s; "
            f"{self.workers_killed} workers and the broker {self.broker_killed} times killed: "
            f"{self.lost} lost, {self.duplicates} duplicate kernels, {self.damaged} damaged; "
            f"{self.outcomes} outcomes stored by workers"
        )


class CompileWorkers:
    """Two ``esper worker`` processes, of which one may be killed and is started again."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self._folder = folder
        self._overrides = overrides
        self._started = count()
        self._processes = [self._start(), self._start()]

    def kill(self, index: int) -> None:
        """SIGKILL; nothing of it has a chance to clean up."""
        index %= len(self._processes)
        self._processes[index].kill()
        self._processes[index].join()
        self._processes[index] = self._start()

    def outcomes(self) -> int:
        """How many they say that they have stored."""
        return sum(log.read_text().count(": compiled (") for log in self._folder.glob("worker*.log"))

    def close(self) -> None:
        """End them as Ctrl-C does."""
        for process in self._processes:
            os.kill(process.pid or 0, signal.SIGINT)
        for process in self._processes:
            process.join(30)

    def _start(self) -> BaseProcess:
        log = self._folder / f"worker{next(self._started)}.log"
        return forked.begun("worker", "--workers", "1", *self._overrides, log=log, cwd=self._folder)


def drill(folder: Path, server: RedisServer, *, jobs: int, kills: int, broker_kills: int) -> Report:
    """Run it in ``folder``; ``server`` runs, with an append-only file."""
    began = time.monotonic()
    sizes = islice(product(range(2, 3 + jobs // 60), range(2, 62)), jobs)
    pairs = [(SMALL, Slot("features", inputs, outputs)) for inputs, outputs in sizes]
    (folder / "broker").write_text(server.url)
    overrides = [
        f"tezzeret.engine.broker=file:{folder}/broker",
        f"tezzeret.engine.visibility_seconds={WALL_SECONDS + 1}",
        f"tezzeret.limits.wall_seconds={WALL_SECONDS}",
        "tezzeret.engine.at_once=32",
        "tezzeret.nice=0",
        f"urza.url=sqlite:///{folder}/kernels.db",
        f"security.path={folder}/keys.json",
    ]
    cfg = compose(["tezzeret/engine=celery", *overrides])
    with closing(CompileWorkers(folder, overrides)) as workers, ThreadPoolExecutor(3) as threads:
        ends = threading.Event()
        schedule = _schedule(kills, broker_kills)
        killing = threads.submit(_kill, schedule, workers, server, lambda: workers.outcomes() / jobs, ends)
        try:
            for asking in [threads.submit(_ask, cfg, pairs), threads.submit(_ask, cfg, pairs)]:
                asking.result()
        finally:
            ends.set()
        killed = killing.result()
    found, damaged = _stored(cfg)
    return Report(
        jobs=jobs,
        lost=jobs - len(found),
        duplicates=found.total() - len(found),
        damaged=damaged,
        outcomes=workers.outcomes(),
        workers_killed=killed["worker"],
        broker_killed=killed["broker"],
        seconds=time.monotonic() - began,
    )


def _schedule(kills: int, broker_kills: int) -> list[tuple[float, str, int]]:
    """At which share of the jobs who is killed."""
    workers = [((number + 0.5) / kills, "worker", number) for number in range(kills)]
    return sorted(
        [*workers, *(((number + 0.7) / broker_kills, "broker", 0) for number in range(broker_kills))]
    )


def _kill(
    schedule: list[tuple[float, str, int]],
    workers: CompileWorkers,
    server: RedisServer,
    share_done: Callable[[], float],
    ends: threading.Event,
) -> Counter[str]:
    killed: Counter[str] = Counter()
    for share, who, number in schedule:
        while share_done() < share and not ends.wait(0.05):
            pass
        if ends.is_set():
            break
        if who == "worker":
            workers.kill(number)
        else:
            server.kill()
            time.sleep(0.5)
            server.start()
        killed[who] += 1
    return killed


def _ask(cfg: DictConfig, pairs: Pairs) -> None:
    with closing(build_library(cfg)) as library:
        compile_pairs(cfg, library, build_pipeline(cfg), pairs, lambda _: None, print)


def _stored(cfg: DictConfig) -> tuple[Counter[Slot], int]:
    """How many kernels each slot has in the library, and how many are not whole."""
    damaged = 0
    with closing(build_library(cfg)) as library:
        kernels = library.query(KernelQuery())
        for kernel in kernels:
            try:
                library.verify(kernel.kernel_id)
            except CorruptKernel:
                damaged += 1
    return Counter(kernel.slot for kernel in kernels), damaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("jobs", 40), ("kills", 3), ("broker-kills", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, closing(durable_redis()) as server:
        server.start()
        print(
            drill(Path(folder), server, jobs=given.jobs, kills=given.kills, broker_kills=given.broker_kills)
        )


def durable_redis() -> RedisServer:
    """A server, not yet started, that keeps what it was told, but for the last second."""
    return RedisServer("--appendonly", "yes", "--appendfsync", "everysec")


if __name__ == "__main__":
    main()
