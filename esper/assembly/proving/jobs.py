"""The runs of a proof, and training them: one after another, or several at once in processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

from omegaconf import DictConfig

from esper.assembly.training import build_training
from esper.errors import RunError
from esper.nissa.runs import RunStore
from esper.proof.results import Result

Compose = Callable[[list[str]], DictConfig]
"""From overrides to a checked configuration; raises ConfigError. Picklable, for more than one process."""

PATIENCE = 5.0
"""Seconds that a process which was asked to end may take."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be made: ``overrides`` are those of its arm; ``width`` where it is asked for by width.

    It starts from the network of the job ``start``, which says where that is and not what this one is.
    """

    arm: str
    seed: int
    overrides: tuple[str, ...]
    width: int | None = None
    start: Job | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Task:
    """A job with all that training it takes: every override, and the folder that its run goes into.

    With ``curve`` its result has the accuracy after each epoch.
    """

    job: Job
    compose: Compose
    overrides: tuple[str, ...]
    root: Path
    curve: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of ``job``; ``wall`` is in seconds, with what came before training."""

    job: Job
    result: Result
    wall: float


def train(task: Task) -> Finished:
    """Train one run to its end. Raises any EsperError that it earns."""
    began = time.perf_counter()
    summary = build_training(task.compose(list(task.overrides))).run()
    view = RunStore(task.root).open(summary["run_id"])
    adapted = (item.epoch + 1 for item in view.adaptations if item.performed)
    result = Result(
        arm=task.job.arm,
        seed=task.job.seed,
        overrides=task.job.overrides,
        run=f"{task.root.name}/{summary['run_id']}",
        accuracy=summary["test"]["accuracy"],
        loss=summary["test"]["loss"],
        training_flops=summary["training_flops"],
        seconds=summary["seconds"],
        parameters=summary["end"]["parameters"],
        width=task.job.width,
        adapted_at=tuple(epochs / summary["epochs"] for epochs in adapted),
        curve=tuple((epoch.training_flops, epoch.accuracy) for epoch in view.epochs) if task.curve else (),
    )
    return Finished(task.job, result, time.perf_counter() - began)


class Workers:
    """Trains tasks in ``processes`` processes, which end with the ``with`` block; one trains here.

    The processes start afresh, so that each may use an accelerator, and end when this one does.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None
        self._others = multiprocessing.active_children()

    def __enter__(self) -> Self:
        return self

    def train(self, tasks: Iterable[Task]) -> Iterator[Finished]:
        """Each as it is done, in any order; a task is taken when a process is free for it.

        Raises the first EsperError of a task, after those that are done by then, and RunError when a process
        is killed from outside.
        """
        if self.processes == 1:
            yield from map(train, tasks)
            return
        waiting, running = iter(tasks), set[Future[Finished]]()
        while True:
            free = self.processes - len(running)
            running |= {self._submit(task) for task in islice(waiting, free)}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: future.exception() is not None):
                yield self._result(future)

    def _submit(self, task: Task) -> Future[Finished]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.processes, multiprocessing.get_context("spawn"), _prepare_worker
            )
        # A terminal sends Ctrl-C to all its processes: those that are still starting inherit the mask, and
        # would print a traceback without it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(_train_in_worker, task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _result(self, future: Future[Finished]) -> Finished:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that trained a run was killed, for example for want of memory",
                hint="run the command again, with fewer at once: prove.jobs=N",
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if kind is None:
            self._pool.shutdown()
            return
        started = [child for child in multiprocessing.active_children() if child not in self._others]
        self._pool.shutdown(wait=False, cancel_futures=True)  # each ends after what it is asked to end
        for child in started:
            child.terminate()
        for child in started:
            child.join(PATIENCE)
            if child.is_alive():
                child.kill()


def _prepare_worker() -> None:
    """The parent ends this process, by SIGTERM or by its own end, and never the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> NoReturn:
    connection.wait([sentinel])
    os._exit(1)


def _train_in_worker(task: Task) -> Finished:
    """``train``, where SIGTERM lets the run record that it was interrupted."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return train(task)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
