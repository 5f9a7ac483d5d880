"""A kernel on trial in a seed: how long each stage lasts, and what the held-out split says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch import Tensor, nn

from esper.kasmina import SeedRecord, restore_seeds
from esper.messages import Blend, FieldReport, SeedState, Site, Slot
from esper.tolaria.evaluation import Evaluation
from esper.tolaria.shared import Rebuild

SeedKey = tuple[str, int]
"""A seed's layer name and index."""


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """Steps spent in each stage, and when a trial's gain counts.

    A kernel is kept when the lower bound ``gain - z * standard error`` exceeds ``min_gain`` (nats). ``z`` of
    1.645 makes it a one-sided test at 5 %. After a trial that failed, the seed rests ``embargo_epochs``. With
    ``fold``, a kept kernel that is affine is added to its host's weights, and its seed can grow again.
    """

    training_steps: int
    blending_steps: int
    holding_steps: int
    z: float = 1.645
    min_gain: float = 0.0
    embargo_epochs: int = 2
    fold: bool = False


@dataclass(slots=True)
class Trial:
    """One kernel in one seed, from its graft on; ``steps`` counts those in the current state."""

    layer: str
    layer_kind: str
    seed_idx: int
    slot: Slot
    site: Site
    blend: Blend
    kernel_id: str
    blueprint_id: str
    blueprint: str
    alpha_blend: float
    expected_impact: float
    started_epoch: int
    loss_before: float
    accuracy_before: float
    parameters: int
    steps: int = 0
    finished: bool = False
    confidence: float | None = None
    tags: tuple[str, ...] = ()
    task: str = ""
    depth: int | None = None
    layers: int | None = None
    gradient_norm: float | None = None
    activation_variance: float | None = None
    health: float | None = None
    latency_ms: float | None = None
    seconds: float = 0.0
    target: str = "torchscript"

    @property
    def key(self) -> tuple[str, int]:
        """The seed it runs in: layer name and index."""
        return self.layer, self.seed_idx

    @property
    def name(self) -> str:
        """The name of its parameter group."""
        return f"{self.layer}#{self.seed_idx}"

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Trial:
        """The trial that ``state`` was made from."""
        return cls(**{**state, "slot": Slot(**state["slot"]), "tags": tuple(state.get("tags", ()))})


def restore_trials(model: nn.Module, state: Mapping[str, Any], rebuild: Rebuild) -> dict[SeedKey, Trial]:
    """Graft into ``model`` the kernels of a checkpoint's ``growth``; then its weights fit the model.

    Raises GraftError when the model is not the one that was saved.
    """
    trials = {trial.key: trial for trial in map(Trial.from_state, state["trials"])}
    sources = {trial.kernel_id: trial for trial in trials.values()}
    records = [SeedRecord(**{**record, "state": SeedState(record["state"])}) for record in state["seeds"]]

    def rebuilt(kernel_id: str) -> nn.Module:
        trial = sources[kernel_id]
        return rebuild(trial.blueprint, trial.slot, trial.target)

    restore_seeds(model, records, rebuilt)
    return trials


@dataclass(frozen=True, slots=True)
class Verdict:
    """The paired comparison of one seed on and off over the held-out samples."""

    kept: bool
    gain: float
    gain_error: float
    gain_lower: float
    threshold: float
    reason: str

    def evidence(self) -> dict[str, float | str]:
        """The numbers, for the journal and the lifecycle gate."""
        return {
            "split": "held_out",
            "gain": self.gain,
            "gain_error": self.gain_error,
            "gain_lower": self.gain_lower,
            "threshold": self.threshold,
        }


def field_report_from(state: dict[str, Any]) -> FieldReport:
    """The report whose ``asdict`` is ``state``."""
    return FieldReport(**{**state, "slot": Slot(**state["slot"]), "tags": tuple(state.get("tags", ()))})


def judge(on: Tensor, off: Tensor, plan: TrialPlan) -> Verdict:
    """Compare per-sample losses (N,), in nats, of the network with the seed on and off."""
    difference = (off - on).double()
    gain = float(difference.mean())
    error = float(difference.std()) / math.sqrt(len(difference))
    bound = gain - plan.z * error
    kept = math.isfinite(bound) and bound > plan.min_gain
    effect = "lowers" if gain >= 0 else "raises"
    comparison = "above" if kept else "not above"
    reason = (
        f"the seed {effect} the held-out loss by {abs(gain):.4f} ± {error:.4f} nats; "
        f"the lower bound of the gain, {bound:.4f}, is {comparison} {plan.min_gain:g}"
    )
    return Verdict(kept, gain, error, bound, plan.min_gain, reason)


def report(trial: Trial, epoch: int, verdict: Verdict, after: Evaluation) -> FieldReport:
    """The field report of a judged trial; ``after`` measures the network that the verdict left."""
    return FieldReport(
        **_context(trial, epoch),
        verdict="kept" if verdict.kept else "culled",
        reason=verdict.reason,
        gain=verdict.gain,
        gain_error=verdict.gain_error,
        threshold=verdict.threshold,
        loss_after=after.loss,
        accuracy_after=after.accuracy,
    )


def failure_report(trial: Trial, epoch: int, reason: str, plan: TrialPlan) -> FieldReport:
    """The field report of a trial that ended in a fault: no gain was measured, the host went on alone."""
    return FieldReport(
        **_context(trial, epoch),
        verdict="failed",
        reason=reason,
        gain=0.0,
        gain_error=0.0,
        threshold=plan.min_gain,
        loss_after=trial.loss_before,
        accuracy_after=trial.accuracy_before,
    )


def _context(trial: Trial, epoch: int) -> dict[str, Any]:
    """What a report says of a trial under the same names, and when it ended."""
    shared = {each.name for each in fields(Trial)} & {each.name for each in fields(FieldReport)}
    return {"ended_epoch": epoch, **{name: getattr(trial, name) for name in shared}}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a decision; ``kernel_id`` is the kernel that was picked for it, if one was."""

    status: Literal["grafted", "grown", "refused"]
    reason: str
    kernel_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for the journal."""
        return asdict(self)
