"""Widen the host at given times."""

from __future__ import annotations

from collections.abc import Sequence

from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tamiyo.shares import schedule_of
from esper.tamiyo.widening import Widening


class WidenOnSchedule:
    """At each share of the run in ``at``, each in [0, 1), every width grows as ``widening`` says.

    A share is reached at the end of the epoch in which the run's progress passes it; one widening an epoch at
    most. A setting out of its bounds is a ValueError.
    """

    needs_kernels = False
    needs_widths = True

    def __init__(self, at: Sequence[float], widening: Widening) -> None:
        self.at = schedule_of(at)
        self.widening = widening

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """A ``modify_architecture`` decision when a share is due and a width can grow, or ``None``."""
        reached = [share for share in self.at if share <= packet.progress]
        decided = len(packet.growths) + len(packet.refusals)
        if decided >= len(reached) or not packet.widths:
            return None
        return AdaptationDecision(
            adaptation_type="modify_architecture",
            target_component="host",
            parameters=self.widening.parameters(packet),
            confidence=1.0,
            expected_impact=0.0,
            reason=(
                f"the schedule widens at {reached[decided]:.0%} of the run, "
                f"by a factor of {self.widening.factor:g}"
            ),
            evidence={"progress": packet.progress, "parameters_at_least": self.widening.cost(packet)},
        )
