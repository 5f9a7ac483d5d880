"""How the records of a run are read from the events of its journal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from esper.messages import CompileQueue, FieldReport, InventionRecord, Slot
from esper.nissa.journal import Event, number
from esper.nissa.run_records import (
    Adaptation,
    CacheTier,
    CheckpointRecord,
    ControlRecord,
    Epoch,
    FaultRecord,
    RollbackRecord,
    Transition,
)

_REPEATED = ("history", "trials", "refusals")

MAX_SEEDS = 100_000
"""No layer has more; a damaged index must not take all memory."""


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
    values = (
        dict(data)
        if data.keys() == _REPORT.keys()
        else {name: data[name] for name in _REPORT if name in data}
    )
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
