"""What is known of a run while it trains, built from its events, and each event as a line of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esper.messages import CompileQueue, SeedState, Slot
from esper_cli.terminal import count, counted, percent


@dataclass(slots=True)
class RunProgress:
    """The state that a display shows. ``clock`` returns seconds and never runs backwards."""

    clock: Callable[[], float] = time.monotonic
    run_id: str = ""
    experiment: str = ""
    total_epochs: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    held_out_loss: float | None = None
    accuracy: float | None = None
    best_accuracy: float = 0.0
    compiled: tuple[int, int] | None = None
    seeds: dict[str, list[SeedState]] = field(default_factory=dict)
    trials: list[Mapping[str, Any]] = field(default_factory=list)
    faults: int = 0
    rollbacks: int = 0
    saved: bool = False
    interrupted: bool = False
    _first_epoch: int = 0
    _began: float | None = None

    def apply(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take one event of the run in; events of no interest here are passed over."""
        handler = getattr(self, f"_on_{event}", None)
        if handler is not None:
            handler(fields)

    @property
    def done(self) -> float:
        """Share of the run's epochs that is done, in [0, 1]."""
        if not self.total_epochs:
            return 0.0
        within = self.step / self.steps if self.steps else 0.0
        return min(1.0, (self.epoch + within) / self.total_epochs)

    @property
    def seconds_left(self) -> float | None:
        """Time left at the mean pace since training began; None until there is a pace."""
        if self._began is None or not self.total_epochs:
            return None
        start = self._first_epoch / self.total_epochs
        elapsed = self.clock() - self._began
        if self.done <= start or elapsed <= 0:
            return None
        return elapsed * (1.0 - self.done) / (self.done - start)

    def _on_run_started(self, fields: Mapping[str, Any]) -> None:
        self.run_id = fields["run_id"]
        self.experiment = fields["experiment"] or ""
        self.total_epochs = fields["total_epochs"]
        resumed = fields["resumed_from_epoch"]
        self.saved = resumed is not None
        self.epoch = self._first_epoch = 0 if resumed is None else resumed + 1
        self.compiled = None
        self._began = self.clock()
        for name, layer in fields["layers"].items():
            self.seeds.setdefault(name, [SeedState.DORMANT] * layer["seeds"])

    def _on_compile(self, fields: Mapping[str, Any]) -> None:
        self.compiled = (fields["done"], fields["total"])

    def _on_step(self, fields: Mapping[str, Any]) -> None:
        self.epoch, self.step, self.steps = fields["epoch"], fields["step"] + 1, fields["steps"]
        self.loss = fields["loss"]

    def _on_epoch(self, fields: Mapping[str, Any]) -> None:
        packet = fields["packet"]
        self.epoch, self.step = packet["epoch"] + 1, 0
        self.loss, self.held_out_loss = packet["loss"], packet["held_out_loss"]
        self.accuracy = packet["accuracy"]
        self.best_accuracy = max(self.best_accuracy, packet["accuracy"])
        for name, layer in packet["layer_metrics"].items():
            self.seeds[name] = [SeedState(state) for state in layer["seed_states"]]

    def _on_seed(self, fields: Mapping[str, Any]) -> None:
        states = self.seeds.get(fields["layer"])
        if states is not None and fields["seed_idx"] < len(states):
            states[fields["seed_idx"]] = SeedState(fields["to_state"])

    def _on_trial(self, fields: Mapping[str, Any]) -> None:
        self.trials.append(fields["report"])

    def _on_fault(self, _fields: Mapping[str, Any]) -> None:
        self.faults += 1

    def _on_rollback(self, fields: Mapping[str, Any]) -> None:
        self.rollbacks += 1
        self.epoch, self.step = fields["to_epoch"], 0

    def _on_checkpoint(self, _fields: Mapping[str, Any]) -> None:
        self.saved = True

    def _on_run_interrupted(self, _fields: Mapping[str, Any]) -> None:
        self.interrupted = True


def describe(event: str, fields: Mapping[str, Any]) -> str | None:
    """One event as one line for people; None for an event that is no news by itself."""
    describer = _DESCRIBERS.get(event)
    return describer(fields) if describer is not None else None


def kernel_name(kernel_id: str | None) -> str:
    """A kernel's id short enough to read, long enough for ``esper kernels show``."""
    return (kernel_id or "no kernel")[:19]


def _run_started(fields: Mapping[str, Any]) -> str:
    seeds = sum(layer["seeds"] for layer in fields["layers"].values())
    last = fields["resumed_from_epoch"]
    resumed = f", resumed after epoch {last + 1}" if last is not None else ""
    return (
        f"run {fields['run_id']}: {fields['experiment'] or 'no experiment'} on {fields['task']}, "
        f"{counted(fields['total_epochs'], 'epoch')}, {count(fields['parameters'])} parameters, "
        f"{counted(seeds, 'seed')} in {counted(len(fields['layers']), 'layer')}, "
        f"seed {fields['seed']}{resumed}"
    )


def _epoch(fields: Mapping[str, Any]) -> str:
    packet = fields["packet"]
    total = packet["total_epochs"]
    return (
        f"epoch {packet['epoch'] + 1:>{len(str(total))}}/{total}  loss {packet['loss']:.4f}  "
        f"held-out {packet['held_out_loss']:.4f}  accuracy {percent(packet['accuracy'])}  "
        f"{count(fields['samples_per_second'])} samples/s"
    )


def _decision(fields: Mapping[str, Any]) -> str:
    decision, outcome = fields["decision"], fields["outcome"]
    kind = decision["adaptation_type"].replace("_", " ")
    seed = decision["parameters"].get("seed_idx")
    where = decision["target_component"] + (f" seed {seed}" if seed is not None else "")
    sure = f"confidence {decision['confidence']:.2f}"
    if outcome["status"] == "grown":
        return f"decision  {kind} at {where}, {sure}: {decision['reason']}; {outcome['reason']}"
    if outcome["status"] != "grafted":
        return f"decision  {kind} at {where}, {sure}: {decision['reason']}; refused: {outcome['reason']}"
    kernel = kernel_name(outcome["kernel_id"])
    return f"decision  {kind} at {where} with {kernel}, {sure}: {decision['reason']}"


def _seed(fields: Mapping[str, Any]) -> str:
    place = f"{fields['layer']} seed {fields['seed_idx']}"
    return f"seed      {place}: {fields['from_state']} -> {fields['to_state']}"


def _trial(fields: Mapping[str, Any]) -> str:
    report = fields["report"]
    place = f"{report['layer']} seed {report['seed_idx']} {kernel_name(report['kernel_id'])}"
    return (
        f"{report['verdict']:<8}  {place}: "
        f"{report['reason']}; held-out loss {report['loss_before']:.4f} -> {report['loss_after']:.4f}, "
        f"accuracy {percent(report['accuracy_before'])} -> {percent(report['accuracy_after'])}"
    )


def _fault(fields: Mapping[str, Any]) -> str:
    return (
        f"fault     {fields['layer']} seed {fields['seed_idx']} {kernel_name(fields['kernel_id'])}: "
        f"{fields['kind']}: {fields['message']}; the seed is off and training goes on"
    )


def _rollback(fields: Mapping[str, Any]) -> str:
    cause = fields["target"] or fields["cause"]
    left_out = fields["skipped"]
    batch = f"; batch {left_out[1] + 1} of epoch {left_out[0] + 1} is left out" if left_out else ""
    seeds = f"; {counted(len(fields['seeds']), 'seed')} reset" if fields["seeds"] else ""
    return (
        f"rollback  {fields['kind']} ({fields['detail']}), caused by {cause}: back from step "
        f"{fields['from_step']} to {fields['to_step']} in {fields['seconds']:.1f} s{batch}{seeds}"
    )


def _control(fields: Mapping[str, Any]) -> str:
    if fields["outcome"] == "refused":
        return f"control   {fields['action']} was asked for, and is refused: {fields['reason']}"
    done = {"pause": "paused", "resume": "goes on", "rollback": "went back"}[fields["action"]]
    return f"control   {done}, as was asked for, after step {fields['step']}"


def _invention(fields: Mapping[str, Any]) -> str:
    record = fields["record"]
    became = record["reason"] if record["kernel_id"] else f"failed in {record['failure']}"
    place = Slot(**record["slot"])
    return f"invented  {kernel_name(record['kernel_id'])} ({record['blueprint_name']} for {place}): {became}"


def _compile(fields: Mapping[str, Any]) -> str:
    record = fields["record"]
    name = f"{record.blueprint_name} for {record.slot}"
    done = f"compile   {fields['done']}/{fields['total']} {name}"
    if record.status == "failed":
        return f"{done}: failed in {record.stage}: {record.reason}"
    return f"{done}: as a fallback: {record.reason}" if record.reason else done


def _compile_queue(fields: Mapping[str, Any]) -> str:
    return f"queue     {CompileQueue(fields['waiting'], fields['compiling'], fields['workers'])}"


_DESCRIBERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "preparing": lambda fields: f"preparing {fields['experiment']} on {fields['task']}: kernels first",
    "compile_queue": _compile_queue,
    "run_started": _run_started,
    "epoch": _epoch,
    "decision": _decision,
    "seed": _seed,
    "trial": _trial,
    "fault": _fault,
    "rollback": _rollback,
    "control": _control,
    "compile": _compile,
    "message": lambda fields: str(fields["text"]),
    "invention": _invention,
    "inventing_ended": lambda fields: f"inventing ended, and training goes on: {fields['reason']}",
    "run_failed": lambda fields: f"failed    {fields['error']}",
}
