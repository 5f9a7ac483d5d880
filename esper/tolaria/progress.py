"""How far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper.messages import EpochRecord, Refusal


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
