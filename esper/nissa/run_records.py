"""The records that a run's journal is read into."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from esper.messages import CompileQueue, FieldReport, InventionRecord, SeedState
from esper.nissa.telemetry.messages import SinkCounts

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


@dataclass(slots=True, eq=False)
class RunHistory:
    """Everything that the events of a run add up to, each list oldest first.

    ``worked`` is the time that the run's processes have worked, without the pauses between them; ``layers``
    are as ``run_started`` gave them; ``seeds`` what each seed is now; ``cache`` what each tier of the kernel
    library was asked; ``sinks`` how each sink of telemetry fares; ``inventions``, by graph and slot, what was
    invented beside the run, and of what the invented kernels were made that it tried; ``inventing_error`` why
    inventing ended before the run, if it did; ``checkpoints`` are by their paths, ``checkpoint`` is the one
    told of last; ``controls``, by request, what became of what was asked of the run; ``paused`` whether it
    waits; ``preparing`` whether kernels are compiled before it starts; ``told_queue`` what was said last of
    what is compiled for it; ``ended`` how the run ended by its own word, None when it has given none.
    """

    experiment: str = ""
    task: str = ""
    seed: int | None = None
    parameters: int = 0
    flops_per_sample: float = 0.0
    total_epochs: int = 0
    layers: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    started_at: datetime | None = None
    updated_at: datetime | None = None
    worked: timedelta = timedelta()
    resumes: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    adaptations: list[Adaptation] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    seeds: dict[str, list[Seed]] = field(default_factory=dict)
    trials: list[FieldReport] = field(default_factory=list)
    faults: list[FaultRecord] = field(default_factory=list)
    fault_counts: Counter[str] = field(default_factory=Counter)
    rollbacks: list[RollbackRecord] = field(default_factory=list)
    checkpoint: CheckpointRecord | None = None
    checkpoints: dict[str, CheckpointRecord] = field(default_factory=dict)
    controls: dict[str, ControlRecord] = field(default_factory=dict)
    paused: bool = False
    preparing: bool = False
    told_queue: CompileQueue | None = None
    cache: dict[str, CacheTier] = field(default_factory=dict)
    sinks: dict[str, SinkCounts] = field(default_factory=dict)
    inventions: dict[tuple[str, str], InventionRecord] = field(default_factory=dict)
    inventing_error: str | None = None
    summary: Mapping[str, Any] | None = None
    error: str | None = None
    ended: RunStatus | None = None
