"""The random control: grow at given times, in a random seed with a random kernel."""

from __future__ import annotations

import random
from collections.abc import Sequence

from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tamiyo.record import ImpactPrior, kept_share
from esper.tamiyo.shares import schedule_of, share_due
from esper.tamiyo.strategy import SeedStrategy


class RandomGrowth:
    """One decision at each share of the run in ``at``, for a dormant seed drawn uniformly.

    The kernel is drawn uniformly too, from all that fit and have not failed in that layer. Draws depend on
    ``seed`` and the epoch alone. Of the ``strategy`` only how a kernel is grafted counts, and which seeds
    rest after a refusal; its scores and tags do not. A setting out of its bounds is a ValueError.
    """

    needs_kernels = True
    needs_widths = False

    def __init__(
        self,
        strategy: SeedStrategy,
        at: Sequence[float],
        *,
        seed: int = 0,
        prior_impact: float = 0.01,
        prior_weight: float = 2.0,
    ) -> None:
        self.at = schedule_of(at)
        if seed < 0:
            raise ValueError(f"seed must be at least 0, not {seed}")
        self.strategy = strategy
        self.seed = seed
        self.prior = ImpactPrior(prior_impact, prior_weight)

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """An ``add_seed`` decision when a share is due and a seed is free; otherwise ``None``."""
        share = share_due(self.at, packet)
        candidates = self.strategy.candidates(packet) if share is not None else []
        if share is None or not candidates:
            return None
        candidates.sort(key=lambda c: (c.layer, c.seed_idx))
        draws = random.Random(f"{self.seed}/{packet.epoch}")  # a text is hashed by SHA-512, alike everywhere
        place = draws.randrange(len(candidates))
        chosen = candidates[place]
        others = [c for i, c in enumerate(candidates) if i != place]
        chance = 1 / len(candidates)
        drawn = {"tags": [], "choice": "random", "choice_seed": draws.getrandbits(32)}
        return AdaptationDecision(
            adaptation_type="add_seed",
            target_component=chosen.layer,
            parameters={**self.strategy.parameters(chosen, packet), **drawn},
            confidence=kept_share(packet.trials),
            expected_impact=self.prior.expected(packet.trials),
            reason=(
                f"random growth at {share:.0%} of the run; {chosen.layer} seed {chosen.seed_idx} was drawn "
                f"from {len(candidates)} free seeds"
            ),
            evidence={"progress": packet.progress, "due_at": share, "chance": chance},
            alternatives=tuple(
                {"target_component": c.layer, "seed_idx": c.seed_idx, "score": chance} for c in others[:5]
            ),
        )
