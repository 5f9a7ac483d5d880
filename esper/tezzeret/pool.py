"""Worker processes on this machine: each job in a process of its own, under limits."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from heapq import heappop, heappush
from itertools import count
from types import TracebackType
from typing import Self

from esper.errors import CompilationError, ConfigError
from esper.tezzeret.forks import CLOSE_SECONDS, ForkServer
from esper.tezzeret.interrupts import interrupts_noted
from esper.tezzeret.jobs import TRIES, Job, Outcome, given_up
from esper.tezzeret.limits import Limits

MAX_WORKERS = 256
NICE = 10
"""How much worker processes give way to others unless told otherwise, see nice(2)."""


class WorkerPool:
    """Does up to ``workers`` jobs at once, each in a process of its own that ends with it.

    The first job starts the server that workers are forked from, which takes seconds. They give way to other
    processes by ``nice``, 0 to 19. A job whose worker is killed from outside is begun again, ``tries`` times
    in all, and ``on_lost`` gets a line; with one try it ends with a lost outcome. ``on_unfiltered`` is told
    once if system calls cannot be filtered, and why; the resource limits stand then all the same. Threads may
    share a pool.
    """

    def __init__(
        self,
        workers: int,
        limits: Limits | None = None,
        *,
        nice: int = NICE,
        tries: int = TRIES,
        on_lost: Callable[[str], None] = lambda _: None,
        on_unfiltered: Callable[[str], None] = lambda _: None,
    ) -> None:
        if not 0 <= nice <= 19:
            raise ConfigError(f"tezzeret.nice must be between 0 and 19, not {nice}")
        if not 1 <= workers <= MAX_WORKERS:
            raise ConfigError(f"the number of workers must be between 1 and {MAX_WORKERS}, not {workers}")
        if sys.platform != "linux":
            raise ConfigError("worker processes need Linux", hint="compile without them: tezzeret.workers=0")
        self.workers = workers
        self._limits = limits or Limits()
        self._nice = nice
        self._tries = tries
        self._on_lost = on_lost
        self._on_unfiltered = on_unfiltered
        self._told = False
        self._server: ForkServer | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Daemons: the end of the program waits for none of them.
        self._threads: list[threading.Thread] = []
        self._numbers = count()
        # A heap: hot ones first, then by age.
        self._waiting: list[tuple[bool, int, Job, Future[Outcome]]] = []
        self._asked: dict[Hashable, Future[Outcome]] = {}

    @property
    def serving(self) -> int:
        """How many jobs are done at once."""
        return self.workers

    def submit(self, job: Job, *, hot: bool = False) -> Future[Outcome]:
        """Have ``job`` done, ahead of others if it is ``hot``; its outcome holds what goes wrong in it.

        Who asks for what another has asked for gets the same future, which nobody should cancel. Raises
        ``CompilationError``, there or here, only where no worker can be started.
        """
        with self._lock:
            self._check_open()
            future = self._asked.get(job.key)
            if future is None or hot:
                future = self._asked.setdefault(job.key, future or Future())
                heappush(self._waiting, (not hot, next(self._numbers), job, future))
                if len(self._threads) < self.workers:
                    self._threads.append(threading.Thread(target=self._serve, name="compile", daemon=True))
                    self._threads[-1].start()
                self._changed.notify()
            return future

    def start(self) -> None:
        """Start the server now rather than with the first job; raises ``CompilationError``."""
        self._server_ready()

    def close(self) -> None:
        """End every worker and their server at once; an interruption meanwhile is handled afterwards."""
        with interrupts_noted():
            with self._lock:
                self._closed = True
                server, self._server = self._server, None
                for _, _, _, future in self._waiting:
                    future.cancel()
                self._changed.notify_all()
            if server is not None:
                server.close()
            for thread in self._threads:
                thread.join(CLOSE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while (taken := self._next()) is not None:
            job, future = taken
            try:
                outcome = self._do(job)
            except BaseException as error:
                self._forget(job)
                future.set_exception(error)
            else:
                self._forget(job)
                future.set_result(outcome)

    def _next(self) -> tuple[Job, Future[Outcome]] | None:
        """The job to do next, once there is one; None when the pool is closed."""
        with self._lock:
            while not self._closed:
                if not self._waiting:
                    self._changed.wait()
                    continue
                _, _, job, future = heappop(self._waiting)
                if future.running() or self._asked.get(job.key) is not future:
                    continue  # it was asked for again as a hot one, and is under way or done
                if future.set_running_or_notify_cancel():
                    return job, future
        return None

    def _forget(self, job: Job) -> None:
        with self._lock:
            del self._asked[job.key]

    def _do(self, job: Job) -> Outcome:
        """What became of ``job``, begun again while its worker is killed and the pool is open."""
        for begun in count(1):
            outcome = self._try(job)
            if not outcome.lost or self._closed or self._tries == 1:
                break
            if begun == self._tries:
                return given_up(begun, outcome.reason)
            which = f"{begun + 1} of {self._tries}"
            self._on_lost(f"{job.blueprint.name} for {job.slot} is begun again ({which}): {outcome.reason}")
        return outcome

    def _try(self, job: Job) -> Outcome:
        outcome, unfiltered = self._server_ready().work(job, self._limits)
        with self._lock:
            tell = unfiltered is not None and not self._told
            self._told |= tell
        if tell:
            self._on_unfiltered(str(unfiltered))
        return outcome

    def _server_ready(self) -> ForkServer:
        with self._lock:
            self._check_open()
            if self._server is not None and not self._server.running:
                self._server.close()
                self._server = None
            server = self._server = self._server or ForkServer(self._nice)
        server.wait_until_ready()
        return server

    def _check_open(self) -> None:
        if self._closed:
            raise CompilationError("the pool of workers is closed", stage="parse")
