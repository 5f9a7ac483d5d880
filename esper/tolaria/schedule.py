"""The learning rate as a pure function of progress, so that it needs no state to resume."""

from __future__ import annotations

import math

from torch.optim import Optimizer

REWARMING = 0.1
"""Share of what is left of a run in which the rate comes back after growth in its tail."""


class HoldThenCosine:
    """Linear warm-up, a constant stretch in which growth happens, then a cosine to ``final``.

    ``warmup`` and ``hold_until`` are shares of the run, ``final`` a share of the peak rate. The stretch is
    there because a kernel grafted into a cooled-down network has no rate left to learn with. Growth after it
    brings the rate back to ``rewarm``, a share of the peak, over a tenth of what is left of the run; from
    there it cools down again. With 0 the rate does not follow growth.
    """

    def __init__(
        self, *, warmup: float = 0.05, hold_until: float = 0.6, final: float = 0.0, rewarm: float = 0.0
    ) -> None:
        if not 0 <= warmup <= hold_until <= 1:
            raise ValueError(f"0 <= warmup ({warmup}) <= hold_until ({hold_until}) <= 1 does not hold")
        if not 0 <= final <= 1:
            raise ValueError(f"final must be between 0 and 1, not {final}")
        if not 0 <= rewarm <= 1:
            raise ValueError(f"rewarm must be between 0 and 1, not {rewarm}")
        self.warmup = warmup
        self.hold_until = hold_until
        self.final = final
        self.rewarm = rewarm

    def factor(self, progress: float, grown_at: float | None = None) -> float:
        """Learning rate over its peak at ``progress`` in [0, 1]; ``grown_at`` is that of the last growth."""
        cold = self._factor(grown_at) if grown_at is not None and grown_at < progress else self.rewarm
        if grown_at is None or cold >= self.rewarm:
            return self._factor(progress)
        since = (progress - grown_at) / (1 - grown_at)
        if since < REWARMING:
            return cold + (self.rewarm - cold) * since / REWARMING
        return self._cosine(self.rewarm, (since - REWARMING) / (1 - REWARMING))

    def _factor(self, progress: float) -> float:
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)
        if progress < self.hold_until or self.hold_until == 1:
            return 1.0
        return self._cosine(1.0, (progress - self.hold_until) / (1 - self.hold_until))

    def _cosine(self, start: float, cooled: float) -> float:
        """From ``start`` to ``final`` as ``cooled`` goes from 0 to 1."""
        final = min(self.final, start)
        return final + (start - final) * 0.5 * (1 + math.cos(math.pi * cooled))

    def apply(self, optimizer: Optimizer, progress: float, grown_at: float | None = None) -> None:
        """Set every group's ``lr`` to its own ``peak_lr`` times the factor."""
        factor = self.factor(progress, grown_at)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
