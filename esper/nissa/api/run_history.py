"""A run's whole history as one JSON object, so that the network can be drawn as it was at any epoch.

Per epoch there are columns of numbers; of the network there is what changed and when: sizes of layers, states
of seeds. Whoever has a history asks for what came since with its ``cursor``.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esper.nissa.calibration import growth_impact, realised_impact
from esper.nissa.run_records import Adaptation, CheckpointRecord, Epoch, FaultRecord, RollbackRecord
from esper.nissa.runs import RunStore, summarize
from esper.nissa.timeline import Timeline

KEPT = 16
"""This many histories are kept in memory, those that were asked for last."""

IMPACT_EPOCHS = 5
"""The impact of a growth is measured over this many epochs, and may change until they are done."""

INVENTIONS = 20
"""So many of what was invented beside the run are told of, the latest."""

_COLUMNS = (
    "loss",
    "held_out_loss",
    "accuracy",
    "learning_rate",
    "seconds",
    "samples_per_second",
    "training_flops",
)


class RunHistories:
    """The histories of the runs in ``root``. Blocking; safe to call from several threads at once."""

    def __init__(self, root: Path) -> None:
        self._store = RunStore(root)
        self._mutex = threading.Lock()
        self._timelines: OrderedDict[str, tuple[Timeline, threading.Lock]] = OrderedDict()

    def history(self, run: str, after: str | None = None) -> dict[str, Any]:
        """The history of ``run`` (an id, its unique beginning or ``latest``), or what came since ``after``.

        Raises RunError when there is no such run, StorageError when its journal cannot be read and ValueError
        when ``after`` is no cursor.
        """
        timeline, lock = self._timeline(run)
        with lock:
            timeline.refresh()
            return history_of(timeline, timeline.epoch_after(after))

    def _timeline(self, run: str) -> tuple[Timeline, threading.Lock]:
        with self._mutex:
            run_id = self._store.find(run)
            entry = self._timelines.pop(run_id, None)
            if entry is None:
                entry = Timeline(self._store.root / run_id), threading.Lock()
            self._timelines[run_id] = entry
            while len(self._timelines) > KEPT:
                self._timelines.popitem(last=False)
            return entry


def history_of(timeline: Timeline, from_epoch: int = 0) -> dict[str, Any]:
    """What ``timeline`` says of epochs from ``from_epoch`` on, and of the run as a whole; plain data.

    ``sizes`` are [epoch, layer, parameters], ``states`` [epoch, layer, seed, state, kernel], with layers by
    their place in ``layers``. Faults and rollbacks are not cut: they stay when history is taken back.
    """
    place = {name: index for index, name in enumerate(timeline.layer_names)}
    return {
        "cursor": timeline.cursor,
        "from_epoch": from_epoch,
        "run": _run(timeline),
        "layers": _layers(timeline),
        "epochs": _columns(timeline, from_epoch),
        "sizes": [
            (change.epoch, place[change.layer], change.parameters)
            for change in _since(timeline.sizes, from_epoch)
        ],
        "states": [
            (change.epoch, place[change.layer], *change[2:]) for change in _since(timeline.states, from_epoch)
        ],
        "adaptations": _adaptations(timeline, from_epoch),
        "growths": timeline.growths,
        "faults": [_record(fault) for fault in timeline.faults],
        "fault_counts": timeline.fault_counts,
        "rollbacks": [_record(rollback) for rollback in timeline.rollbacks],
        "checkpoint": _record(timeline.checkpoint) if timeline.checkpoint else None,
        "cache": timeline.cache,
        "queue": timeline.queue,
        "sinks": _sinks(timeline),
        "inventions": _inventions(timeline),
    }


def _since(changes: Iterable[Any], epoch: int) -> list[Any]:
    return sorted((change for change in changes if change.epoch >= epoch), key=lambda change: change.epoch)


def _run(timeline: Timeline) -> dict[str, Any]:
    summary = summarize(timeline).to_json()
    del summary["path"]
    return {
        **summary,
        "seed": timeline.seed,
        "preparing": timeline.preparing,
        "last_event": timeline.updated_at.isoformat() if timeline.updated_at else None,
        "resumes": timeline.resumes,
        "parameters_at_start": timeline.parameters_at_start,
        "flops_per_sample": timeline.flops_per_sample,
        "error": timeline.error,
        "inventing_error": timeline.inventing_error,
        "damaged_lines": timeline.damaged,
        "result": _result(timeline),
    }


def _record(record: FaultRecord | RollbackRecord | CheckpointRecord) -> dict[str, Any]:
    values = {**asdict(record), "at": record.at.isoformat()}
    values.pop("path", None)  # where on its machine is for those who have that machine
    return values


def _sinks(timeline: Timeline) -> dict[str, Any]:
    """How each sink of a run that goes on fares."""
    sinks = timeline.sinks if timeline.status.goes_on else {}
    return {name: {"state": sink.state, "reason": sink.reason} for name, sink in sinks.items()}


def _inventions(timeline: Timeline) -> list[dict[str, Any]]:
    names = (
        "blueprint_name",
        "origin",
        "reason",
        "predicted_impact",
        "uncertainty",
        "kernel_id",
        "failure",
        "at",
    )
    made = [each for each in timeline.inventions.values() if each.run_id == timeline.run_id]
    return [{name: getattr(each, name) for name in names} for each in made[-INVENTIONS:]]


def _result(timeline: Timeline) -> dict[str, Any] | None:
    if timeline.summary is None:
        return None
    names = ("start", "end", "held_out", "test", "training_flops", "steps", "weights_sha256")
    return {name: timeline.summary.get(name) for name in names}


def _layers(timeline: Timeline) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "kind": str(timeline.layers.get(name, {}).get("kind", "")),
            "seeds": len(timeline.seeds.get(name, ())),
        }
        for name in timeline.layer_names
    ]


def _columns(timeline: Timeline, from_epoch: int) -> dict[str, Sequence[float]]:
    epochs = [epoch for epoch in timeline.epochs if epoch.epoch >= from_epoch]
    columns: dict[str, Sequence[float]] = {
        "epoch": [epoch.epoch for epoch in epochs],
        "at": [round(epoch.at.timestamp(), 3) for epoch in epochs],
    }
    for name in _COLUMNS:
        columns[name] = [_short(getattr(epoch, name)) for epoch in epochs]
    columns["parameters"] = _parameters(timeline, epochs)
    return columns


def _short(value: float) -> float:
    """The number with the digits that can be seen: a third of the bytes."""
    return float(f"{value:.6g}") if math.isfinite(value) else value


def _parameters(timeline: Timeline, epochs: Sequence[Epoch]) -> list[int]:
    """Parameters of the whole network at the end of each epoch; kernels count from when they are kept."""
    gained: Counter[int] = Counter()
    for growth in timeline.growths:
        gained[growth["epoch"]] += growth["parameters"]
    for trial in timeline.trials:
        gained[trial.ended_epoch] += trial.parameters if trial.verdict == "kept" else 0
    changes = sorted(gained.items())
    total, index = timeline.parameters_at_start or 0, 0
    result = []
    for epoch in epochs:
        while index < len(changes) and changes[index][0] <= epoch.epoch:
            total += changes[index][1]
            index += 1
        result.append(total)
    return result


def _adaptations(timeline: Timeline, from_epoch: int) -> list[dict[str, Any]]:
    losses: dict[int, float] | None = None
    result = []
    for index, item in enumerate(timeline.adaptations):
        ended = item.trial.ended_epoch if item.trial else item.epoch + IMPACT_EPOCHS
        if max(item.epoch, ended) < from_epoch:
            continue
        if item.status == "grown" and losses is None:
            losses = {epoch.epoch: epoch.held_out_loss for epoch in timeline.epochs}
        result.append({"index": index, **item.to_json(), "impact": _impact(item, losses or {})})
    return result


def _impact(item: Adaptation, losses: dict[int, float]) -> dict[str, Any] | None:
    """Expected and realised, as shares of the held-out loss; None before there is anything to say."""
    if item.trial is not None:
        return {"expected": item.trial.expected_impact, "realised": realised_impact(item.trial)}
    if item.status == "grown" and losses:
        growth = growth_impact(losses, item.epoch, IMPACT_EPOCHS)
        return asdict(growth) if growth is not None else None
    return None
