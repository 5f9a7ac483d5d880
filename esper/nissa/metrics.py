"""Prometheus metrics, computed from runs and compilations whenever they are asked for.

The names ``esper_training_loss``, ``esper_adaptation_count``, ``esper_kernel_cache_hits``,
``esper_seed_active_count`` and ``esper_compilation_latency`` are fixed. Prometheus keeps ``_count`` for
histograms and wants ``_total`` at the end of a counter; names that can follow neither rule have no type
(``untyped``), which ``rate()`` and ``sum()`` treat like any other.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from esper.messages import CompilationRecord
from esper.nissa.queue_metrics import queue_families
from esper.nissa.run_records import CheckpointRecord, Epoch, RunStatus
from esper.nissa.run_view import RunView
from esper.nissa.sink_metrics import sink_families
from esper.nissa.turns import let_others_first

LATENCY_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds in seconds: a kernel takes tens of milliseconds, and 5 s is the target for any."""

MAX_ENDED_RUNS = 50
"""Every run that goes on is exposed, and this many of those that ended last: series are not for ever."""

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of Prometheus's text format."""

_EPOCH_GAUGES: tuple[tuple[str, str, Callable[[Epoch], float]], ...] = (
    ("esper_training_loss", "Mean training loss of the latest epoch, in nats.", lambda epoch: epoch.loss),
    (
        "esper_held_out_loss",
        "Held-out loss after the latest epoch, in nats.",
        lambda epoch: epoch.held_out_loss,
    ),
    (
        "esper_held_out_accuracy",
        "Held-out accuracy, 0 to 1, after the latest epoch.",
        lambda epoch: epoch.accuracy,
    ),
    ("esper_epoch", "The latest epoch.", lambda epoch: epoch.epoch),
    (
        "esper_samples_per_second",
        "Training samples a second in the latest epoch.",
        lambda epoch: epoch.samples_per_second,
    ),
)

_CHECKPOINT_GAUGES: tuple[tuple[str, str, Callable[[CheckpointRecord], float]], ...] = (
    (
        "esper_checkpoint_seconds",
        "Seconds that a run's latest checkpoint took until it was on the disk.",
        lambda checkpoint: checkpoint.seconds,
    ),
    (
        "esper_checkpoint_paused_seconds",
        "Seconds of those that training waited.",
        lambda checkpoint: checkpoint.paused,
    ),
    (
        "esper_checkpoint_timestamp_seconds",
        "Unix time at which it was; its age is time() less this.",
        lambda checkpoint: checkpoint.at.timestamp(),
    ),
)

# The client leaves these two without types.
_as_text: Callable[[Collector], bytes] = generate_latest
_as_openmetrics: Callable[[Collector], bytes] = openmetrics.generate_latest


class RunCollector(Collector):
    """The metrics of ``views`` (latest first) and ``compilations``; None when those cannot be had.

    ``more`` are metrics of what else the server knows.
    """

    def __init__(
        self,
        views: Sequence[RunView],
        compilations: Sequence[CompilationRecord] | None,
        more: Iterable[Metric] = (),
    ) -> None:
        going = [view for view in views if view.status.goes_on]
        ended = [view for view in views if not view.status.goes_on]
        self._views = going + ended[:MAX_ENDED_RUNS]
        self._compilations = compilations
        self._more = list(more)

    def collect(self) -> Iterable[Metric]:
        """Every metric family, with its samples."""
        for family in self._families():
            let_others_first()
            yield family

    def _families(self) -> Iterable[Metric]:
        yield from self._state()
        yield from self._training()
        yield from self._growth()
        yield from self._recovery()
        yield from self._cache()
        yield from sink_families(self._views)
        yield from queue_families(self._views)
        yield from self._more
        up = GaugeMetricFamily("esper_library_up", "Whether the kernel library could be read (1) or not (0).")
        up.add_metric([], float(self._compilations is not None))
        yield up
        if self._compilations is not None:
            yield compilation_latency(self._compilations)
            yield failed_kernels(self._compilations)

    def _state(self) -> Iterable[Metric]:
        info = InfoMetricFamily("esper_run", "What a run trains.", labels=["run"])
        state = GaugeMetricFamily(
            "esper_run_state", "1 for the state that a run is in, 0 for the others.", labels=["run", "state"]
        )
        event = GaugeMetricFamily(
            "esper_run_last_event_timestamp_seconds", "Unix time of a run's latest event.", labels=["run"]
        )
        for view in self._views:
            info.add_metric([view.run_id], {"experiment": view.experiment, "task": view.task})
            for status in RunStatus:
                state.add_metric([view.run_id, status.value], float(view.status is status))
            if view.updated_at is not None:
                event.add_metric([view.run_id], view.updated_at.timestamp())
        return info, state, event

    def _training(self) -> Iterable[Metric]:
        for name, documentation, value_of in _EPOCH_GAUGES:
            family = GaugeMetricFamily(name, documentation, labels=["run"])
            for view in self._views:
                if view.last is not None:
                    family.add_metric([view.run_id], value_of(view.last))
            yield family
        planned = GaugeMetricFamily("esper_epochs_planned", "Epochs that a run trains for.", labels=["run"])
        for view in self._views:
            planned.add_metric([view.run_id], view.total_epochs)
        yield planned

    def _growth(self) -> Iterable[Metric]:
        performed = UnknownMetricFamily(
            "esper_adaptation_count", "Adaptations that changed a run's network.", labels=["run", "type"]
        )
        refused = CounterMetricFamily(
            "esper_adaptations_refused", "Decisions that could not be carried out.", labels=["run"]
        )
        trials = CounterMetricFamily(
            "esper_seed_trials", "Seeds judged, by verdict.", labels=["run", "verdict"]
        )
        active = UnknownMetricFamily(
            "esper_seed_active_count", "Seeds of a layer that hold a kernel.", labels=["run", "layer"]
        )
        faults = CounterMetricFamily(
            "esper_kernel_faults", "Failures of kernels, caught in their layer.", labels=["run", "kind"]
        )
        inventions = CounterMetricFamily(
            "esper_inventions",
            "Blueprints invented beside a run, by how, and whether they could be compiled.",
            labels=["run", "origin", "status"],
        )
        for view in self._views:
            types = Counter({"add_seed": 0})
            types.update(
                str(item.decision.get("adaptation_type")) for item in view.adaptations if item.performed
            )
            for name, count in types.items():
                performed.add_metric([view.run_id, name], count)
            refused.add_metric([view.run_id], sum(not item.performed for item in view.adaptations))
            verdicts = Counter({"kept": 0, "culled": 0, "failed": 0})
            verdicts.update(trial.verdict for trial in view.trials)
            for name, count in verdicts.items():
                trials.add_metric([view.run_id, name], count)
            for layer, seeds in view.seeds.items():
                active.add_metric([view.run_id, layer], sum(seed.active for seed in seeds))
            for name, count in view.fault_counts.items():
                faults.add_metric([view.run_id, name], count)
            for (origin, status), count in _inventions(view).items():
                inventions.add_metric([view.run_id, origin, status], count)
        return performed, refused, trials, active, faults, inventions

    def _recovery(self) -> Iterable[Metric]:
        rollbacks = CounterMetricFamily(
            "esper_rollbacks", "Ways back from instability, by its cause.", labels=["run", "cause"]
        )
        seconds = SummaryMetricFamily(
            "esper_recovery_seconds",
            "Seconds from noticing instability to training on from a checkpoint before it.",
            labels=["run"],
        )
        for name, documentation, value_of in _CHECKPOINT_GAUGES:
            family = GaugeMetricFamily(name, documentation, labels=["run"])
            for view in self._views:
                if view.checkpoint is not None:
                    family.add_metric([view.run_id], value_of(view.checkpoint))
            yield family
        for view in self._views:
            causes = Counter({"batch": 0, "adaptation": 0, "training": 0})
            causes.update(rollback.cause for rollback in view.rollbacks)
            for cause, count in causes.items():
                rollbacks.add_metric([view.run_id, cause], count)
            took = math.fsum(rollback.seconds for rollback in view.rollbacks)
            seconds.add_metric([view.run_id], len(view.rollbacks), took)
        yield from (rollbacks, seconds)

    def _cache(self) -> Iterable[Metric]:
        hits = UnknownMetricFamily(
            "esper_kernel_cache_hits", "Kernel look-ups that a tier answered.", labels=["run", "tier"]
        )
        misses = UnknownMetricFamily(
            "esper_kernel_cache_misses", "Kernel look-ups that a tier passed on.", labels=["run", "tier"]
        )
        errors = CounterMetricFamily(
            "esper_kernel_cache_errors",
            "Kernel look-ups and stores that a tier failed or refused.",
            labels=["run", "tier"],
        )
        circuit = GaugeMetricFamily(
            "esper_kernel_cache_circuit_open",
            "Whether a tier of a run that goes on is left alone because it fails (1) or not (0).",
            labels=["run", "tier"],
        )
        for view in self._views:
            for name, tier in view.cache.items():
                hits.add_metric([view.run_id, name], tier.hits)
                misses.add_metric([view.run_id, name], tier.misses)
                errors.add_metric([view.run_id, name], tier.errors)
                # Of a run that has ended nobody knows it any more, and an alert would never be over.
                if tier.state is not None and view.status.goes_on:
                    circuit.add_metric([view.run_id, name], float(tier.state != "closed"))
        return hits, misses, errors, circuit


def _inventions(view: RunView) -> Counter[tuple[str, str]]:
    """How many were made beside the run itself: it may have tried those of others, too."""
    return Counter(
        (record.origin, "failed" if record.kernel_id is None else "compiled")
        for record in view.inventions.values()
        if record.run_id == view.run_id
    )


def compilation_latency(records: Sequence[CompilationRecord]) -> Metric:
    """The histogram of how long compilations took, in seconds, by target and status."""
    family = HistogramMetricFamily(
        "esper_compilation_latency",
        "Seconds from a blueprint to a validated kernel, or to its failure.",
        labels=["target", "status"],
    )
    groups: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if math.isfinite(record.seconds):
            groups.setdefault((record.target, record.status), []).append(record.seconds)
    for labels, seconds in sorted(groups.items()):
        counts = Counter(bisect_left(LATENCY_BUCKETS, value) for value in seconds)
        total, buckets = 0, []
        for index, bound in enumerate((*map(str, LATENCY_BUCKETS), "+Inf")):
            total += counts[index]
            buckets.append((bound, float(total)))
        family.add_metric(labels, buckets, sum_value=math.fsum(seconds))
    return family


def failed_kernels(records: Iterable[CompilationRecord]) -> Metric:
    """How many kernels have a failure for their latest attempt to compile, by the target of that attempt.

    One that failed for a target and was then compiled for another, as a fallback, is no failure.
    """
    latest = {(record.blueprint_id, record.slot): (record.target, record.status) for record in records}
    failed = Counter(target for target, status in latest.values() if status == "failed")
    family = GaugeMetricFamily(
        "esper_compilation_failed_kernels",
        "Kernels whose latest attempt to compile failed; esper compile --failed tries them again.",
        labels=["target"],
    )
    for target in sorted({target for target, _ in latest.values()}):
        family.add_metric([target], failed[target])
    return family


def render(collector: Collector, accept: str = "") -> tuple[bytes, str]:
    """The metrics and their content type: OpenMetrics when ``accept`` asks for it, else the text format."""
    if "application/openmetrics-text" in accept:
        return _as_openmetrics(collector), openmetrics.CONTENT_TYPE_LATEST
    return _as_text(collector), TEXT_FORMAT
