"""The static control: never grow."""

from __future__ import annotations

from esper.messages import AdaptationDecision, SystemStatePacket


class NeverGrow:
    """The policy of a control run: same data order, same initial weights, no adaptation."""

    needs_kernels = False
    needs_widths = False

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision | None:  # noqa: ARG002  the protocol's name
        """Always ``None``."""
        return None
