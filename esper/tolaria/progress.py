"""How far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from esper.messages import Cause, EpochRecord, Refusal
from esper.tolaria.append_only import AppendOnly, restored
from esper.tolaria.stability import Limits


@dataclass(slots=True)
class EpochSoFar:
    """An epoch under way: its ``steps`` and ``samples``, and the sum of their losses, on the device."""

    loss: Tensor
    steps: int = 0
    samples: int = 0

    @classmethod
    def begun(cls, device: torch.device) -> EpochSoFar:
        """An epoch of which nothing is done."""
        return cls(torch.zeros((), device=device))

    def add(self, loss: Tensor, samples: int) -> None:
        """Count a step with the mean ``loss`` over ``samples``; reads nothing from the device."""
        self.loss += loss * samples
        self.steps += 1
        self.samples += samples


@dataclass(frozen=True, slots=True)
class Adapted:
    """A kernel grafted, or growth, at the end of ``epoch``; ``step`` is that of the checkpoint before it."""

    epoch: int
    target: str
    step: int


@dataclass(frozen=True, slots=True)
class Rollback:
    """One way back: seen in ``epoch`` after ``from_step`` optimizer steps, gone on from after ``to_step``.

    The cause is ``request`` where somebody asked for it.
    """

    cause: Cause | Literal["request"]
    target: str
    epoch: int
    from_step: int
    to_step: int


@dataclass(frozen=True, slots=True)
class Easing:
    """The learning rate after a rollback: ``share`` of it at step ``start``, back in full at ``end``."""

    share: float
    start: int
    end: int

    def factor(self, step: int) -> float:
        """What the rate of optimizer step ``step`` is multiplied by."""
        done = (step - self.start) / (self.end - self.start)
        return 1.0 if done >= 1 else self.share + (1 - self.share) * max(done, 0.0)


@dataclass(slots=True)
class Progress:
    """How far a run has come; all of it goes into a checkpoint.

    FLOPs include held-out evaluations and what growth costs at its birth. ``grown_at`` is the share of the
    run that was done at its last growth. Of rollbacks: those that were, the batches (epoch, step) and the
    samples that are left out since, what the learning rate is multiplied by, and until which epoch a target
    is not grown.
    """

    epochs_done: int = 0
    global_step: int = 0
    samples: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    history: AppendOnly[EpochRecord] = field(default_factory=AppendOnly)
    refusals: AppendOnly[Refusal] = field(default_factory=AppendOnly)
    grown_at: float | None = None
    adapted: tuple[Adapted, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    skipped: tuple[tuple[int, int], ...] = ()
    left_out: tuple[int, ...] = ()
    rate: float = 1.0
    easing: Easing | None = None
    embargoed: tuple[tuple[str, int], ...] = ()

    @property
    def rate_factor(self) -> float:
        """What rollbacks multiply the learning rate of the next step by; 1 when there was none."""
        return self.rate * (1.0 if self.easing is None else self.easing.factor(self.global_step))

    def watched(self, epoch: int, limits: Limits) -> tuple[Adapted, ...]:
        """The adaptations that instability in ``epoch`` may come from, oldest first."""
        return tuple(each for each in self.adapted if epoch <= each.epoch + limits.adaptation_epochs)

    def earlier_rollbacks(self, cause: Cause, target: str, epoch: int) -> int:
        """How many there were for one cause: of an adaptation in all, else since the epoch before."""
        alike = [each for each in self.rollbacks if (each.cause, each.target) == (cause, target)]
        return len(alike if target else [each for each in alike if each.epoch >= epoch - 1])

    def carry_on_from(self, left: Progress, rollback: Rollback) -> None:
        """Take over from the progress that is ``left`` what no rollback undoes: what was spent, and why."""
        self.samples, self.flops, self.seconds = left.samples, left.flops, left.seconds
        self.rollbacks = (*left.rollbacks, rollback)
        self.skipped, self.left_out = left.skipped, left.left_out
        self.embargoed = left.embargoed
        self.rate, self.easing = left.rate, left.easing

    def state(self) -> dict[str, Any]:
        """Plain data, and what only grows as it is: this takes no longer the longer a run is."""
        rest = asdict(replace(self, history=AppendOnly(), refusals=AppendOnly()))
        return {**rest, "history": self.history, "refusals": self.refusals}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """The progress that ``state`` is of."""
        history = restored(state["history"], lambda record: EpochRecord(**record))
        refusals = restored(state["refusals"], lambda record: Refusal(**record))
        easing = state.get("easing")
        rest = {
            "adapted": tuple(Adapted(**each) for each in state.get("adapted", ())),
            "rollbacks": tuple(Rollback(**each) for each in state.get("rollbacks", ())),
            "easing": None if easing is None else Easing(**easing),
        }
        return cls(**{**state, "history": history, "refusals": refusals, **rest})
