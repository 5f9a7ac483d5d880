"""Inputs of the shape that a slot gives, and teachers to imitate there."""

from __future__ import annotations

import torch
from torch import Tensor

from esper.messages import Slot


def example(
    slot: Slot, batch: int = 2, extent: int = 8, *, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal input for ``slot``: ``extent`` is its length in time, or the side of its square.

    ``features`` gets (batch, extent, F), since its kernels take any number of leading axes.
    """
    if slot.layout == "channels":
        return torch.randn(batch, slot.in_features, extent, extent, generator=generator)
    return torch.randn(batch, extent, slot.in_features, generator=generator)
