"""Which kernel: Thompson sampling over kernel families, from the trials of the run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from esper.messages import AdaptationDecision, FieldReport, Layout, SystemStatePacket
from esper.tamiyo.policy import Policy
from esper.tamiyo.record import kept_share, slot_of


@dataclass(frozen=True, slots=True)
class Arm:
    """One family: its trials, the mean of its posterior, and the draw that it competes with."""

    family: str
    kept: int
    culled: int
    draw: float

    @property
    def mean(self) -> float:
        """Mean of Beta(1 + kept, 1 + culled)."""
        return (1 + self.kept) / (2 + self.kept + self.culled)


class ThompsonBandit:
    """Lets ``policy`` say when and where, and draws the family of the kernel (Thompson 1933).

    ``families`` maps a layout to the kernel tags that compete there. A family is kept with an unknown
    probability, whose posterior is Beta(1 + kept, 1 + culled) over the run's trials of kernels with that tag
    (a failure counts as culled); a kernel with two of the tags counts for both. The family with the largest
    draw is asked for. Draws depend on ``seed``, the epoch and the layer alone.

    The confidence is that of ``policy`` with the family's posterior mean in place of that of all trials.
    A setting out of its bounds is a ValueError.
    """

    def __init__(self, policy: Policy, families: Mapping[Layout, Sequence[str]], *, seed: int = 0) -> None:
        for layout, names in families.items():
            if layout not in get_args(Layout):
                raise ValueError(f"families: a layout is one of {get_args(Layout)}, not {layout}")
            if not names or len(set(names)) < len(names):
                raise ValueError(f"families: {layout} needs tags, each once, not {list(names)}")
        if not families:
            raise ValueError("families must name tags for a layout")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, not {seed}")
        self.policy = policy
        self.needs_kernels, self.needs_widths = policy.needs_kernels, policy.needs_widths
        self.families = {layout: tuple(names) for layout, names in families.items()}
        self.seed = seed

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """The decision of ``policy``, for a kernel of the family drawn, if its layout has families."""
        decision = self.policy.decide(packet)
        if decision is None or decision.adaptation_type != "add_seed":
            return decision
        wanted = decision.parameters
        layout = slot_of(packet, decision.target_component, wanted["site"], wanted["seed_idx"]).layout
        if layout not in self.families:
            return decision
        arms = self._arms(layout, decision.target_component, packet)
        best = arms[0]
        confidence = decision.confidence * best.mean / kept_share(packet.trials)
        return replace(
            decision,
            parameters={**decision.parameters, "tags": [best.family]},
            confidence=min(confidence, 1.0),
            reason=(
                f"{decision.reason}; family {best.family} has the largest of {len(arms)} draws, "
                f"{best.draw:.2f} ({best.kept} kept and {best.culled} culled so far)"
            ),
            evidence={**decision.evidence, "family_mean": best.mean, "family_draw": best.draw},
            alternatives=tuple(
                {"family": arm.family, "score": arm.draw, "posterior_mean": arm.mean} for arm in arms[1:]
            ),
        )

    def _arms(self, layout: Layout, layer: str, packet: SystemStatePacket) -> list[Arm]:
        """The families of ``layout``, largest draw first."""
        draws = random.Random(f"{self.seed}/{packet.epoch}/{layer}")  # hashed by SHA-512, alike everywhere
        arms = []
        for family in self.families[layout]:
            kept, culled = _counts(family, packet.trials)
            arms.append(Arm(family, kept, culled, draws.betavariate(1 + kept, 1 + culled)))
        return sorted(arms, key=lambda arm: -arm.draw)


def _counts(family: str, trials: Sequence[FieldReport]) -> tuple[int, int]:
    own = [trial.verdict == "kept" for trial in trials if family in trial.tags]
    return sum(own), len(own) - sum(own)
