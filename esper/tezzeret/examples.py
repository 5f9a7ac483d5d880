"""Inputs of the shape that a slot gives, and teachers to imitate there."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.messages import Slot


def input_shape(slot: Slot, batch: int = 2, extent: int = 8) -> tuple[int, ...]:
    """The shape of an input for ``slot``: ``extent`` is its length in time, or the side of its square.

    ``features`` gets (batch, extent, F), since its kernels take any number of leading axes.
    """
    if slot.layout == "channels":
        return batch, slot.in_features, extent, extent
    return batch, extent, slot.in_features


def example(
    slot: Slot, batch: int = 2, extent: int = 8, *, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal input of ``input_shape``, float32 on the CPU."""
    return torch.randn(input_shape(slot, batch, extent), generator=generator)


def default_transform(slot: Slot) -> nn.Module:
    """What a plain layer would put in ``slot``: a linear map, or a 3 x 3 convolution for channels."""
    if slot.layout == "channels":
        return nn.Conv2d(slot.in_features, slot.out_features, 3, stride=slot.stride, padding=1)
    return nn.Linear(slot.in_features, slot.out_features)


class Teacher:
    """A fixed random nonlinear map of a slot's input to its output, unit variance in every feature.

    A layer, GELU and a layer; the first sees a 3 x 3 neighbourhood in space, or the mean over time beside
    each position, where the layout has space or time.
    """

    def __init__(self, slot: Slot, generator: torch.Generator) -> None:
        self.slot = slot
        hidden = 2 * slot.in_features
        seen = slot.in_features * (9 if slot.layout == "channels" else 1)
        self.first = torch.randn(hidden, seen, generator=generator) / math.sqrt(seen)
        self.context = torch.randn(hidden, slot.in_features, generator=generator) / math.sqrt(
            slot.in_features
        )
        self.last = torch.randn(slot.out_features, hidden, generator=generator) / math.sqrt(hidden)

    def __call__(self, x: Tensor) -> Tensor:
        """The target for ``x``: zero mean and unit variance in each feature over this batch."""
        if self.slot.layout == "channels":
            weight = self.first.reshape(-1, self.slot.in_features, 3, 3)
            hidden = functional.conv2d(x, weight, stride=self.slot.stride, padding=1)
            y = torch.einsum("oh,bhij->boij", self.last, functional.gelu(hidden))
            axes: tuple[int, ...] = (0, 2, 3)
        else:
            hidden = x @ self.first.T
            if self.slot.layout == "tokens":  # a mean over T positions has variance 1 / T
                hidden = hidden + math.sqrt(x.shape[1]) * x.mean(1, keepdim=True) @ self.context.T
            y = functional.gelu(hidden) @ self.last.T
            axes = (0, 1)
        return (y - y.mean(axes, keepdim=True)) / (y.std(axes, keepdim=True) + 1e-6)
