"""The learning rate as a pure function of progress, so that it needs no state to resume."""

from __future__ import annotations

import math

from torch.optim import Optimizer


class HoldThenCosine:
    """Linear warm-up, a constant stretch in which growth happens, then a cosine to ``final``.

    ``warmup`` and ``hold_until`` are shares of the run, ``final`` a share of the peak rate. The stretch is
    there because a kernel grafted into a cooled-down network has no rate left to learn with.
    """

    def __init__(self, *, warmup: float = 0.05, hold_until: float = 0.6, final: float = 0.0) -> None:
        if not 0 <= warmup <= hold_until <= 1:
            raise ValueError(f"0 <= warmup ({warmup}) <= hold_until ({hold_until}) <= 1 does not hold")
        if not 0 <= final <= 1:
            raise ValueError(f"final must be between 0 and 1, not {final}")
        self.warmup = warmup
        self.hold_until = hold_until
        self.final = final

    def factor(self, progress: float) -> float:
        """Learning rate over its peak at ``progress`` in [0, 1]."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)
        if progress < self.hold_until or self.hold_until == 1:
            return 1.0
        cooled = (progress - self.hold_until) / (1 - self.hold_until)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * cooled))

    def apply(self, optimizer: Optimizer, progress: float) -> None:
        """Set every group's ``lr`` to its own ``peak_lr`` times the factor."""
        factor = self.factor(progress)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
