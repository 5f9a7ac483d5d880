"""Ctrl-C and SIGTERM while kernels are compiled: wherever they come, they end the work, and harm nothing."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest
from tezzeret_support import MLP
from waiting import LONG

from esper.messages import CompilationRecord, KernelArtefact, Slot
from esper.tezzeret.interrupts import interrupts_noted
from esper.tezzeret.jobs import CompileJob, Outcome
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.worker import compile_missing

PIPELINE = Pipeline(TorchScriptTarget())
PAIRS = [(MLP, Slot("features", 8, size)) for size in (4, 5, 6)]


class Swallowed(Exception):
    """What code that may not be interrupted makes of whatever interrupts it."""


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def in_a_callback_of_the_garbage_collector() -> None:
    """What is raised in one is lost."""
    ring: list[Any] = [type("Freed", (), {})()]
    ring.append(ring)
    weakref.finalize(ring[0], interrupt)
    del ring
    gc.collect()


def where_it_becomes_another_error() -> None:
    try:
        interrupt()
    except KeyboardInterrupt as error:
        raise Swallowed from error


class Library:
    """Keeps what it is given; something happens as it does."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self.happens = happens
        self.records: list[CompilationRecord] = []

    def contains(self, kernel_id: str) -> bool:
        return False

    def put(self, artefact: KernelArtefact) -> None:
        raise AssertionError("nothing here compiles")

    def record_compilation(self, record: CompilationRecord) -> None:
        self.happens()
        self.records.append(record)


class Workers:
    """Have jobs fail at once, but the second one never ends."""

    workers = serving = 1

    def __init__(self, on_second: Callable[[], None] = lambda: None) -> None:
        self.asked: list[Future[Outcome]] = []
        self._on_second = on_second

    def submit(self, job: CompileJob, *, hot: bool = False) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self.asked.append(future)
        if len(self.asked) == 2:
            self._on_second()
        else:
            future.set_result(Outcome("parse", 0.0, "no"))
        return future


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that raises KeyboardInterrupt, as both do in the command line."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.parametrize(
    "happens", [interrupt, in_a_callback_of_the_garbage_collector, where_it_becomes_another_error]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_an_interruption_would_be_lost_it_ends_the_work_once_that_is_done(
    happens: Callable[[], None],
) -> None:
    library = Library(happens)
    with pytest.raises(KeyboardInterrupt):
        compile_missing(PIPELINE, library, PAIRS, workers=Workers())
    assert len(library.records) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_while_a_job_is_waited_for_and_no_lock_stays_held(number: signal.Signals) -> None:
    main = threading.main_thread().ident or 0
    workers = Workers(lambda: threading.Timer(0.2, signal.pthread_kill, (main, number)).start())
    with pytest.raises(KeyboardInterrupt):
        compile_missing(PIPELINE, Library(lambda: None), PAIRS, workers=workers)
    ended = threading.Thread(target=workers.asked[1].set_result, args=(Outcome("parse", 0.0, "late"),))
    ended.start()
    ended.join(LONG)
    assert not ended.is_alive()


def test_a_second_one_is_handled_at_once_and_is_not_lost_either() -> None:
    steps: list[str] = []

    def twice() -> None:
        with interrupts_noted() as look:
            interrupt()
            steps.append("after the first")
            with suppress(KeyboardInterrupt):
                interrupt()
                steps.append("after the second")
            look()
            steps.append("after a look")

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert steps == ["after the first"]


def test_one_that_nobody_looked_for_is_handled_at_the_end_of_the_outer_block() -> None:
    steps: list[str] = []

    def two_blocks() -> None:
        with interrupts_noted():
            with interrupts_noted():
                interrupt()
            steps.append("after the inner one")
        steps.append("after the outer one")

    with pytest.raises(KeyboardInterrupt):
        two_blocks()
    assert steps == ["after the inner one"]


def test_closing_a_pool_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Server:
        def close(self) -> None:
            interrupt()
            closed.append("whole")

    pool = WorkerPool(1)
    monkeypatch.setattr(pool, "_server", Server())
    with pytest.raises(KeyboardInterrupt):
        pool.close()
    assert closed == ["whole"]
