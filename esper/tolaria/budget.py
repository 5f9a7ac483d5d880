"""How long a run goes on: a number of epochs, or of FLOPs, of a network whose cost changes as it grows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from esper.data.batches import Batches
from esper.errors import ConfigError
from esper.tolaria.evaluation import Flops, HeldOut, count_flops
from esper.tolaria.progress import Progress


class Cost:
    """FLOPs of a network as it stands; ``version`` is another one after each change of it."""

    def __init__(self, held_out: HeldOut, batches: Batches, version: Callable[[], tuple[int, int]]) -> None:
        self._held_out = held_out
        self._batches = batches
        self._version = version
        self._counted: tuple[tuple[int, int], Flops] | None = None

    def flops(self) -> Flops:
        """FLOPs per sample, counted again after each change of the network."""
        version = self._version()
        if self._counted is None or self._counted[0] != version:
            x, y = self._batches.x[:2], self._batches.y[:2]
            self._counted = (version, count_flops(self._held_out.model, x, y))
        return self._counted[1]

    def first_step(self) -> float:
        """FLOPs of the first step of an epoch."""
        return min(self._batches.batch_size, len(self._batches.y)) * self.flops().training

    def evaluation(self) -> float:
        """FLOPs of one evaluation of the held-out split."""
        return len(self._held_out.y) * self.flops().forward

    def take_evaluations(self) -> float:
        """FLOPs of the evaluations since the last call."""
        return self._held_out.take_samples() * self.flops().forward

    def epoch(self) -> float:
        """FLOPs of an epoch and the evaluation after it."""
        return len(self._batches.y) * self.flops().training + self.evaluation()


@dataclass(frozen=True, slots=True)
class Budget:
    """``epochs`` of training; or, where given, as many ``flops``, of which a whole step is spent or none."""

    epochs: int
    flops: float | None

    def overspent(self, spent: float, step: float, cost: Cost) -> bool:
        """Whether a step of so many FLOPs, and an evaluation after it, do not fit any more."""
        return self.flops is not None and spent + step + cost.evaluation() > self.flops

    def finished(self, progress: Progress, cost: Cost) -> bool:
        """Whether the last epoch is done, or the FLOPs do not suffice for one more step."""
        if self.flops is None:
            return progress.epochs_done >= self.epochs
        return self.overspent(progress.flops, cost.first_step(), cost)

    def total_epochs(self, progress: Progress, cost: Cost) -> int:
        """Epochs that the run will have had; of FLOPs, as the network stands."""
        if self.flops is None:
            return self.epochs
        left = 0.0 if self.finished(progress, cost) else self.flops - progress.flops
        return max(len(progress.history) + math.ceil(left / cost.epoch()), 1)

    def share(self, progress: Progress, cost: Cost, epochs: float) -> float:
        """The share of the run, in [0, 1], that is done after so many ``epochs``."""
        if self.flops is None:
            return epochs / self.epochs
        if self.finished(progress, cost):
            return 1.0
        return (progress.flops + cost.evaluation()) / self.flops

    def check(self, cost: Cost) -> None:
        """Raise ConfigError when the FLOPs suffice for no step at all."""
        if self.overspent(0.0, cost.first_step(), cost):
            raise ConfigError(
                f"tolaria.flops={self.flops:g} do not suffice for one step and an evaluation",
                hint=f"give at least {cost.first_step() + cost.evaluation():g}",
            )
