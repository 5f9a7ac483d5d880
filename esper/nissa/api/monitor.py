"""What the HTTP API shows, computed from the runs and the kernel library."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esper.errors import EsperError
from esper.messages import CompilationRecord, CompileQueue
from esper.nissa.api.catalogue import LIBRARY_SECONDS
from esper.nissa.api.queries import AdaptationsQuery, RunsQuery
from esper.nissa.api.run_pages import adaptations_page, run_details, runs_page
from esper.nissa.health import (
    BoundedCall,
    HealthReport,
    check_component,
    check_disk,
    check_library,
    check_newest_run,
    check_runs,
)
from esper.nissa.metrics import MAX_ENDED_RUNS, RunCollector, render
from esper.nissa.queue_metrics import broker_families
from esper.nissa.run_list import RunList
from esper.nissa.run_records import CacheTier, ControlRecord
from esper.nissa.run_view import RunView
from esper.nissa.runs import RunStore, summarize
from esper.nissa.turns import going_first

FIRST_SECONDS = 5.0
"""How long a request reads what was never read before, or waits while another does."""

STATUS_RUNS = 20
"""The status shows every run that goes on and this many of those that ended last."""

log = logging.getLogger(__name__)


class Monitor:
    """Answers for the server: blocking, safe to call from several threads at once.

    ``compilations`` reads the kernel library's records; it may raise EsperError, and may hang, as may the
    checks of ``components``, which say what they found, and ``broker``, which says what waits at the broker
    of compile workers, if there is one. ``tiers`` says what this process asked of the library's tiers.
    ``own`` are checks of this server itself, which do not hang.
    """

    def __init__(
        self,
        store: RunStore,
        compilations: Callable[[], Sequence[CompilationRecord]],
        *,
        components: Mapping[str, Callable[[], str]] | None = None,
        broker: Callable[[], CompileQueue] | None = None,
        tiers: Callable[[], Mapping[str, CacheTier]] = dict,
        own: Mapping[str, Callable[[], str]] | None = None,
    ) -> None:
        self._store = store
        self._now = RunStore(store.root, keep_packets=False, sparse=True)
        self._compilations = BoundedCall(compilations, LIBRARY_SECONDS)
        self._components = {
            name: BoundedCall(check, LIBRARY_SECONDS) for name, check in (components or {}).items()
        }
        self._broker = None if broker is None else BoundedCall(broker, LIBRARY_SECONDS)
        self._tiers = tiers
        self._own = dict(own or {})
        self._listing, self._viewing = threading.Lock(), threading.Lock()

    def broker(self) -> CompileQueue | None:
        """What waits at the broker of compile workers; None where there is none, or it does not answer."""
        try:
            return self._broker() if self._broker else None
        except (EsperError, TimeoutError) as error:
            log.warning("broker of compile workers: %s", error)
            return None

    @property
    def root(self) -> Path:
        """The folder of runs."""
        return self._store.root

    def compilations(self) -> Sequence[CompilationRecord]:
        """The log of attempts to compile, oldest first; EsperError, or TimeoutError."""
        return self._compilations()

    @contextmanager
    def _runs(self, seconds: float | None = None) -> Iterator[tuple[RunList, float]]:
        """The list of runs, for one thread at a time, and until when to read what was never read before.

        TimeoutError where that takes longer; what was read by then is known to whoever asks next.
        """
        seconds = FIRST_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        with self._turn(self._listing, seconds):
            yield self._store.outlines, deadline

    @contextmanager
    def _view(self, name: str) -> Iterator[RunView]:
        """One run whole, for one thread at a time; RunError when there is no such run, TimeoutError."""
        run_id = self.folder(name).name
        with self._turn(self._viewing, FIRST_SECONDS):
            yield self._store.view(run_id)

    @contextmanager
    def _latest_views(self, store: RunStore, ended: int) -> Iterator[Sequence[RunView]]:
        """The runs that go on and so many that have ended, latest first, as views of ``store``."""
        with self._runs() as (runs, deadline):
            run_ids = runs.latest(ended, deadline)
        deadline = time.monotonic() + FIRST_SECONDS
        with self._turn(self._viewing, FIRST_SECONDS):
            yield [*store.some(run_ids, deadline)]

    @contextmanager
    def _turn(self, mutex: threading.Lock, seconds: float) -> Iterator[None]:
        if not mutex.acquire(timeout=seconds):
            raise TimeoutError(self._store.outlines.progress)
        try:
            yield
        finally:
            mutex.release()

    def health(self) -> HealthReport:
        """The checks of runs folder, journals, library and of this server itself."""
        with going_first():
            runs = check_runs(self._store)
        own = [check_component(name, check) for name, check in self._own.items()]
        return HealthReport((*runs, check_library(self._compilations), *own))

    def ready(self) -> HealthReport:
        """As ``health``, with the other components, the disk and the newest run."""
        others = [check_component(name, check) for name, check in self._components.items()]
        health = self.health()
        checks = [*health.checks, *others, check_disk(self.root)]
        with contextlib.suppress(TimeoutError), self._runs(LIBRARY_SECONDS) as (runs, deadline):
            checks.append(check_newest_run(runs, deadline))
        return HealthReport(tuple(checks))

    def kept_metrics(self, _accept: str, /) -> tuple[float, tuple[bytes, str]] | None:
        """What ``metrics`` would answer, if that is at hand: this never waits. See ``kept_metrics.py``."""
        return None

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type; ``esper_library_up`` is 0 when the library cannot be read."""
        try:
            compilations: Sequence[CompilationRecord] | None = self._compilations()
        except (EsperError, TimeoutError) as error:
            log.warning("kernel library: %s", error)
            compilations = None
        more = broker_families(self.broker(), known=self._broker is not None)
        with self._latest_views(self._now, MAX_ENDED_RUNS) as views:
            return render(RunCollector(views, compilations, more), accept)

    def status(self) -> dict[str, Any]:
        """Every component with its state, and the runs that go on or ended last."""
        ready, broker = self.ready(), self.broker()
        with self._runs() as (runs, deadline):
            statuses = runs.statuses(deadline)
        with self._latest_views(self._store, STATUS_RUNS) as views:
            return {
                **ready.to_json(),
                "version": version("esper-morph"),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "run_counts": Counter(status.value for status in statuses.values()),
                "runs": [_run_status(view) for view in views],
                "compile_queue": {
                    "runs": {view.run_id: view.queue for view in views if view.status.goes_on},
                    "broker": broker,
                },
                "library": self._tiers(),
            }

    def adaptations(self, query: AdaptationsQuery) -> dict[str, Any]:
        """A page of decisions, newest first, each with its outcome; RunError or BadCursor."""
        with self._runs() as (runs, deadline):
            if query.run is None:
                return adaptations_page(runs, query, deadline=deadline)
            run = runs.outline(self._store.find(query.run, deadline))
            run.refresh(trials=True)
            return adaptations_page(runs, query, run, deadline)

    def runs(self, query: RunsQuery) -> dict[str, Any]:
        """A page of runs, the one started last first; BadCursor."""
        with self._runs() as (runs, deadline):
            return runs_page(runs, query, deadline)

    def run(self, name: str) -> dict[str, Any]:
        """One run whole; RunError when there is no such run."""
        with self._view(name) as view:
            return run_details(view)

    def folder(self, name: str) -> Path:
        """The folder of a run, whose name is its id; RunError when there is no such run."""
        with self._runs() as (_, deadline):
            return self.root / self._store.find(name, deadline)

    def control(self, run_id: str, request: str) -> tuple[ControlRecord | None, bool]:
        """What became of a request to a run, if it is known, and whether the run goes on."""
        with self._view(run_id) as view:
            return view.controls.get(request), view.status.goes_on


def _run_status(view: RunView) -> dict[str, Any]:
    return {
        **summarize(view).to_json(),
        "seeds": {layer: [seed.state for seed in seeds] for layer, seeds in view.seeds.items()},
        "active_seeds": {layer: sum(seed.active for seed in seeds) for layer, seeds in view.seeds.items()},
        "cache": view.cache,
        "fault_counts": view.fault_counts,
        "last_event": view.updated_at.isoformat() if view.updated_at else None,
        "error": view.error,
        "damaged_lines": view.damaged,
    }
