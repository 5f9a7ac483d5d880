"""How far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper.messages import EpochRecord, Refusal


@dataclass(slots=True)
class Progress:
    """How far a run has come; all of it goes into a checkpoint.

    FLOPs include held-out evaluations and what growth costs at its birth. ``grown_at`` is the share of the
    run that was done at its last growth.
    """

    epochs_done: int = 0
    global_step: int = 0
    samples: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    history: tuple[EpochRecord, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    grown_at: float | None = None

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        """The progress whose ``asdict`` is ``state``."""
        history = tuple(EpochRecord(**record) for record in state["history"])
        refusals = tuple(Refusal(**record) for record in state["refusals"])
        return cls(**{**state, "history": history, "refusals": refusals})
