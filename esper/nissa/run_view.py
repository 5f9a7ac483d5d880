"""What a run's journal says, folded into one object that follows a run while it is written.

The view is of the history that the network has lived. When a run is resumed from epoch k, or rolled back to
it, what was recorded after epoch k was thrown away with its weights, and leaves the view as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from esper.messages import CompileQueue, SeedState
from esper.nissa.journal import BEGINNINGS, JOURNAL_NAME, Event, is_being_written, number
from esper.nissa.journal_reader import JournalReader
from esper.nissa.run_parsing import (
    parse_adaptation,
    parse_cache,
    parse_checkpoint,
    parse_control,
    parse_epoch,
    parse_fault,
    parse_invention,
    parse_queue,
    parse_report,
    parse_rollback,
    parse_time,
    parse_transition,
)
from esper.nissa.run_records import (
    CacheTier,
    Epoch,
    RunHistory,
    RunStatus,
    Seed,
    Transition,
)
from esper.nissa.telemetry.messages import SinkCounts

MAX_FAULTS_KEPT = 1000
"""A view keeps this many of the latest faults; ``fault_counts`` counts them all."""

MAX_CONTROLS_KEPT = 1000
MAX_CHECKPOINTS_KEPT = 1000
"""Of these a view keeps the latest, too."""


class RunView(RunHistory):
    """One run, as far as its journal goes; ``refresh`` reads on from where it stopped.

    With ``keep_packets=False`` only the latest epoch keeps its packet, for a process that follows many runs.
    Not safe to share between threads.
    """

    def __init__(self, folder: Path, *, keep_packets: bool = True) -> None:
        super().__init__()
        self.folder = folder
        self.run_id = folder.name
        self._keep_packets = keep_packets
        self._reader = JournalReader(folder / JOURNAL_NAME)
        self._replaced: tuple[bytes, ...] = ()
        self._restarts = 0
        self._has_shed = False
        self._alive = False
        self._misunderstood = 0
        self._cache_base: dict[str, CacheTier] = {}

    @property
    def status(self) -> RunStatus:
        """Whether the run goes on, and if not, how it ended; as of the last ``refresh``."""
        if self.ended is not None or not self._alive:
            return self.ended or RunStatus.STOPPED
        return RunStatus.PAUSED if self.paused else RunStatus.RUNNING

    @property
    def seconds(self) -> float:
        """How long the run's processes have worked."""
        return self.worked.total_seconds()

    @property
    def queue(self) -> CompileQueue | None:
        """What is compiled for the run now; None where nothing was yet, or the run has ended."""
        return self.told_queue if self.status.goes_on else None

    @property
    def damaged(self) -> int:
        """Lines and events that could not be understood, and were left out."""
        return self._reader.damaged + self._misunderstood

    @property
    def torn(self) -> int:
        """Bytes of a last line that is not finished."""
        return self._reader.torn

    @property
    def last(self) -> Epoch | None:
        """The latest epoch."""
        return self.epochs[-1] if self.epochs else None

    def refresh(self) -> RunView:
        """Read what was written since; returns itself. Raises StorageError when it cannot be read."""
        # Asked before reading: a process that is gone by now has written all that it ever will.
        self._alive = is_being_written(self.folder / JOURNAL_NAME)
        if self._has_shed:
            if self._reader.is_all():
                return self
            self._reader.begin_again()
        for event in self._reader.read(self._replaced):
            self._start_over_if_replaced()
            self._apply(event)
        self._start_over_if_replaced()
        return self

    def _start_over_if_replaced(self) -> None:
        if self._reader.restarts == self._restarts:
            return
        for item in dataclasses.fields(RunHistory):
            setattr(self, item.name, getattr(RunHistory(), item.name))
        self._cache_base, self._misunderstood = {}, 0
        self._restarts = self._reader.restarts
        self._has_shed = False

    def shed(self) -> None:
        """Keep no epoch but the last and no transitions; should more be written, all is read again."""
        self.epochs, self.transitions = self.epochs[-1:], []
        self._has_shed = True

    def _apply(self, event: Event) -> None:
        handler = _HANDLERS.get(event["event"])
        waited = self.paused
        try:
            at = parse_time(event["at"])
            if handler is not None:
                handler(self, event, at)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            self._misunderstood += 1
            return
        if event["event"] not in BEGINNINGS and self.updated_at is not None and not waited:
            # A clock that was set back takes no time away.
            self.worked += max(timedelta(), at - self.updated_at)
        self.updated_at = at

    # One method an event. Each reads all its fields before it changes anything.

    def _on_preparing(self, event: Event, at: datetime) -> None:
        total_epochs = int(event.get("total_epochs", 0))
        if self.started_at is None:  # else it is resumed, and what it is was told
            self.experiment, self.task = str(event.get("experiment", "")), str(event.get("task", ""))
            self.seed, self.total_epochs, self.started_at = event.get("seed"), total_epochs, at
        self.preparing, self.paused = True, False
        self.told_queue = self.ended = None

    def _on_started(self, event: Event, at: datetime) -> None:
        resumed = event.get("resumed_from_epoch")
        epoch = None if resumed is None else int(resumed)
        layers: dict[str, Mapping[str, Any]] = {
            name: dict(layer) for name, layer in event.get("layers", {}).items()
        }
        seeds = {name: [Seed()] * int(layer.get("seeds", 0)) for name, layer in layers.items()}
        numbers = int(event.get("parameters", 0)), number(event.get("flops_per_sample", 0))
        self.total_epochs = int(event.get("total_epochs", 0))
        self.experiment, self.task = str(event.get("experiment", "")), str(event.get("task", ""))
        self.seed = event.get("seed")
        self.parameters, self.flops_per_sample = numbers
        self.layers, self.seeds = layers, seeds
        self.ended = self.summary = self.error = self.inventing_error = None
        self.paused = False
        self._cache_base = dict(self.cache)
        first = self.started_at is None or (self.preparing and epoch is None)
        self.preparing, self.told_queue = False, None
        if first:
            self.started_at = self.started_at or at
        else:
            self.resumes += 1
            self._forget_after(-1 if epoch is None else epoch)

    def _forget_after(self, epoch: int) -> None:
        self.epochs = [item for item in self.epochs if item.epoch <= epoch]
        self.adaptations = [item for item in self.adaptations if item.epoch <= epoch]
        self.trials = [item for item in self.trials if item.ended_epoch <= epoch]
        for adaptation in self.adaptations:
            if adaptation.trial is not None and adaptation.trial.ended_epoch > epoch:
                adaptation.trial = None
        self.transitions = [item for item in self.transitions if item.epoch <= epoch]
        for transition in self.transitions:
            self._move(transition)

    def _on_epoch(self, event: Event, at: datetime) -> None:
        epoch = parse_epoch(event, at)
        states = {
            name: list(layer.get("seed_states", ())) for name, layer in epoch.packet["layer_metrics"].items()
        }
        # After a rollback an epoch is lived again; the last one counts.
        while self.epochs and self.epochs[-1].epoch >= epoch.epoch:
            self.epochs.pop()
        if self.epochs and not self._keep_packets:
            self.epochs[-1] = dataclasses.replace(self.epochs[-1], packet={})
        self.epochs.append(epoch)
        for layer, layer_states in states.items():
            for seed_idx, state in enumerate(layer_states):
                seed = self._seed(layer, seed_idx)
                if seed.state != state:
                    kernel_id = None if state == SeedState.DORMANT else seed.kernel_id
                    self.seeds[layer][seed_idx] = Seed(str(state), kernel_id, epoch.epoch)

    def _on_decision(self, event: Event, at: datetime) -> None:
        self.adaptations.append(parse_adaptation(event, at))

    def _on_seed(self, event: Event, at: datetime) -> None:
        transition = parse_transition(event, at)
        self._move(transition)
        self.transitions.append(transition)

    def _move(self, step: Transition) -> None:
        self._seed(step.layer, step.seed_idx)
        kernel_id = None if step.to_state == SeedState.DORMANT else step.kernel_id
        self.seeds[step.layer][step.seed_idx] = Seed(step.to_state, kernel_id, step.epoch)

    def _seed(self, layer: str, seed_idx: int) -> Seed:
        seeds = self.seeds.setdefault(layer, [])
        if seed_idx >= len(seeds):
            seeds.extend([Seed()] * (seed_idx + 1 - len(seeds)))
        return seeds[seed_idx]

    def _on_trial(self, event: Event, _: datetime) -> None:
        report = parse_report(event["report"])
        self.trials.append(report)
        for adaptation in reversed(self.adaptations):
            decision = adaptation.decision
            place = decision.get("target_component"), decision.get("parameters", {}).get("seed_idx")
            if place == (report.layer, report.seed_idx) and adaptation.kernel_id == report.kernel_id:
                adaptation.trial = report
                break

    def _on_fault(self, event: Event, at: datetime) -> None:
        fault = parse_fault(event, at)
        self.fault_counts[fault.kind] += 1
        self.faults.append(fault)
        del self.faults[:-MAX_FAULTS_KEPT]

    def _on_rollback(self, event: Event, at: datetime) -> None:
        rollback = parse_rollback(event, at)
        self.rollbacks.append(rollback)
        self.seeds = {layer: [Seed()] * len(seeds) for layer, seeds in self.seeds.items()}
        self._forget_after(rollback.to_epoch - 1)

    def _on_checkpoint(self, event: Event, at: datetime) -> None:
        if "seconds" in event:  # older journals do not have it
            self.checkpoint = parse_checkpoint(event, at)
            self.checkpoints[self.checkpoint.path] = self.checkpoint
            _drop_oldest(self.checkpoints, MAX_CHECKPOINTS_KEPT)

    def _on_control(self, event: Event, at: datetime) -> None:
        record = parse_control(event, at)
        self.controls[record.request] = record
        _drop_oldest(self.controls, MAX_CONTROLS_KEPT)
        if record.done and record.action in ("pause", "resume"):
            self.paused = record.action == "pause"

    def _on_cache(self, event: Event, _: datetime) -> None:
        # A resumed run's process counts from zero; the run's own counts only grow.
        for name, tier in parse_cache(event).items():
            self.cache[name] = tier.after(self._cache_base.get(name, CacheTier(0, 0)))

    def _on_queue(self, event: Event, _: datetime) -> None:
        self.told_queue = parse_queue(event)

    def _on_telemetry(self, event: Event, _: datetime) -> None:
        self.sinks = {str(name): SinkCounts.of(counts) for name, counts in event["sinks"].items()}

    def _on_invention(self, event: Event, _: datetime) -> None:
        record = parse_invention(event["record"])
        self.inventions[record.graph_id, str(record.slot)] = record

    def _on_inventing_ended(self, event: Event, _: datetime) -> None:
        self.inventing_error = str(event["reason"])
        self.told_queue = None

    def _on_finished(self, event: Event, _: datetime) -> None:
        self.summary = dict(event.get("summary", {}))
        self.ended = RunStatus.FINISHED

    def _on_interrupted(self, _: Event, __: datetime) -> None:
        self.ended = RunStatus.INTERRUPTED

    def _on_failed(self, event: Event, _: datetime) -> None:
        self.error = str(event.get("error", ""))
        self.ended = RunStatus.FAILED


def _drop_oldest(records: dict[str, Any], most: int) -> None:
    while len(records) > most:
        del records[next(iter(records))]


_HANDLERS: dict[str, Callable[[RunView, Event, datetime], None]] = {
    "preparing": RunView._on_preparing,
    "run_started": RunView._on_started,
    "epoch": RunView._on_epoch,
    "decision": RunView._on_decision,
    "seed": RunView._on_seed,
    "trial": RunView._on_trial,
    "fault": RunView._on_fault,
    "rollback": RunView._on_rollback,
    "checkpoint": RunView._on_checkpoint,
    "control": RunView._on_control,
    "cache": RunView._on_cache,
    "compile_queue": RunView._on_queue,
    "telemetry": RunView._on_telemetry,
    "invention": RunView._on_invention,
    "lineage": RunView._on_invention,
    "inventing_ended": RunView._on_inventing_ended,
    "run_finished": RunView._on_finished,
    "run_interrupted": RunView._on_interrupted,
    "run_failed": RunView._on_failed,
}
