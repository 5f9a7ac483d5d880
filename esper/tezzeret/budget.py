"""What a kernel would cost, counted on the meta device before a byte is allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esper.errors import BlueprintError


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters; FLOPs of one forward pass over the example; bytes of parameters and intermediates."""

    parameters: int
    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The most a kernel may cost, see ``Cost``; each limit is inclusive."""

    parameters: int = 16_777_216
    flops: int = 20_000_000_000
    bytes: int = 1 << 30

    def check(self, name: str, spent: int, subject: str) -> None:
        """Raises ``BlueprintError``, which starts with ``subject``, if ``spent`` is over limit ``name``."""
        limit = getattr(self, name)
        if spent > limit:
            unit = {"flops": "FLOPs a pass"}.get(name, name)
            message = f"{subject}: {spent:,} {unit}; the budget is {limit:,}"
            raise BlueprintError(message, hint="make its sizes smaller")


def count_parameters(module: nn.Module) -> int:
    """The number of trainable numbers in ``module``."""
    return sum(parameter.numel() for parameter in module.parameters())


def measure(module: nn.Module, run: Callable[[], Iterable[Tensor]]) -> Cost:
    """The cost of ``module`` when ``run`` runs it and returns its intermediates.

    With module and input on the meta device nothing is allocated.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        held = sum(value.nbytes for value in run())
    weights = sum(parameter.nbytes for parameter in module.parameters())
    return Cost(count_parameters(module), flops.get_total_flops(), weights + held)
