"""Health checks: what was looked at, whether it works, and why not."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from esper.errors import EsperError, StorageError
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import check_journal
from esper.nissa.run_list import RunList
from esper.nissa.runs import RunStore

T = TypeVar("T")

LEAST_FREE_BYTES = 512 * 2**20
"""With less than this free where runs are kept, the disk is full before anybody looks again."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One thing that was looked at; ``detail`` says what was found."""

    name: str
    healthy: bool
    detail: str


@dataclass(frozen=True, slots=True)
class HealthReport:
    """All checks together: ``ok`` when each is healthy, else ``degraded`` with the reasons."""

    checks: tuple[HealthCheck, ...]

    @property
    def healthy(self) -> bool:
        """Whether every check is."""
        return all(check.healthy for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong, one sentence each."""
        return tuple(f"{check.name}: {check.detail}" for check in self.checks if not check.healthy)

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``dumps``."""
        return {
            "status": "ok" if self.healthy else "degraded",
            "reasons": list(self.reasons),
            "checks": [asdict(check) for check in self.checks],
        }


class BoundedCall(Generic[T]):
    """Calls ``function`` in a thread of its own and waits at most ``seconds`` for it.

    A call that hangs is not made a second time: later callers wait for the one under way. Its thread does not
    keep the process from ending. Safe to share between threads.
    """

    def __init__(self, function: Callable[[], T], seconds: float) -> None:
        self._function = function
        self._seconds = seconds
        self._mutex = threading.Lock()
        self._under_way: Future[T] | None = None

    def __call__(self) -> T:
        """What ``function`` returns or raises; TimeoutError when it did not answer in time."""
        with self._mutex:
            future = self._under_way
            if future is None or future.done():
                future = self._under_way = Future()
                threading.Thread(target=self._run, args=(future,), daemon=True).start()
        try:
            return future.result(self._seconds)
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._seconds:g} s") from None

    def _run(self, future: Future[T]) -> None:
        try:
            future.set_result(self._function())
        except BaseException as error:
            future.set_exception(error)


def check_runs(store: RunStore) -> tuple[HealthCheck, HealthCheck]:
    """Whether the folder of runs can be read, and every journal in it begun to be.

    A folder that is not there yet is healthy: no run was started. So is a journal with a torn line, which a
    crash leaves behind and readers skip.
    """
    if not os.path.lexists(store.root):
        return (
            HealthCheck("runs folder", True, f"{store.root} does not exist yet: no run was started"),
            HealthCheck("journals", True, "none"),
        )
    try:
        run_ids = store.run_ids()
    except StorageError as error:
        return HealthCheck("runs folder", False, str(error)), HealthCheck("journals", False, "not looked at")
    problems = [str(problem) for run_id in run_ids if (problem := _problem(store.root / run_id))]
    readable = len(run_ids) - len(problems)
    folder = HealthCheck("runs folder", True, f"{store.root}, {readable} readable runs")
    return folder, HealthCheck("journals", not problems, "; ".join(problems) or f"{readable} can be read")


def _problem(run: Path) -> StorageError | None:
    try:
        check_journal(run / JOURNAL_NAME)
    except StorageError as error:
        return error
    return None


def check_library(read: Callable[[], Sequence[Any]]) -> HealthCheck:
    """Whether the kernel library answers; ``read`` returns its compilations."""
    try:
        return HealthCheck("kernel library", True, f"{len(read())} compilations recorded")
    except (EsperError, TimeoutError) as error:
        return HealthCheck("kernel library", False, str(error))


def check_component(name: str, check: Callable[[], str]) -> HealthCheck:
    """Whether ``check``, which says what it found, finds anything amiss."""
    try:
        return HealthCheck(name, True, check())
    except (EsperError, TimeoutError) as error:
        return HealthCheck(name, False, str(error))


def check_disk(folder: Path) -> HealthCheck:
    """Whether there is room where ``folder`` is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return HealthCheck("disk", False, error.strerror or str(error))
    return HealthCheck("disk", free >= LEAST_FREE_BYTES, f"{free / 2**30:.1f} GiB free")


def check_newest_run(runs: RunList, deadline: float) -> HealthCheck:
    """How the run that was started last stands. That one failed is no fault of what shows it.

    TimeoutError where after ``deadline`` (``time.monotonic``) much was never read before.
    """
    try:
        newest = next(iter(runs.measured(None, deadline)), None)
    except StorageError as error:
        return HealthCheck("newest run", False, str(error))
    if newest is None:
        return HealthCheck("newest run", True, "none yet")
    at = newest.updated_at
    when = f", last heard of at {at.isoformat(timespec='seconds')}" if at is not None else ""
    return HealthCheck("newest run", True, f"{newest.run_id}: {newest.status}{when}")
