"""Grow when held-out loss or error has stalled, where the gradient is largest."""

from __future__ import annotations

import math
from collections.abc import Sequence

from esper.messages import AdaptationDecision, FieldReport, SeedState, SystemStatePacket
from esper.tamiyo.plateau import Plateau, PlateauDetector
from esper.tamiyo.strategy import Candidate, SeedStrategy

_ON_TRIAL = {SeedState.GERMINATED, SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING}


class GrowOnPlateau:
    """Asks for a seed once the detector is at least ``min_confidence`` sure of a plateau.

    ``max_trials_at_once`` bounds the seeds on trial together. No growth starts before ``first_epoch``
    (counted from 0) or in the last ``quiet_tail`` of the epochs: a kernel grafted while the learning rate
    cools down has no time to learn. ``prior_impact`` is what a trial is expected to gain (share of the
    held-out loss) before this run has seen any, worth ``prior_weight`` trials. A setting out of its bounds is
    a ValueError.
    """

    needs_kernels = True

    def __init__(
        self,
        detector: PlateauDetector,
        strategy: SeedStrategy,
        *,
        min_confidence: float = 0.5,
        max_trials_at_once: int = 1,
        first_epoch: int = 3,
        quiet_tail: float = 0.3,
        prior_impact: float = 0.01,
        prior_weight: float = 2.0,
    ) -> None:
        for name, value in {"min_confidence": min_confidence, "quiet_tail": quiet_tail}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value}")
        if max_trials_at_once < 1 or first_epoch < 0:
            raise ValueError(
                f"max_trials_at_once must be at least 1 and first_epoch at least 0, "
                f"not {max_trials_at_once} and {first_epoch}"
            )
        if not (0 < prior_weight < math.inf and math.isfinite(prior_impact)):
            raise ValueError(
                f"prior_weight must be above 0 and prior_impact finite, not {prior_weight} and {prior_impact}"
            )
        self.detector = detector
        self.strategy = strategy
        self.min_confidence = min_confidence
        self.max_trials_at_once = max_trials_at_once
        self.first_epoch = first_epoch
        self.quiet_tail = quiet_tail
        self.prior_impact = prior_impact
        self.prior_weight = prior_weight

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """An ``add_seed`` decision on a plateau with a free seed and time left; otherwise ``None``."""
        if not self._may_grow(packet):
            return None
        plateau = self.detector.assess(packet.history)
        if plateau is None or plateau.confidence < self.min_confidence:
            return None
        candidates = self.strategy.candidates(packet)
        if not candidates:
            return None
        return self._decision(packet, plateau, candidates)

    def _may_grow(self, packet: SystemStatePacket) -> bool:
        last = packet.total_epochs * (1 - self.quiet_tail)
        on_trial = sum(s in _ON_TRIAL for m in packet.layer_metrics.values() for s in m.seed_states)
        return self.first_epoch <= packet.epoch < last and on_trial < self.max_trials_at_once

    def _decision(
        self, packet: SystemStatePacket, plateau: Plateau, candidates: Sequence[Candidate]
    ) -> AdaptationDecision:
        chosen = candidates[0]
        return AdaptationDecision(
            adaptation_type="add_seed",
            target_component=chosen.layer,
            parameters=self.strategy.parameters(chosen, packet),
            confidence=plateau.confidence,
            expected_impact=self._expected_impact(packet.trials),
            reason=self._reason(plateau, chosen),
            evidence={
                "loss_improvement": plateau.loss.improvement,
                "loss_stalled": plateau.loss.stalled,
                "error_improvement": plateau.error.improvement,
                "error_stalled": plateau.error.stalled,
                "gradient_share": chosen.gradient_share,
                "layer_record": chosen.record,
            },
            alternatives=tuple(
                {"target_component": c.layer, "seed_idx": c.seed_idx, "score": c.score}
                for c in candidates[1:6]
            ),
        )

    def _reason(self, plateau: Plateau, chosen: Candidate) -> str:
        by_loss = plateau.loss.stalled >= plateau.error.stalled
        name, trend = ("loss", plateau.loss) if by_loss else ("error", plateau.error)
        direction = "falls" if trend.improvement >= 0 else "rises"
        return (
            f"held-out {name} {direction} {abs(trend.improvement):.2%} an epoch over "
            f"{self.detector.window} epochs (a fall under {self.detector.min_improvement:.2%} has "
            f"p={trend.stalled:.2f}); "
            f"{chosen.layer} seed {chosen.seed_idx} holds {chosen.gradient_share:.0%} of the gradient"
        )

    def _expected_impact(self, trials: Sequence[FieldReport]) -> float:
        """Mean relative gain of the run's trials (a seed taken out gained nothing), shrunk to the prior."""
        gains = [t.gain / t.loss_before if t.verdict == "kept" and t.loss_before else 0.0 for t in trials]
        prior = self.prior_impact * self.prior_weight
        return (prior + sum(gains)) / (self.prior_weight + len(gains))
