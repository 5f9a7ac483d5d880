"""Grow at given times, where the strategy says."""

from __future__ import annotations

from collections.abc import Sequence

from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tamiyo.record import ImpactPrior, kept_share, on_trial
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
        self.at = checked_shares(at)
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


def checked_shares(at: Sequence[float]) -> tuple[float, ...]:
    """``at`` in order; ValueError when there is none, or one that is not in [0, 1)."""
    shares = tuple(sorted(float(share) for share in at))
    if not shares or not all(0 <= share < 1 for share in shares):
        raise ValueError(f"at must be shares of the run, each at least 0 and below 1, not {list(at)}")
    return shares


def share_due(at: Sequence[float], packet: SystemStatePacket) -> float | None:
    """The first of ``at`` (in order) that is reached and has had no decision; None when there is none."""
    decided = on_trial(packet) + len(packet.trials) + len(packet.refusals)
    reached = [share for share in at if share <= packet.progress] if packet.history else []
    return reached[decided] if decided < len(reached) else None
