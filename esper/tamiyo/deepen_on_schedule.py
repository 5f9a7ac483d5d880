"""Put new blocks into the host at given times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from esper.messages import AdaptationDecision, SystemStatePacket
from esper.tamiyo.shares import schedule_of

Like = Literal["residual", "copy"]
"""How the block is made: ``esper.kasmina.operators.deepen`` says."""


class DeepenOnSchedule:
    """At each share of the run in ``at``, each in [0, 1), a block follows the next of ``targets``.

    A share is reached at the end of the epoch in which the run's progress passes it; one block an epoch at
    most. ``targets`` are names of modules of the host, gone through in turn and from the first again; where
    there are none, those of the wrapped layers, in their order. A target whose block was refused has had its
    turn. ``hidden`` is the number of features inside a block; None for as many as it takes in. A setting out
    of its bounds is a ValueError.
    """

    needs_kernels = False
    needs_widths = False

    def __init__(
        self,
        at: Sequence[float],
        targets: Sequence[str] = (),
        like: Like = "residual",
        hidden: int | None = None,
    ) -> None:
        if isinstance(targets, str) or not all(isinstance(name, str) and name for name in targets):
            raise ValueError(f"targets must be a list of names of modules, not {targets!r}")
        if like not in get_args(Like):
            raise ValueError(f"like is one of {', '.join(get_args(Like))}, not {like!r}")
        if hidden is not None and (like != "residual" or hidden < 1):
            raise ValueError(f"hidden is a number of at least 1, of like=residual only, not {hidden}")
        self.at = schedule_of(at)
        self.targets = tuple(targets)
        self.like: Like = like
        self.hidden = hidden

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """A ``modify_architecture`` decision when a share is due, or ``None``."""
        reached = [share for share in self.at if share <= packet.progress]
        decided = len(packet.growths) + len(packet.refusals)
        targets = self.targets or tuple(packet.layer_metrics)
        if decided >= len(reached) or not targets:
            return None
        target = targets[decided % len(targets)]
        made = "copy of it" if self.like == "copy" else "residual block"
        return AdaptationDecision(
            adaptation_type="modify_architecture",
            target_component=target,
            parameters={"operator": "deepen", "target": target, "like": self.like, "hidden": self.hidden},
            confidence=1.0,
            expected_impact=0.0,
            reason=f"the schedule puts a {made} after {target} at {reached[decided]:.0%} of the run",
            evidence={
                "progress": packet.progress,
                "due_at": reached[decided],
                "growths": len(packet.growths),
            },
        )
