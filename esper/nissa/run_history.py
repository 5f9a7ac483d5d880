"""A run's whole history as one JSON object, so that the network can be drawn as it was at any epoch.

Per epoch there are columns of numbers; of the network there is what changed and when: sizes of layers, states
of seeds. Whoever has a history asks for what came since with its ``cursor``.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from esper.messages import SeedState
from esper.nissa.calibration import growth_impact, realised_impact
from esper.nissa.journal import Event
from esper.nissa.run_records import Adaptation, CheckpointRecord, Epoch, FaultRecord, RollbackRecord
from esper.nissa.run_view import RunView
from esper.nissa.runs import RunStore, summarize

KEPT = 16
"""This many histories are kept in memory, those that were asked for last."""

IMPACT_EPOCHS = 5
"""The impact of a growth is measured over this many epochs, and may change until they are done."""

_COLUMNS = (
    "loss",
    "held_out_loss",
    "accuracy",
    "learning_rate",
    "seconds",
    "samples_per_second",
    "training_flops",
)


class SizeChange(NamedTuple):
    """From ``epoch`` on ``layer`` has that many parameters of its own."""

    epoch: int
    layer: str
    parameters: int


class StateChange(NamedTuple):
    """From the end of ``epoch`` on the seed is in ``state``, with that kernel."""

    epoch: int
    layer: str
    seed_idx: int
    state: str
    kernel_id: str | None


class Timeline(RunView):
    """A run and how its network changed; ``generation`` grows when a part of the history is taken back."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep_packets=False)
        self._reset()

    def _reset(self) -> None:
        self.sizes: list[SizeChange] = []
        self.states: list[StateChange] = []
        self.growths: list[dict[str, Any]] = []
        self.parameters_at_start: int | None = None
        self.generation = 0
        self.layer_names: dict[str, None] = {}
        self._layer_sizes: dict[str, int] = {}
        self._seed_states: dict[tuple[str, int], str] = {}

    @property
    def cursor(self) -> str:
        """What is known to whoever has read this far."""
        return f"{self._started}.{self.generation}.{self.last.epoch if self.last else -1}"

    @property
    def _started(self) -> int:
        """When, in milliseconds: it tells this journal from one that had its place before."""
        return round(self.started_at.timestamp() * 1000) if self.started_at else 0

    def epoch_after(self, cursor: str | None) -> int:
        """The first epoch that is to be told to whoever is at ``cursor``: the last one it knows may have had
        more to say. ValueError when it is no cursor.
        """
        if cursor is None:
            return 0
        match = re.fullmatch(r"(\d{1,15})\.(\d{1,9})\.(-1|\d{1,9})", cursor, re.ASCII)
        if match is None:
            raise ValueError("not a cursor")
        started, generation, epoch = map(int, match.groups())
        known = (started, generation) == (self._started, self.generation)
        known = known and self.last is not None and epoch <= self.last.epoch
        return max(0, epoch) if known else 0

    def _start_over_if_replaced(self) -> None:
        restarts = self._reader.restarts
        changed = restarts != self._restarts
        super()._start_over_if_replaced()
        if changed:
            self._reset()

    def _apply(self, event: Event) -> None:
        misunderstood = self._misunderstood
        super()._apply(event)
        if self._misunderstood != misunderstood:
            return
        match event["event"]:
            case "run_started":
                self.layer_names.update(dict.fromkeys(self.layers))
                if self.parameters_at_start is None:
                    self.parameters_at_start = self.parameters
            case "seed":
                step = self.transitions[-1]
                self._note_state(step.epoch, step.layer, step.seed_idx)
            case "epoch":
                self._note_epoch(self.epochs[-1])
            case "growth":
                self._note_growth(event.get("report"))

    def _note_growth(self, report: Any) -> None:
        try:
            numbers = {name: int(report[name]) for name in ("epoch", "parameters")}
        except (KeyError, TypeError, ValueError):
            self._misunderstood += 1
        else:
            self.growths.append({**report, **numbers})

    def _note_epoch(self, epoch: Epoch) -> None:
        self.layer_names.update(dict.fromkeys(epoch.packet["layer_metrics"]))
        for layer, metrics in epoch.packet["layer_metrics"].items():
            parameters = metrics.get("parameters")
            if isinstance(parameters, int) and self._layer_sizes.get(layer) != parameters:
                self._layer_sizes[layer] = parameters
                self.sizes.append(SizeChange(epoch.epoch, layer, parameters))
            for seed_idx in range(len(self.seeds.get(layer, ()))):
                self._note_state(epoch.epoch, layer, seed_idx)

    def _note_state(self, epoch: int, layer: str, seed_idx: int) -> None:
        self.layer_names[layer] = None
        seed = self.seeds[layer][seed_idx]
        if self._seed_states.get((layer, seed_idx), SeedState.DORMANT.value) != seed.state:
            self._seed_states[layer, seed_idx] = seed.state
            self.states.append(StateChange(epoch, layer, seed_idx, seed.state, seed.kernel_id))

    def _forget_after(self, epoch: int) -> None:
        super()._forget_after(epoch)
        self.generation += 1
        self.sizes = [change for change in self.sizes if change.epoch <= epoch]
        self.states = [change for change in self.states if change.epoch <= epoch]
        self.growths = [growth for growth in self.growths if growth["epoch"] <= epoch]
        self._layer_sizes = {change.layer: change.parameters for change in self.sizes}
        self._seed_states = {(change.layer, change.seed_idx): change.state for change in self.states}


class RunHistories:
    """The histories of the runs in ``root``. Blocking; safe to call from several threads at once."""

    def __init__(self, root: Path) -> None:
        self._store = RunStore(root, keep_packets=False)
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
            run_id = run if run in self._store.run_ids() else self._store.open(run).run_id
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
    }


def _since(changes: Iterable[Any], epoch: int) -> list[Any]:
    return sorted((change for change in changes if change.epoch >= epoch), key=lambda change: change.epoch)


def _run(timeline: Timeline) -> dict[str, Any]:
    summary = summarize(timeline).to_json()
    del summary["path"]
    return {
        **summary,
        "seed": timeline.seed,
        "last_event": timeline.updated_at.isoformat() if timeline.updated_at else None,
        "resumes": timeline.resumes,
        "parameters_at_start": timeline.parameters_at_start,
        "flops_per_sample": timeline.flops_per_sample,
        "error": timeline.error,
        "inventing_error": timeline.inventing_error,
        "inventions": len(timeline.inventions),
        "damaged_lines": timeline.damaged,
        "result": _result(timeline),
    }


def _record(record: FaultRecord | RollbackRecord | CheckpointRecord) -> dict[str, Any]:
    values = {**asdict(record), "at": record.at.isoformat()}
    values.pop("path", None)  # where on its machine is for those who have that machine
    return values


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
