"""The one question of the control plane: given this packet, what should change?"""

from __future__ import annotations

from typing import Protocol

from esper.messages import AdaptationDecision, SystemStatePacket


class Policy(Protocol):
    """Decides from the packet alone: the same packet always gives the same decision.

    A policy holds its settings and no state, so it may be shared between runs and threads. It raises nothing:
    a packet with too little history gives no decision.
    """

    needs_kernels: bool
    """Whether the policy can ever ask for a kernel; if not, none is compiled for the run."""
    needs_widths: bool
    """Whether the policy reads the widths that can grow; if not, the packet has none."""

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:
        """The change to make after this epoch, or ``None``."""
        ...
