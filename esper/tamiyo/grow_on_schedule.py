"""Grow at given times, where the strategy says."""

from __future__ import annotations

from collections.abc import Sequence

from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tamiyo.record import ImpactPrior, kept_share
from esper.tamiyo.shares import schedule_of, share_due
from esper.tamiyo.strategy import SeedStrategy, runners_up


class GrowOnSchedule:
    """One decision at each share of the run in ``at``, each in [0, 1).

    A share is reached at the end of the epoch in which the run's progress passes it. How many shares have had
    their decision is read from the packet: every decision is on trial, was tried, or was refused. So a share
    that found no free seed has its decision as soon as there is one, and two shares in one epoch have theirs
    in two epochs. ``prior_impact`` and ``prior_weight`` are those of ``GrowOnPlateau``. A setting out of its
    bounds is a ValueError.
    """

    needs_kernels = True
    needs_widths = False

    def __init__(
        self,
        strategy: SeedStrategy,
        at: Sequence[float],
        *,
        prior_impact: float = 0.01,
        prior_weight: float = 2.0,
    ) -> None:
        self.at = schedule_of(at)
        self.strategy = strategy
        self.prior = ImpactPrior(prior_impact, prior_weight)

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """An ``add_seed`` decision when a share is due and a seed is free; otherwise ``None``."""
        share = share_due(self.at, packet)
        candidates = self.strategy.candidates(packet) if share is not None else []
        if share is None or not candidates:
            return None
        chosen = candidates[0]
        return AdaptationDecision(
            adaptation_type="add_seed",
            target_component=chosen.layer,
            parameters=self.strategy.parameters(chosen, packet),
            confidence=kept_share(packet.trials),
            expected_impact=self.prior.expected(packet.trials),
            reason=f"the schedule grows at {share:.0%} of the run; {self.strategy.reason(chosen)}",
            evidence={"progress": packet.progress, "due_at": share, **self.strategy.evidence(chosen)},
            alternatives=runners_up(candidates),
        )
