"""What the HTTP API shows, computed from the runs and the kernel library."""

from __future__ import annotations

import heapq
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from esper.errors import EsperError
from esper.messages import CompilationRecord
from esper.nissa.health import BoundedCall, HealthReport, check_library, check_runs
from esper.nissa.metrics import RunCollector, render
from esper.nissa.run_records import RunStatus
from esper.nissa.run_view import RunView
from esper.nissa.runs import RunStore, summarize

LIBRARY_SECONDS = 1.0
"""How long a request waits for the kernel library before it is reported as not answering."""

STATUS_RUNS = 20
"""The status shows every run that goes on and this many of those that ended last."""

log = logging.getLogger(__name__)


class Monitor:
    """Answers for the server: blocking, safe to call from several threads at once.

    ``compilations`` reads the kernel library's records; it may raise EsperError, and may hang.
    """

    def __init__(self, store: RunStore, compilations: Callable[[], Sequence[CompilationRecord]]) -> None:
        self._store = store
        self._compilations = BoundedCall(compilations, LIBRARY_SECONDS)
        self._mutex = threading.Lock()

    def health(self) -> HealthReport:
        """The checks of runs folder, journals and library."""
        library = check_library(self._compilations)
        with self._mutex:
            return HealthReport((*check_runs(self._store), library))

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type; ``esper_library_up`` is 0 when the library cannot be read."""
        try:
            compilations: Sequence[CompilationRecord] | None = self._compilations()
        except (EsperError, TimeoutError) as error:
            log.warning("kernel library: %s", error)
            compilations = None
        with self._mutex:
            return render(RunCollector(self._store.views(), compilations), accept)

    def status(self) -> dict[str, Any]:
        """Every component with its state, and the runs that go on or ended last."""
        health = self.health()
        with self._mutex:
            views = self._store.views()
            going = [view for view in views if view.status is RunStatus.RUNNING]
            ended = [view for view in views if view.status is not RunStatus.RUNNING]
            return {
                **health.to_json(),
                "version": version("esper-morph"),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "run_counts": Counter(view.status.value for view in views),
                "runs": [_run_status(view) for view in going + ended[:STATUS_RUNS]],
            }

    def adaptations(self, limit: int, run: str | None = None) -> dict[str, Any]:
        """The latest ``limit`` decisions of all runs or of ``run``, newest first, each with its outcome.

        Raises RunError when there is no such run.
        """
        with self._mutex:
            views = self._store.views() if run is None else [self._store.open(run)]
            items = [(item.at, view, item) for view in views for item in view.adaptations]
            latest = heapq.nlargest(limit, items, key=lambda entry: entry[0])
            return {
                "total": len(items),
                "adaptations": [
                    {"run_id": view.run_id, "experiment": view.experiment, **item.to_json()}
                    for _, view, item in latest
                ],
            }


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
