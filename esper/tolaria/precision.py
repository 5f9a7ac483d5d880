"""Mixed precision: the forward pass in half precision, and a loss that is scaled where that needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import Instability
from esper.kasmina import set_loss_scale

Half = Literal["bf16", "fp16"]
"""The types of half precision, as a configuration names them."""

HALVES = get_args(Half)

LEAST_SCALE = 2.0**-8
"""A loss scaled by less, whose gradients still are not finite, does not have them from scaling."""


class Precision:
    """How forward and backward pass compute: in float32 with ``half`` None, else where torch deems it safe.

    With "fp16" gradients are those of the loss times a scale (Micikevicius et al. 2018, "Mixed Precision
    Training", arXiv 1710.03740, section 3.2), by torch's own scaler: a step whose gradients overflow is left
    out and the scale is halved. Until the scale is 1, an overflow in the gradients of a kernel is therefore
    no fault of the kernel.
    """

    def __init__(self, half: Half | None, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device.type
        self._dtype = torch.float16 if half == "fp16" else torch.bfloat16
        self._half = half
        self._scaler = torch.amp.GradScaler(self._device) if half == "fp16" else None

    def forward(self) -> torch.autocast:
        """What a forward pass runs in."""
        if self._scaler is not None:
            set_loss_scale(self._model, self._scaler.get_scale())
        return torch.autocast(self._device, dtype=self._dtype, enabled=self._half is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``, scaled, to those of the parameters."""
        torch.autograd.backward(loss if self._scaler is None else self._scaler.scale(loss))

    def unscale(self, optimizer: Optimizer) -> None:
        """Give the gradients their own size, before they are clipped."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Let ``optimizer`` step on gradients that are unscaled; whether it did, or they had overflowed.

        Raises Instability when they are not finite however little the loss is scaled.
        """
        if self._scaler is None:
            optimizer.step()
            return True
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        stepped = self._scaler.get_scale() >= before
        if not stepped and before < LEAST_SCALE:
            raise Instability(
                f"the gradients are not finite in float16, though the loss is scaled by {before:g} alone",
                hint="train with tolaria.precision=bf16, or with a lower tolaria.learning_rate",
            )
        return stepped

    def state(self) -> dict[str, Any] | None:
        """What the scaler has found out; None where there is none."""
        return None if self._scaler is None else self._scaler.state_dict()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Put back what ``state`` returned; a run that was begun without a scaler starts one."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))
