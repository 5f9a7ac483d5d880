"""Prometheus metrics of what is compiled, for runs and at the broker of compile workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily, Metric

from esper.messages import CompileQueue
from esper.nissa.run_view import RunView

_GAUGES: tuple[tuple[str, str, Callable[[CompileQueue], float]], ...] = (
    ("waiting", "Kernels that wait to be compiled", lambda queue: queue.waiting),
    ("compiling", "Kernels that are being compiled", lambda queue: queue.compiling),
    ("workers", "Workers that compile", lambda queue: queue.workers),
    (
        "oldest_seconds",
        "Seconds that the kernel waits that has waited longest",
        lambda queue: queue.oldest_seconds(datetime.now(UTC)),
    ),
)


def queue_families(views: Sequence[RunView]) -> Iterable[Metric]:
    """What is compiled for each run that goes on."""
    for name, documentation, value_of in _GAUGES:
        family = GaugeMetricFamily(
            f"esper_compilation_queue_{name}", f"{documentation} for a run that goes on.", labels=["run"]
        )
        for view in views:
            if (queue := view.queue) is not None:
                family.add_metric([view.run_id], value_of(queue))
        yield family


def broker_families(queue: CompileQueue | None, *, known: bool) -> Iterable[Metric]:
    """What waits at the broker of compile workers, for whoever asked; None where it does not answer.

    Where none is ``known`` there are no values.
    """
    up = GaugeMetricFamily("esper_broker_up", "Whether the broker of compile workers answers (1) or not (0).")
    if known:
        up.add_metric([], float(queue is not None))
    yield up
    for name, documentation, value_of in _GAUGES:
        family = GaugeMetricFamily(f"esper_broker_{name}", f"{documentation}, at the broker.")
        if queue is not None:
            family.add_metric([], value_of(queue))
        yield family
