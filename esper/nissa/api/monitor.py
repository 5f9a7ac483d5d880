"""What the HTTP API shows, computed from the runs and the kernel library."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esper.errors import EsperError, StorageError
from esper.messages import CompilationRecord
from esper.nissa.api.catalogue import LIBRARY_SECONDS
from esper.nissa.api.queries import AdaptationsQuery, RunsQuery
from esper.nissa.api.run_pages import adaptations_page, run_details, runs_page
from esper.nissa.health import (
    BoundedCall,
    HealthCheck,
    HealthReport,
    check_component,
    check_disk,
    check_library,
    check_newest_run,
    check_runs,
)
from esper.nissa.metrics import RunCollector, render
from esper.nissa.run_records import CacheTier, ControlRecord
from esper.nissa.run_view import RunView
from esper.nissa.runs import RunStore, summarize

FIRST_SECONDS = 5.0
"""How long a request waits while all runs are read for the first time; that goes on meanwhile."""

STATUS_RUNS = 20
"""The status shows every run that goes on and this many of those that ended last."""

log = logging.getLogger(__name__)


class Monitor:
    """Answers for the server: blocking, safe to call from several threads at once.

    ``compilations`` reads the kernel library's records; it may raise EsperError, and may hang, as may the
    checks of ``components``, which say what they found. ``tiers`` says what this process asked of the
    library's tiers.
    """

    def __init__(
        self,
        store: RunStore,
        compilations: Callable[[], Sequence[CompilationRecord]],
        *,
        components: Mapping[str, Callable[[], str]] | None = None,
        tiers: Callable[[], Mapping[str, CacheTier]] = dict,
    ) -> None:
        self._store = store
        self._compilations = BoundedCall(compilations, LIBRARY_SECONDS)
        self._components = {
            name: BoundedCall(check, LIBRARY_SECONDS) for name, check in (components or {}).items()
        }
        self._tiers = tiers
        self._mutex = threading.Lock()
        self._first_look = BoundedCall(self._read_all, FIRST_SECONDS)
        self._progress = 0, 0
        self._all_read = threading.Event()

    @property
    def root(self) -> Path:
        """The folder of runs."""
        return self._store.root

    def compilations(self) -> Sequence[CompilationRecord]:
        """The log of attempts to compile, oldest first; EsperError, or TimeoutError."""
        return self._compilations()

    @contextmanager
    def _runs(self) -> Iterator[RunStore]:
        """The runs, for one thread at a time; TimeoutError while they are read for the first time."""
        if not self._all_read.is_set():
            try:
                self._first_look()
            except TimeoutError:
                done, of = self._progress
                raise TimeoutError(f"the runs are read for the first time: {done} of {of}") from None
        with self._mutex:
            yield self._store

    def _read_all(self) -> None:
        """Read each run; what cannot be read is told of by whoever asks for it."""
        with self._mutex, contextlib.suppress(StorageError):
            run_ids = self._store.run_ids()
            for number, run_id in enumerate(run_ids):
                self._progress = number, len(run_ids)
                with contextlib.suppress(StorageError):
                    self._store.view(run_id)
        self._all_read.set()

    def health(self) -> HealthReport:
        """The checks of runs folder, journals and library."""
        library = check_library(self._compilations)
        try:
            with self._runs() as store:
                return HealthReport((*check_runs(store), library))
        except TimeoutError as error:
            return HealthReport((HealthCheck("journals", False, str(error)), library))

    def ready(self) -> HealthReport:
        """As ``health``, with the other components, the disk and the newest run."""
        others = [check_component(name, check) for name, check in self._components.items()]
        health = self.health()
        checks = [*health.checks, *others, check_disk(self.root)]
        with contextlib.suppress(TimeoutError), self._runs() as store:
            checks.append(check_newest_run(store))
        return HealthReport(tuple(checks))

    def kept_metrics(self, _accept: str, /) -> tuple[bytes, str] | None:
        """What ``metrics`` would answer, if that is at hand: this never waits. See ``kept_metrics.py``."""
        return None

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type; ``esper_library_up`` is 0 when the library cannot be read."""
        try:
            compilations: Sequence[CompilationRecord] | None = self._compilations()
        except (EsperError, TimeoutError) as error:
            log.warning("kernel library: %s", error)
            compilations = None
        with self._runs() as store:
            return render(RunCollector(store.views(), compilations), accept)

    def status(self) -> dict[str, Any]:
        """Every component with its state, and the runs that go on or ended last."""
        ready = self.ready()
        with self._runs() as store:
            views = store.views()
            going = [view for view in views if view.status.goes_on]
            ended = [view for view in views if not view.status.goes_on]
            return {
                **ready.to_json(),
                "version": version("esper-morph"),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "run_counts": Counter(view.status.value for view in views),
                "runs": [_run_status(view) for view in going + ended[:STATUS_RUNS]],
                "library": self._tiers(),
            }

    def adaptations(self, query: AdaptationsQuery) -> dict[str, Any]:
        """A page of decisions, newest first, each with its outcome; RunError or BadCursor."""
        with self._runs() as store:
            views = store.views() if query.run is None else [store.open(query.run)]
            return adaptations_page(views, query)

    def runs(self, query: RunsQuery) -> dict[str, Any]:
        """A page of runs, the one started last first; BadCursor."""
        with self._runs() as store:
            return runs_page(store.views(), query)

    def run(self, name: str) -> dict[str, Any]:
        """One run whole; RunError when there is no such run."""
        with self._runs() as store:
            return run_details(store.open(name))

    def folder(self, name: str) -> Path:
        """The folder of a run, whose name is its id; RunError when there is no such run."""
        with self._runs() as store:
            return store.open(name).folder

    def control(self, run_id: str, request: str) -> tuple[ControlRecord | None, bool]:
        """What became of a request to a run, if it is known, and whether the run goes on."""
        with self._runs() as store:
            view = store.open(run_id)
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
