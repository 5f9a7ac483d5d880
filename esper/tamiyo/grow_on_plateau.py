"""Grow when held-out loss or error has stalled, where the gradient is largest."""

from __future__ import annotations

from collections.abc import Sequence

from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tamiyo.plateau import Plateau, PlateauDetector
from esper.tamiyo.record import ImpactPrior, kept_share, on_trial
from esper.tamiyo.shares import check_shares
from esper.tamiyo.strategy import Candidate, SeedStrategy, runners_up


class GrowOnPlateau:
    """Asks for a seed once the detector is at least ``min_confidence`` sure of a plateau.

    ``max_trials_at_once`` bounds the seeds on trial together. No growth starts before ``first_epoch``
    (counted from 0), in the last ``quiet_tail`` of the epochs, or while the learning rate is below
    ``min_rate_share`` of its peak: a kernel grafted while the rate cools down cannot learn.
    ``prior_impact`` is what a trial is expected to gain (share of the held-out loss) before this run has
    seen any, worth ``prior_weight`` trials. A setting out of its bounds is a ValueError.

    The confidence of a decision is the probability that its kernel is kept: that of the plateau, times the
    share of the run's trials that were kept, (kept + 1) / (trials + 2).
    """

    needs_kernels = True
    needs_widths = False

    def __init__(
        self,
        detector: PlateauDetector,
        strategy: SeedStrategy,
        *,
        min_confidence: float = 0.5,
        max_trials_at_once: int = 1,
        first_epoch: int = 3,
        quiet_tail: float = 0.3,
        min_rate_share: float = 0.5,
        prior_impact: float = 0.01,
        prior_weight: float = 2.0,
    ) -> None:
        check_shares(min_confidence=min_confidence, quiet_tail=quiet_tail, min_rate_share=min_rate_share)
        if max_trials_at_once < 1 or first_epoch < 0:
            raise ValueError(
                f"max_trials_at_once must be at least 1 and first_epoch at least 0, "
                f"not {max_trials_at_once} and {first_epoch}"
            )
        self.detector = detector
        self.strategy = strategy
        self.min_confidence = min_confidence
        self.max_trials_at_once = max_trials_at_once
        self.first_epoch = first_epoch
        self.quiet_tail = quiet_tail
        self.min_rate_share = min_rate_share
        self.prior = ImpactPrior(prior_impact, prior_weight)

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """An ``add_seed`` decision on a plateau with a free seed and time left; otherwise ``None``."""
        if not self._may_grow(packet):
            return None
        plateau = self.detector.assess(packet.history, packet.total_epochs)
        if plateau is None or plateau.confidence < self.min_confidence:
            return None
        candidates = self.strategy.candidates(packet)
        if not candidates:
            return None
        return self._decision(packet, plateau, candidates)

    def _may_grow(self, packet: SystemStatePacket) -> bool:
        last = packet.total_epochs * (1 - self.quiet_tail)
        warm = packet.rate_share >= self.min_rate_share
        in_time = self.first_epoch <= packet.epoch < last
        return in_time and warm and on_trial(packet) < self.max_trials_at_once

    def _decision(
        self, packet: SystemStatePacket, plateau: Plateau, candidates: Sequence[Candidate]
    ) -> AdaptationDecision:
        chosen = candidates[0]
        return AdaptationDecision(
            adaptation_type="add_seed",
            target_component=chosen.layer,
            parameters=self.strategy.parameters(chosen, packet),
            confidence=plateau.confidence * kept_share(packet.trials),
            expected_impact=self.prior.expected(packet.trials),
            reason=self._reason(packet, plateau, chosen),
            evidence={
                "loss_improvement": plateau.loss.improvement,
                "loss_stalled": plateau.loss.stalled,
                "error_improvement": plateau.error.improvement,
                "error_stalled": plateau.error.stalled,
                "plateau": plateau.confidence,
                "kept_share": kept_share(packet.trials),
                **self.strategy.evidence(chosen),
            },
            alternatives=runners_up(candidates),
        )

    def _reason(self, packet: SystemStatePacket, plateau: Plateau, chosen: Candidate) -> str:
        by_loss = plateau.loss.stalled >= plateau.error.stalled
        name, trend = ("loss", plateau.loss) if by_loss else ("error", plateau.error)
        direction = "falls" if trend.improvement >= 0 else "rises"
        window = self.detector.window_of(packet.total_epochs)
        return (
            f"held-out {name} {direction} {abs(trend.improvement):.2%} an epoch over "
            f"{window} epochs (a fall under {self.detector.min_improvement:.2%} has "
            f"p={trend.stalled:.2f}); "
            f"{self.strategy.reason(chosen)}"
        )
