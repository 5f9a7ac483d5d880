"""The values of a grown tensor at birth: the old entries, and new ones that change nothing yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from esper.kasmina.operators.calls import Place, Trace
from esper.kasmina.operators.labels import Variable, expand, new_size, positions, twins, variables
from esper.kasmina.operators.operator import Kept
from esper.kasmina.operators.widths import Demands

Sizes = Callable[[Variable], int]

Start = Literal["zeros", "pairs"]
"""How new units are kept from changing anything: read by zeros, or in pairs that cancel."""


class Birth:
    """Makes grown tensors.

    Rows of new units are drawn with the standard deviation of the old entries, so that they differ. With
    ``start`` "zeros" what reads them is zero; the rows then get no gradient until the readers have moved.
    With "pairs" new units come in pairs that compute the same and are read with opposite signs: nothing
    changes, and yet every new weight has a gradient of full size at once. The two of a pair part at the
    first step, since their gradients are opposite; the last of an odd number is read by zeros.

    Numbers that stand for a unit each (biases, positions) are the mean of the old ones. Where a norm takes
    statistics over the width, its demand goes first, and what reads behind the norm, where new units are
    zero, is drawn.
    """

    def __init__(
        self,
        found: Trace,
        sizes: Sizes,
        demands: Demands,
        generator: torch.Generator | None,
        start: Start = "zeros",
    ) -> None:
        self.found, self.sizes, self.demands, self.generator = found, sizes, demands, generator
        self.start = start

    def grown(self, name: str) -> tuple[Tensor, tuple[Kept, ...]] | None:
        """The grown data of a tensor and where its old entries stand, or None when it does not grow."""
        tensor, axes = self.found.tensors[name], self.found.places[name]
        changed = [d for d, axis in enumerate(axes) if new_size(axis.dim, self.sizes) != tensor.shape[d]]
        if not changed:
            return None
        kept: list[Kept] = [None] * tensor.ndim
        data = tensor.detach()
        spread = _spread(data)
        for d in sorted(changed, key=lambda d: self._rank((name, d))):
            kept[d] = positions(axes[d].dim, self.sizes)
            data = self._extend(data, (name, d), kept[d] or (), spread)
        for d in changed:
            if self.start == "pairs" and (name, d) in self.found.writes:
                self._pair(data, (name, d), 1.0, variables(axes[d].dim))
        return data, tuple(kept)

    def _rank(self, place: Place) -> int:
        """Readers come last: they must be zero also for new rows."""
        readings = self.found.readings.get(place, [])
        return 0 if not readings else 1 if all(r.silent for r in readings) else 2

    def _extend(self, data: Tensor, place: Place, kept: tuple[int, ...], spread: float) -> Tensor:
        """``data`` with new entries along one dimension."""
        dim, size = place[1], new_size(self.found.width_of(place), self.sizes)
        shape = [*data.shape[:dim], size, *data.shape[dim + 1 :]]
        grown = torch.empty(shape, dtype=data.dtype, device=data.device)
        grown[...] = self._fresh(data, place, shape, spread)
        self._silence(grown, place, size)
        index = torch.tensor(kept, device=data.device)
        return grown.index_copy_(dim, index, data)

    def _fresh(self, data: Tensor, place: Place, shape: list[int], spread: float) -> Tensor | float:
        """Values of new entries along a dimension, leaving aside what reads."""
        demand = self.demands.get(place)
        if place in self.found.fills:
            return self.found.fills[place]
        if demand == "zero":
            return 0.0
        random = place in self.found.writes or place in self.found.readings
        if demand == "mean" or not random or data.ndim < 2 or not data.is_floating_point():
            mean = data.to(torch.float64 if data.is_floating_point() else data.dtype)
            return mean.mean(place[1], keepdim=True).to(data.dtype) if data.is_floating_point() else 0.0
        device = self.generator.device if self.generator is not None else torch.device("cpu")
        drawn = torch.randn(shape, generator=self.generator, device=device)
        scale = spread or 1 / math.sqrt(max(1, data.numel() // data.shape[0]))
        return (drawn * scale).to(data.device, data.dtype)

    def _silence(self, grown: Tensor, place: Place, size: int) -> None:
        """Let entries that read new units, unless those are zero, cancel in pairs, or be zero."""
        loud = [r for r in self.found.readings.get(place, []) if not r.silent]
        if not loud:
            return
        summed = list(dict.fromkeys(v for r in loud for v in variables(r.dim)))
        dim = self.found.width_of(place)
        unread = set(range(size)) - set(positions(expand(dim), self.sizes, summed.__contains__))
        # What is written too, as a tied weight, cannot have two signs.
        if self.start == "pairs" and place not in self.found.writes:
            unread -= set(self._pair(grown, place, -1.0, summed))
        for position in unread:
            grown.select(place[1], position).zero_()

    def _pair(self, grown: Tensor, place: Place, sign: float, among: list[Variable]) -> list[int]:
        """Make the second of each pair of new units ``sign`` times the first; the positions of both."""
        paired: list[int] = []
        for variable in among:
            for second, first in twins(self.found.width_of(place), self.sizes, variable):
                grown.select(place[1], second).copy_(grown.select(place[1], first) * sign)
                paired += (second, first)
        return paired


def _spread(data: Tensor) -> float:
    if not data.is_floating_point() or data.numel() < 2:
        return 0.0
    spread = float(data.to(torch.float64).std(correction=0))
    return spread if math.isfinite(spread) else 0.0
