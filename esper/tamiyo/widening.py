"""What policies that widen the host have in common: how much, and how new units begin."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from esper.messages import SystemStatePacket

Start = Literal["zeros", "pairs"]
"""New units are read by zeros, or in pairs that cancel: ``esper.kasmina.operators.birth`` says more."""

Moments = Literal["carry", "reset"]
"""After growth the optimizer knows what it knew, padded, or begins anew."""

Rates = Literal["equal", "matched"]
"""New parts learn at the rate of old ones, or at one matched to their norms."""


class Widening:
    """Every width that can grow, by ``factor`` (above 1).

    Units are rounded up to what a width comes in multiples of. A setting out of its bounds is a ValueError.
    """

    def __init__(
        self, factor: float, *, start: Start = "zeros", moments: Moments = "carry", rates: Rates = "equal"
    ) -> None:
        if not 1 < factor < math.inf:
            raise ValueError(f"factor must be above 1, not {factor}")
        self.factor = factor
        self.how = {"start": start, "moments": moments, "rates": rates}
        for (name, word), known in zip(self.how.items(), (Start, Moments, Rates), strict=True):
            if word not in get_args(known):
                raise ValueError(f"{name} is one of {', '.join(get_args(known))}, not {word!r}")

    def parameters(self, packet: SystemStatePacket) -> dict[str, Any]:
        """The ``parameters`` of the decision to widen the network of ``packet``."""
        sizes = {
            name: math.ceil(width.size * self.factor / width.granularity) * width.granularity
            for name, width in packet.widths.items()
        }
        return {"operator": "widen", "sizes": sizes, **self.how}

    def cost(self, packet: SystemStatePacket) -> float:
        """Parameters that it adds, at the least: new units of two widths meet in more."""
        sizes = self.parameters(packet)["sizes"]
        steps = {name: (sizes[name] - w.size) // w.granularity for name, w in packet.widths.items()}
        return float(sum(steps[name] * w.parameters_per_unit for name, w in packet.widths.items()))
