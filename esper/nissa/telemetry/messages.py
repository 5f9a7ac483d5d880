"""What goes to a sink, and what a sink is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from esper.nissa.journal import dumps

Kind = Literal["event", "step", "health"]


_NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


class _Parts(NamedTuple):
    kind: Kind
    name: str
    at: float
    place: int
    fields: Mapping[str, Any] = _NO_FIELDS
    record: bytes = b""


class Message(_Parts):
    """One message of a run.

    ``at`` is Unix time in seconds. ``place`` orders the messages of a run: for an event the byte of the
    journal after its line, which no other event has; for a signal that of the last event before it. Events
    and steps have ``fields``; the health of a layer has ``record``, as ``health_record.pack`` made it.
    """

    @cached_property
    def json(self) -> str:
        """``fields`` on one line of JSON, written once for all sinks."""
        return dumps(self.fields)


class Sink(Protocol):
    """Where messages go. One thread uses it, which is its own, and may be held up by it.

    ``write``, ``position`` and ``idle`` raise SinkUnavailable, or OSError, when it cannot take anything now:
    the same messages come again later. Whatever else they raise is a fault of theirs, and the messages are
    lost.
    """

    @property
    def name(self) -> str:
        """What its counts are kept under."""
        ...

    def position(self) -> int | None:
        """Place of the last event that it has of this run; None if it keeps no count of that."""
        ...

    def write(self, batch: Sequence[Message]) -> None:
        """Take messages in, in order."""
        ...

    def idle(self) -> None:
        """Called now and then while there is nothing to write."""
        ...

    def close(self) -> None:
        """Let go of what it holds; after the last call of anything else."""
        ...


@dataclass(slots=True)
class SinkCounts:
    """How a sink fares: messages ``written``, signals ``dropped`` because they came faster than it took
    them, messages ``lost`` through faults of its own, ``errors``, and how many bytes of the journal it is
    ``behind``.

    ``state`` is ``up`` or ``down``, ``reason`` its last error.
    """

    written: int = 0
    dropped: int = 0
    lost: int = 0
    errors: int = 0
    behind: int = 0
    state: str = "up"
    reason: str = ""

    @property
    def misses_something(self) -> bool:
        """Whether not all that was said has arrived."""
        return bool(self.dropped or self.lost or self.behind)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> SinkCounts:
        """The counts that an event has as ``data``; raises TypeError or ValueError when they are none."""
        counts = {name: int(data.get(name, 0)) for name in ("written", "dropped", "lost", "errors", "behind")}
        return cls(**counts, state=str(data.get("state", "up")), reason=str(data.get("reason", "")))
