"""Containing what goes wrong in a kernel, and noticing what went wrong in the host."""

from __future__ import annotations

import math

import torch
from torch import nn

from esper.errors import Instability
from esper.messages import SystemStatePacket

# The same rate over the same data would end the same way.
_HINT = "start again, or go on with --resume, with a lower tolaria.learning_rate"


class Recovery:
    """Checks that an epoch left a network worth keeping.

    Faults of kernels never get here: layers contain them, and the orchestrator takes the kernel out.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def check(self, packet: SystemStatePacket) -> None:
        """Raise Instability when the loss, a parameter or a buffer is not finite."""
        if not (math.isfinite(packet.loss) and math.isfinite(packet.held_out_loss)):
            raise Instability(
                f"the loss is not finite after epoch {packet.epoch + 1} "
                f"(training {packet.loss}, held-out {packet.held_out_loss})",
                hint=_HINT,
            )
        if broken := first_non_finite(self.model):
            raise Instability(f"{broken} holds a non-finite value after epoch {packet.epoch + 1}", hint=_HINT)


@torch.no_grad()
def first_non_finite(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer with a NaN or an infinity; one transfer from the device."""
    named = [(n, t) for n, t in model.state_dict().items() if t.is_floating_point()]
    if not named:
        return None
    finite = torch.stack([torch.isfinite(tensor).all() for _, tensor in named])
    if bool(finite.all()):
        return None
    return named[int((~finite).int().argmax())][0]
