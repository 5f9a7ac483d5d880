"""Widen the host at given times."""

from __future__ import annotations

import math
from collections.abc import Sequence

from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tamiyo.grow_on_schedule import checked_shares


class WidenOnSchedule:
    """At each share of the run in ``at``, each in [0, 1), every width grows by ``factor``.

    A share is reached at the end of the epoch in which the run's progress passes it; one widening an epoch at
    most. Units are rounded up to what a width comes in multiples of. A setting out of its bounds is a
    ValueError.
    """

    needs_kernels = False
    needs_widths = True

    def __init__(self, at: Sequence[float], factor: float) -> None:
        if not 1 < factor < math.inf:
            raise ValueError(f"factor must be above 1, not {factor}")
        self.at = checked_shares(at)
        self.factor = factor

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """A ``modify_architecture`` decision when a share is due and a width can grow, or ``None``."""
        reached = [share for share in self.at if share <= packet.progress]
        decided = len(packet.growths) + len(packet.refusals)
        if decided >= len(reached) or not packet.widths:
            return None
        sizes = {
            name: math.ceil(width.size * self.factor / width.granularity) * width.granularity
            for name, width in packet.widths.items()
        }
        cost = sum((sizes[name] - w.size) * w.parameters_per_unit for name, w in packet.widths.items())
        return AdaptationDecision(
            adaptation_type="modify_architecture",
            target_component="host",
            parameters={"operator": "widen", "sizes": sizes},
            confidence=1.0,
            expected_impact=0.0,
            reason=f"the schedule widens at {reached[decided]:.0%} of the run, {self.factor:g} times",
            evidence={"progress": packet.progress, "parameters_at_least": cost},
        )
