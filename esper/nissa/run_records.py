"""The records that a run's journal is read into, and how they are read from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from esper.messages import CompileQueue, FieldReport, InventionRecord, SeedState, Slot
from esper.nissa.journal import Event, number

ACTIVE_STATES = frozenset(
    {
        SeedState.GERMINATED,
        SeedState.TRAINING,
        SeedState.BLENDING,
        SeedState.HOLDING,
        SeedState.FOSSILIZED,
    }
)
"""States in which a seed holds a kernel, heard in the layer's output or not yet."""

_REPEATED = ("history", "trials", "refusals")

MAX_SEEDS = 100_000
"""No layer has more; a damaged index must not take all memory."""


class RunStatus(StrEnum):
    """How a run ended, or that it has not.

    ``PAUSED``: its process lives, and waits until it is told to go on. ``STOPPED``: its process is gone
    (killed, out of memory, power cut) without a last word.
    """

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def goes_on(self) -> bool:
        """Whether its process lives."""
        return self in (RunStatus.RUNNING, RunStatus.PAUSED)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch: mean training loss, held-out loss and accuracy, and what it cost.

    ``seconds`` of training and evaluation; ``packet`` is the recorded SystemStatePacket without its history
    (empty for older epochs of a view that was opened with ``keep_packets=False``).
    """

    epoch: int
    at: datetime
    loss: float
    held_out_loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    samples_per_second: float
    training_flops: float
    packet: Mapping[str, Any]


@dataclass(slots=True)
class Adaptation:
    """One decision, what became of it at once (``status``), and later the verdict on its seed (``trial``)."""

    epoch: int
    at: datetime
    decision: Mapping[str, Any]
    status: str
    kernel_id: str | None
    reason: str
    trial: FieldReport | None = None

    @property
    def performed(self) -> bool:
        """Whether the network was changed."""
        return self.status != "refused"

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``dumps``."""
        return {
            "epoch": self.epoch,
            "at": self.at.isoformat(),
            "decision": self.decision,
            "outcome": {"status": self.status, "kernel_id": self.kernel_id, "reason": self.reason},
            "trial": self.trial,
        }


@dataclass(frozen=True, slots=True)
class Transition:
    """One step in the lifecycle of a seed, with the evidence that let it pass."""

    epoch: int
    at: datetime
    layer: str
    seed_idx: int
    kernel_id: str | None
    from_state: str
    to_state: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Seed:
    """What a seed is now: its state, its kernel and the epoch since when."""

    state: str = SeedState.DORMANT.value
    kernel_id: str | None = None
    since_epoch: int = 0

    @property
    def active(self) -> bool:
        """Whether it holds a kernel."""
        return self.state in ACTIVE_STATES


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One failure of a kernel that was caught in its layer."""

    epoch: int
    at: datetime
    layer: str
    seed_idx: int
    kernel_id: str | None
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class RollbackRecord:
    """Instability (``kind``, in words ``detail``) and the way back: from where, to where, how long it took.

    ``seeds`` (layer and index) were culled; ``skipped`` is the batch (epoch, step) left out since, if any.
    """

    at: datetime
    cause: str
    target: str
    kind: str
    detail: str
    epoch: int
    from_step: int
    to_step: int
    to_epoch: int
    seconds: float
    seeds: tuple[tuple[str, int], ...]
    skipped: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A checkpoint that is on the disk: ``seconds`` from its begin, of which training waited ``paused``.

    It was written after ``epoch`` whole epochs and ``step`` steps of the optimizer.
    """

    at: datetime
    path: str
    seconds: float
    paused: float
    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class ControlRecord:
    """What became of a request to pause, to go on or to go back: ``done``, or refused for a ``reason``.

    ``epoch`` and ``step`` say how far the run was then.
    """

    at: datetime
    request: str
    action: str
    done: bool
    reason: str
    epoch: int
    step: int

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``dumps``."""
        return {**dataclasses.asdict(self), "at": self.at.isoformat()}


@dataclass(frozen=True, slots=True)
class CacheTier:
    """What a tier of the kernel library was asked; ``state`` is that of its circuit breaker, if any."""

    hits: int
    misses: int
    errors: int = 0
    state: str | None = None

    def after(self, earlier: CacheTier) -> CacheTier:
        """The counts of both; the state is its own."""
        return CacheTier(
            earlier.hits + self.hits,
            earlier.misses + self.misses,
            earlier.errors + self.errors,
            self.state,
        )


def parse_epoch(event: Event, at: datetime) -> Epoch:
    """The Epoch of an ``epoch`` event; raises KeyError, TypeError or ValueError when it is none."""
    packet = {name: value for name, value in event["packet"].items() if name not in _REPEATED}
    return Epoch(
        epoch=int(packet["epoch"]),
        at=at,
        loss=number(packet["loss"]),
        held_out_loss=number(packet.get("held_out_loss", "NaN")),
        accuracy=number(packet["accuracy"]),
        learning_rate=number(packet.get("learning_rate", 0)),
        seconds=number(event.get("seconds", 0)),
        samples_per_second=number(event.get("samples_per_second", 0)),
        training_flops=number(event.get("training_flops", 0)),
        packet=packet,
    )


def parse_queue(event: Event) -> CompileQueue:
    """The CompileQueue of a ``compile_queue`` event; KeyError, TypeError or ValueError when it is none."""
    oldest = event.get("oldest")
    if oldest is not None:
        oldest = parse_time(oldest).isoformat()
    return CompileQueue(int(event["waiting"]), int(event["compiling"]), int(event["workers"]), oldest)


def parse_adaptation(event: Event, at: datetime) -> Adaptation:
    """The Adaptation of a ``decision`` event; raises KeyError, TypeError or ValueError when it is none."""
    outcome = event["outcome"]
    return Adaptation(
        epoch=int(event["epoch"]),
        at=at,
        decision=dict(event["decision"]),
        status=str(outcome["status"]),
        kernel_id=outcome.get("kernel_id"),
        reason=str(outcome.get("reason") or ""),
    )


def parse_transition(event: Event, at: datetime) -> Transition:
    """The Transition of a ``seed`` event; raises KeyError, TypeError or ValueError when it is none."""
    seed_idx = int(event["seed_idx"])
    if not 0 <= seed_idx < MAX_SEEDS:
        raise ValueError(f"seed_idx {seed_idx}")
    return Transition(
        epoch=int(event["epoch"]),
        at=at,
        layer=str(event["layer"]),
        seed_idx=seed_idx,
        kernel_id=event.get("kernel_id"),
        from_state=str(event["from_state"]),
        to_state=str(event["to_state"]),
        evidence=dict(event.get("evidence", {})),
    )


def parse_fault(event: Event, at: datetime) -> FaultRecord:
    """The FaultRecord of a ``fault`` event; raises KeyError, TypeError or ValueError when it is none."""
    return FaultRecord(
        epoch=int(event["epoch"]),
        at=at,
        layer=str(event["layer"]),
        seed_idx=int(event["seed_idx"]),
        kernel_id=event.get("kernel_id"),
        kind=str(event["kind"]),
        message=str(event.get("message", "")),
    )


def parse_checkpoint(event: Event, at: datetime) -> CheckpointRecord:
    """That of a ``checkpoint`` event; raises KeyError, TypeError or ValueError if it is none."""
    return CheckpointRecord(
        at,
        str(event["path"]),
        number(event["seconds"]),
        number(event["paused"]),
        int(event.get("epoch", 0)),
        int(event.get("step", 0)),
    )


def parse_control(event: Event, at: datetime) -> ControlRecord:
    """That of a ``control`` event; raises KeyError, TypeError or ValueError if it is none."""
    return ControlRecord(
        at=at,
        request=str(event["request"]),
        action=str(event["action"]),
        done=event["outcome"] == "done",
        reason=str(event.get("reason") or ""),
        epoch=int(event["epoch"]),
        step=int(event["step"]),
    )


def parse_rollback(event: Event, at: datetime) -> RollbackRecord:
    """The RollbackRecord of a ``rollback`` event; raises KeyError, TypeError or ValueError if it is none."""
    skipped = event["skipped"]
    if skipped is not None:
        skipped_epoch, skipped_step = skipped
        skipped = int(skipped_epoch), int(skipped_step)
    return RollbackRecord(
        at=at,
        cause=str(event["cause"]),
        target=str(event["target"]),
        kind=str(event["kind"]),
        detail=str(event["detail"]),
        epoch=int(event["epoch"]),
        from_step=int(event["from_step"]),
        to_step=int(event["to_step"]),
        to_epoch=int(event["to_epoch"]),
        seconds=number(event["seconds"]),
        seeds=tuple((str(layer), int(seed_idx)) for layer, seed_idx in event["seeds"]),
        skipped=skipped,
    )


def parse_cache(event: Event) -> dict[str, CacheTier]:
    """The tiers of a ``cache`` event, also of one that has pairs of hits and misses.

    Raises KeyError, TypeError, ValueError or AttributeError when it is none.
    """
    tiers = {}
    for name, tier in event["tiers"].items():
        if isinstance(tier, Mapping):
            state = None if tier["state"] is None else str(tier["state"])
            tiers[name] = CacheTier(int(tier["hits"]), int(tier["misses"]), int(tier["errors"]), state)
        else:
            hits, misses = tier
            tiers[name] = CacheTier(int(hits), int(misses))
    return tiers


_REPORT = {item.name: str(item.type) for item in dataclasses.fields(FieldReport)}
_REPORT_NUMBERS = [(name, kind == "float") for name, kind in _REPORT.items() if kind.startswith("float")]
_SLOT = [item.name for item in dataclasses.fields(Slot)]


def parse_report(data: Mapping[str, Any]) -> FieldReport:
    """The FieldReport that was written as ``data``; fields of newer versions are left out, those that an
    older one did not write have their defaults.

    Raises KeyError, TypeError or ValueError when it is none.
    """
    values = {name: data[name] for name in _REPORT if name in data}
    for name, needed in _REPORT_NUMBERS:
        value = values.get(name)
        if type(value) is not float and (needed or value is not None):
            values[name] = number(value)
    values["ended_epoch"] = int(values["ended_epoch"])
    values["tags"] = tuple(map(str, data.get("tags", ())))
    values["slot"] = _slot(data)
    return FieldReport(**values)


def parse_invention(data: Mapping[str, Any]) -> InventionRecord:
    """The invention that was written as ``data``; raises KeyError, TypeError or ValueError if it is none."""
    values = {item.name: data[item.name] for item in dataclasses.fields(InventionRecord)}
    for name in ("predicted_impact", "uncertainty"):
        values[name] = None if values[name] is None else number(values[name])
    values["parents"] = tuple(map(str, values["parents"]))
    values["slot"] = _slot(data)
    return InventionRecord(**values)


def _slot(data: Mapping[str, Any]) -> Slot:
    return Slot(**{name: data["slot"][name] for name in _SLOT})


def parse_time(text: str) -> datetime:
    """An ISO 8601 time with its zone, UTC when it names none; raises ValueError or TypeError."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
