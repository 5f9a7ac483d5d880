"""What the API answers, described by pydantic models.

Numbers that JSON lacks are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from esper.messages import CompilationRecord, CompileQueue, InventionRecord, KernelMetadata
from esper.nissa.api.queries import Model
from esper.nissa.run_records import CacheTier, RunStatus

Number = float | Literal["NaN", "Infinity", "-Infinity"]
Next = Annotated[str | None, Field(description="the cursor of the next page; null at the end")]


class Problem(Model):
    """What went wrong, as of RFC 9457; ``hint`` says what to do next."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    hint: str | None


class Check(Model):
    """One thing that was looked at."""

    name: str
    healthy: bool
    detail: str


class Health(Model):
    """All checks together."""

    status: Literal["ok", "degraded"]
    reasons: list[str]
    checks: list[Check]


class Live(Model):
    """This server answers."""

    status: Literal["ok"]


class RunItem(Model):
    """A run in one line; losses and accuracy are those of its latest epoch."""

    run_id: str
    experiment: str
    task: str
    status: RunStatus
    started: str
    seconds: Number
    epochs: int
    total_epochs: int
    loss: Number | None
    held_out_loss: Number | None
    accuracy: Number | None
    adaptations: int
    kept: int
    faults: int


class RunState(RunItem):
    """A run with the states of its seeds, what its caches were asked and what went wrong."""

    path: str
    seeds: dict[str, list[str]]
    active_seeds: dict[str, int]
    cache: dict[str, CacheTier]
    fault_counts: dict[str, int]
    last_event: str | None
    error: str | None
    damaged_lines: int


class CompileQueues(Model):
    """What waits to be compiled and what is: of each run that goes on, and at the broker of compile workers.

    A run that has had nothing compiled yet has null; so has a broker that is not there, or does not answer.
    """

    runs: dict[str, CompileQueue | None]
    broker: CompileQueue | None


class Status(Health):
    """Every component, and the runs that go on or ended last."""

    version: str
    time: str
    run_counts: dict[str, int]
    runs: list[RunState]
    compile_queue: CompileQueues
    library: Annotated[dict[str, CacheTier], Field(description="what this server's own tiers were asked")]


class Outcome(Model):
    """What became of a decision at once."""

    status: str
    kernel_id: str | None
    reason: str


class AdaptationItem(Model):
    """A decision, its outcome, and the report of its trial once there is one."""

    run_id: str
    experiment: str
    epoch: int
    at: str
    decision: dict[str, Any]
    outcome: Outcome
    trial: dict[str, Any] | None
    result: Annotated[str, Field(description="refused, grown, pending, or the verdict of the trial")]


class Adaptations(Model):
    """Adaptations, the newest first; ``total`` counts all that the filters let through."""

    total: int
    adaptations: list[AdaptationItem]
    next: Next


class Runs(Model):
    """Runs, the one started last first; ``total`` counts all that the filters let through."""

    total: int
    runs: list[RunItem]
    next: Next


class SeedItem(Model):
    """A seed as it is now."""

    state: str
    kernel_id: str | None
    since_epoch: int
    active: bool


class LayerItem(Model):
    """A layer and its seeds."""

    kind: str
    seeds: list[SeedItem]


class EpochItem(Model):
    """The latest epoch."""

    epoch: int
    at: str
    loss: Number
    held_out_loss: Number
    accuracy: Number
    learning_rate: Number
    seconds: Number
    samples_per_second: Number
    training_flops: Number


class CheckpointItem(Model):
    """A checkpoint that is on the disk."""

    name: str
    at: str
    epoch: int
    step: int
    seconds: Number


class RollbackItem(Model):
    """A way back: from where, to where, and why."""

    at: str
    cause: str
    target: str
    kind: str
    detail: str
    epoch: int
    from_step: int
    to_step: int
    to_epoch: int
    seconds: Number


class ControlItem(Model):
    """What became of what the run was asked."""

    at: str
    request: str
    action: str
    done: bool
    reason: str
    epoch: int
    step: int


class Alert(Model):
    """Something that a person should look at; ``hint`` is the command to go on with, where there is one."""

    at: str | None
    kind: str
    text: str
    hint: str | None


class Run(RunItem):
    """A run: its layers, where it is, what it changed and what went wrong."""

    seed: Any
    parameters: int
    flops_per_sample: Number
    resumes: int
    layers: dict[str, LayerItem]
    latest: EpochItem | None
    adaptation_counts: Annotated[dict[str, int], Field(description="by result")]
    checkpoints: list[CheckpointItem]
    rollbacks: list[RollbackItem]
    controls: list[ControlItem]
    alerts: list[Alert]
    cache: dict[str, CacheTier]
    result: Annotated[dict[str, Any] | None, Field(description="of a finished run")]


class Standing(Model):
    """What is known of a kernel: its chance of being kept, how sure that is, and its trials."""

    score: float
    error: float
    kept: int
    trials: int


class KernelItem(Model):
    """A kernel of the library."""

    kernel: KernelMetadata
    standing: Standing


class Kernels(Model):
    """Kernels in the order that was asked for."""

    kernels: list[KernelItem]
    next: Next


class Lineage(Model):
    """What a kernel came from; empty where it is from nothing."""

    parent_blueprint: str
    parent_kernel: str
    run_id: str
    decision: str
    inventions: list[InventionRecord]


class TrialItem(Model):
    """A trial of a kernel: in which run, and what it showed (a FieldReport)."""

    run_id: str
    report: dict[str, Any]


class Kernel(KernelItem):
    """A kernel with its blueprint, what it came from and its latest trials."""

    blueprint: dict[str, Any]
    lineage: Lineage
    results: list[TrialItem]


class Tags(Model):
    """The tags of a kernel, as they are now."""

    kernel_id: str
    tags: list[str]


class Compilations(Model):
    """Attempts to compile, the newest first; ``counts`` of all, by status."""

    counts: dict[str, int]
    broker: Annotated[CompileQueue | None, Field(description="what waits at the broker of compile workers")]
    compilations: list[CompilationRecord]
    next: Next


class Requested(Model):
    """What a run was asked; ``outcome`` is null until it has answered, ``look`` where that will show."""

    request: str
    run_id: str
    action: Literal["pause", "resume", "rollback"]
    epoch: int | None
    step: int | None
    at: str
    outcome: ControlItem | None
    look: str
