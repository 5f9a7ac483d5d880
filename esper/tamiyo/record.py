"""What policies read from a packet, and what finished trials say of the next one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from esper.messages import FieldReport, SeedState, Site, Slot, SystemStatePacket

_ON_TRIAL = {SeedState.GERMINATED, SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING}


def kept_share(trials: Sequence[FieldReport]) -> float:
    """Posterior mean of the probability that a trial is kept: (kept + 1) / (trials + 2) (Laplace 1774)."""
    return (sum(trial.verdict == "kept" for trial in trials) + 1) / (len(trials) + 2)


def on_trial(packet: SystemStatePacket) -> int:
    """How many seeds hold a kernel that is not yet judged."""
    return sum(s in _ON_TRIAL for metrics in packet.layer_metrics.values() for s in metrics.seed_states)


def slot_of(packet: SystemStatePacket, layer: str, site: Site, seed_idx: int) -> Slot:
    """What a kernel must fit at that seed."""
    metrics = packet.layer_metrics[layer]
    return (metrics.parallel_slots if site == "parallel" else metrics.series_slots)[seed_idx]


class ImpactPrior:
    """What a trial is expected to gain, as a share of the held-out loss, shrunk to a prior.

    ``impact`` is expected before this run has seen any trial; it is worth ``weight`` trials. A setting
    out of its bounds is a ValueError.
    """

    def __init__(self, impact: float, weight: float) -> None:
        if not (0 < weight < math.inf and math.isfinite(impact)):
            raise ValueError(
                f"prior_weight must be above 0 and prior_impact finite, not {weight} and {impact}"
            )
        self.impact = impact
        self.weight = weight

    def expected(self, trials: Sequence[FieldReport]) -> float:
        """Mean relative gain of the run's trials (a seed taken out gained nothing), shrunk to the prior."""
        gains = [t.gain / t.loss_before if t.verdict == "kept" and t.loss_before else 0.0 for t in trials]
        return (self.impact * self.weight + sum(gains)) / (self.weight + len(gains))
