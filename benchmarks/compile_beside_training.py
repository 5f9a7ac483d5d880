"""The time of a training step while a niced worker compiles one kernel after the other, against without.

The small ResNet of +experiment=resnet, batches of 128 images, one thread. Rounds with the worker busy and
idle alternate; times are on the clock on the wall, for a process that waits for a core uses none. What it
takes until a worker has ended its job is in no round. Goal: at most 1.05x on 2 cores.

Run: python benchmarks/compile_beside_training.py [--rounds N] [--nice N] [--workers N]
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from concurrent.futures import Future
from itertools import cycle
from pathlib import Path

import torch
from paired import paired, train_step

from esper.assembly.network import build_data, build_model
from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import Slot
from esper.tezzeret.jobs import CompileJob, Outcome
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.pool import NICE, WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget
from esper_cli.config import compose

SLOTS = [Slot("features", 64, 64), Slot("channels", 16, 16), Slot("channels", 16, 32, 2)]


class Compiling:
    """Keeps every worker of a pool busy while it is told to."""

    def __init__(self, pool: WorkerPool) -> None:
        blueprints = load_catalogue([Path(__file__).parents[1] / "blueprints"]).blueprints
        pipeline = Pipeline(TorchScriptTarget())
        self._jobs = cycle(
            CompileJob(pipeline, blueprint, slot) for slot in SLOTS for blueprint in fitting(blueprints, slot)
        )
        self._pool = pool
        self._going_on = False
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._under_way = 0
        self._waited = 0.0
        self.kernels = 0

    def go_on(self) -> None:
        """Have jobs done, one more than there are workers at once."""
        with self._lock:
            self._going_on, begin = True, not self._going_on
        if begin:
            for _ in range(self._pool.workers + 1):
                self._submit()

    def stop(self) -> None:
        """Return when no job is under way; the clock stands still until then."""
        began = time.perf_counter()
        with self._idle:
            self._going_on = False
            self._idle.wait_for(lambda: self._under_way == 0)
        self._waited += time.perf_counter() - began

    def clock(self) -> float:
        """Seconds, without those that :meth:`stop` has waited."""
        return time.perf_counter() - self._waited

    def _submit(self) -> None:
        with self._lock:
            self._under_way += 1
            job = next(self._jobs)
        self._pool.submit(job).add_done_callback(self._done)

    def _done(self, future: Future[Outcome]) -> None:
        assert future.result().artefact is not None, future.result()
        with self._idle:
            self._under_way -= 1
            self.kernels += 1
            again = self._going_on
            self._idle.notify_all()
        if again:
            self._submit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--nice", type=int, default=NICE)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cfg = compose(["+experiment=resnet"])
    data = build_data(cfg)
    step = train_step(build_model(cfg, data), data.train.x[:128], data.train.y[:128])
    print(f"{os.cpu_count()} cores, load before it {os.getloadavg()[0]:.1f}")
    with WorkerPool(given.workers, nice=given.nice) as pool:
        compiling = Compiling(pool)

        def alone() -> None:
            compiling.stop()
            step()

        def beside() -> None:
            compiling.go_on()
            step()

        measured = paired(alone, beside, rounds=given.rounds, steps=60, clock=compiling.clock)
        compiling.stop()
    print(
        f"{given.workers} worker(s), nice {given.nice}, {compiling.kernels} kernels compiled meanwhile\n"
        f"  a step alone          {measured.peer_ms:7.2f} ms\n"
        f"  beside compilation    {measured.ours_ms:7.2f} ms\n"
        f"  ratio                 {measured.ratio:7.3f}   (goal: at most 1.05), "
        f"middle half {measured.low:.3f} to {measured.high:.3f}"
    )


if __name__ == "__main__":
    main()
