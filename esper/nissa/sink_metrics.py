"""Prometheus metrics of the sinks that runs tell, as of each run's latest ``telemetry`` event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from esper.nissa.run_view import RunView
from esper.nissa.telemetry.messages import SinkCounts

_COUNTERS: tuple[tuple[str, str, Callable[[SinkCounts], int]], ...] = (
    ("written", "Messages that a sink took.", lambda sink: sink.written),
    ("dropped", "Signals that came faster than a sink took them.", lambda sink: sink.dropped),
    ("lost", "Messages lost through faults of a sink.", lambda sink: sink.lost),
    ("errors", "Times that a sink failed.", lambda sink: sink.errors),
)


def sink_families(views: Sequence[RunView]) -> Iterable[Metric]:
    """The metric families of all sinks of ``views``."""
    told = [(view, name, counts) for view in views for name, counts in view.sinks.items()]
    for what, documentation, value_of in _COUNTERS:
        family = CounterMetricFamily(f"esper_telemetry_{what}", documentation, labels=["run", "sink"])
        for view, name, counts in told:
            family.add_metric([view.run_id, name], value_of(counts))
        yield family
    # Of a run that has ended nobody knows them any more, and an alert would never be over.
    up = GaugeMetricFamily(
        "esper_telemetry_sink_up", "Whether a sink takes messages (1) or not (0).", labels=["run", "sink"]
    )
    behind = GaugeMetricFamily(
        "esper_telemetry_behind_bytes",
        "Bytes of its journal that a run's sink lacks.",
        labels=["run", "sink"],
    )
    for view, name, counts in told:
        if view.status.goes_on:
            up.add_metric([view.run_id, name], float(counts.state == "up"))
            behind.add_metric([view.run_id, name], counts.behind)
    yield from (up, behind)
