"""Try what was invented while the run trains: a kernel that nobody tries teaches nobody anything."""

from __future__ import annotations

from esper.messages import INVENTED, AdaptationDecision, FieldReport, Slot, SystemStatePacket
from esper.tamiyo.policy import Policy
from esper.tamiyo.record import ImpactPrior, kept_share, on_trial, slot_of
from esper.tamiyo.shares import check_shares
from esper.tamiyo.strategy import Candidate, SeedStrategy, runners_up


class TryInventions:
    """Leaves the first word to ``policy``; where it changes nothing, asks for an invented kernel.

    It asks when the packet's ``inventions`` has a slot of a free seed, for the best seed that ``strategy``
    has among those, whether the loss has stalled or not: the trial is there to be learned from, and a kernel
    that brings nothing is taken out again. The kernel is the best that was not tried in this run by the rank
    of the library, where a kernel without trials has the score of its validation for a prior.

    A kernel in a seed pins the widths that it touches, so where ``policy`` needs no kernels, and changes the
    host's own shape, nothing is asked for before the share ``after`` of the run. ``max_trials_at_once``,
    ``quiet_tail``, ``min_rate_share``, ``prior_impact`` and ``prior_weight`` are those of ``GrowOnPlateau``.
    A setting out of its bounds is a ValueError.
    """

    def __init__(
        self,
        policy: Policy,
        strategy: SeedStrategy,
        *,
        after: float = 0.55,
        max_trials_at_once: int = 1,
        quiet_tail: float = 0.15,
        min_rate_share: float = 0.2,
        prior_impact: float = 0.01,
        prior_weight: float = 2.0,
    ) -> None:
        check_shares(after=after, quiet_tail=quiet_tail, min_rate_share=min_rate_share)
        if max_trials_at_once < 1:
            raise ValueError(f"max_trials_at_once must be at least 1, not {max_trials_at_once}")
        self.policy = policy
        # What is invented is compiled elsewhere.
        self.needs_kernels, self.needs_widths = policy.needs_kernels, policy.needs_widths
        self.strategy = strategy
        self.after = 0.0 if policy.needs_kernels else after
        self.max_trials_at_once = max_trials_at_once
        self.quiet_tail = quiet_tail
        self.min_rate_share = min_rate_share
        self.prior = ImpactPrior(prior_impact, prior_weight)

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """The decision of ``policy``, or an ``add_seed`` decision for an invented kernel, or ``None``."""
        decision = self.policy.decide(packet)
        if decision is not None or not self._may_try(packet):
            return decision
        fits = [c for c in self.strategy.candidates(packet) if _slot(c, packet) in packet.inventions]
        if not fits:
            return None
        chosen = fits[0]
        tried = {trial.kernel_id for trial in packet.trials}
        return AdaptationDecision(
            adaptation_type="add_seed",
            target_component=chosen.layer,
            parameters={
                **self.strategy.parameters(chosen, packet),
                "tags": [INVENTED],
                "avoid": sorted(tried),
            },
            confidence=kept_share(_of_inventions(packet)),
            expected_impact=self.prior.expected(_of_inventions(packet)),
            reason=f"an invented kernel fits {_slot(chosen, packet)} and was not tried in this run; "
            f"{self.strategy.reason(chosen)}",
            evidence={"progress": packet.progress, **self.strategy.evidence(chosen)},
            alternatives=runners_up(fits),
        )

    def _may_try(self, packet: SystemStatePacket) -> bool:
        return (
            self.after <= packet.progress < 1 - self.quiet_tail
            and packet.rate_share >= self.min_rate_share
            and on_trial(packet) < self.max_trials_at_once
        )


def _of_inventions(packet: SystemStatePacket) -> list[FieldReport]:
    return [trial for trial in packet.trials if INVENTED in trial.tags]


def _slot(candidate: Candidate, packet: SystemStatePacket) -> Slot:
    return slot_of(packet, candidate.layer, candidate.site, candidate.seed_idx)
