"""Learning rates of old and new parts of a grown weight matched.

The rule is that of Yuan, Savarese and Maire 2023 (arXiv 2306.12700), "learning rate adaptation": what the
i-th growth added to a weight W, and nothing before or after it, is block W_i; W_0 is what was there before.
Where the optimizer's rate is eta, a block learns with::

    eta_i = eta * f(W_i) / f(W_0),    eta_0 = eta

Here f is the root mean square of the entries, so that a block is not slow only because it has few of them,
and the ratio is kept between ``LOWEST`` and ``HIGHEST``. The ratio scales the step that the optimizer made,
not the gradient: Adam would divide the scale out of a gradient again. Where the step is proportional to the
rate, as in SGD (momentum, Nesterov), Adam and AdamW, this is what a parameter group with the rate eta_i would
do, weight decay included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import GraftError
from esper.kasmina.operators.operator import Growth, Resize

Rates = Literal["equal", "matched"]
"""What new entries of a weight learn with: the rate of the old ones, or their own by the rule above."""

LOWEST, HIGHEST = 0.25, 4.0
"""Range of the factors. Below, a block hardly learns; above, its steps outgrow what the rate is for."""


class BlockRates:
    """Scales the steps of ``optimizer`` on the blocks that growth added to weights.

    Only parameters of two dimensions or more have blocks: the sizes of biases and of the weights of norms say
    nothing of how far they are trained. Nothing is hooked into the optimizer before the first growth is to be
    matched; from then on a step costs a copy of the grown weights and one pass over them.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._grown: dict[Tensor, _Blocks] = {}

    def check(self, growth: Growth) -> None:
        """Raise GraftError when ``growth`` made no weight larger, so that nothing can be matched."""
        if not _weights(growth):
            raise GraftError(
                f"{growth.operator} of {growth.target} makes no weight larger: there are no rates to match",
                hint="leave rates at equal",
            )

    def follow(self, growth: Growth, *, matched: bool) -> None:
        """Take in a ``growth`` that was made just before and is to stay.

        With ``matched`` its new entries are a block of each weight; without, they count as old ones. Every
        growth has to be followed, in order, since blocks move within the weights that it resizes.

        Raises:
            GraftError: as ``check``, with ``matched``; nothing is changed then.
        """
        if matched:
            self.check(growth)
        for change in _weights(growth):
            blocks = self._grown.get(change.tensor)
            if blocks is None and not matched:
                continue
            if not self._grown:
                self._optimizer.register_step_pre_hook(self._before_step)
                self._optimizer.register_step_post_hook(self._after_step)
            if blocks is None:
                blocks = self._grown[change.tensor] = _Blocks(change)
            blocks.grow(change, matched=matched)
            blocks.measure(change.tensor)

    def measure(self) -> None:
        """Set all factors by the weights as they are now; a function of them alone, bit for bit."""
        for weight, blocks in self._grown.items():
            blocks.measure(weight)

    def tables(self) -> list[tuple[float, ...]]:
        """The factors of every grown weight, in the order in which they grew."""
        return [blocks.table for blocks in self._grown.values()]

    def set_tables(self, tables: Sequence[Sequence[float]]) -> None:
        """Put back what ``tables`` returned, once the same growths were followed."""
        for (weight, blocks), table in zip(self._grown.items(), tables, strict=True):
            blocks.use(weight, tuple(table))

    def factors(self, weight: Tensor) -> tuple[float, ...]:
        """The factor of each block of ``weight``, by age; the first is 1, that of what never grew."""
        return self._grown[weight].table if weight in self._grown else (1.0,)

    @torch.no_grad()
    def _before_step(self, _optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> None:
        for weight, blocks in self._grown.items():
            if blocks.scale is not None:
                blocks.before = weight.detach().clone()

    @torch.no_grad()
    def _after_step(self, _optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: Mapping[str, Any]) -> None:
        for weight, blocks in self._grown.items():
            if blocks.scale is not None and blocks.before is not None:
                scaled = blocks.before + blocks.scale * (weight - blocks.before)
                # Old entries are left alone: before + 1 * (after - before) is not after to the last bit.
                weight.copy_(torch.where(blocks.scale == 1, weight, scaled))
            blocks.before = None


@dataclass(eq=False)
class _Blocks:
    """Which block each entry of a weight is of, and what the steps on it are scaled by.

    ``labels`` has the shape of the weight: 0 for old entries, i for those of the i-th matched growth of it.
    ``scale`` is the factor of each entry, None where all are 1; ``before`` is the weight before a step.
    """

    first: Resize
    labels: Tensor = field(init=False)
    table: tuple[float, ...] = (1.0,)
    scale: Tensor | None = None
    before: Tensor | None = None

    def __post_init__(self) -> None:
        weight = self.first.tensor
        self.labels = torch.zeros(self.first.old_shape, dtype=torch.int16, device=weight.device)

    def grow(self, change: Resize, *, matched: bool) -> None:
        label = len(self.table) if matched else 0
        self.labels = change.grow(self.labels, label)
        self.table += (1.0,) * matched

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        # One masked sum a block: a scatter of all would add in no fixed order on a GPU.
        squares = weight.detach().to(torch.float64).square()
        sizes = [_root_mean(squares, self.labels == label) for label in range(len(self.table))]
        self.use(weight, (1.0, *(_factor(size, sizes[0]) for size in sizes[1:])))

    def use(self, weight: Tensor, table: tuple[float, ...]) -> None:
        self.table = table
        if all(factor == 1 for factor in table):
            self.scale = None
            return
        factors = torch.tensor(table, dtype=weight.dtype, device=weight.device)
        self.scale = factors[self.labels.long()]


def _weights(growth: Growth) -> list[Resize]:
    """What ``growth`` resized and has blocks."""
    return [r for r in growth.resized if isinstance(r.tensor, nn.Parameter) and r.tensor.ndim > 1]


def _root_mean(squares: Tensor, of: Tensor) -> float:
    return math.sqrt(float((squares * of).sum()) / max(1, int(of.sum())))


def _factor(size: float, first: float) -> float:
    """The clamped ratio; 1 where a block is zero, or not finite, and has no ratio."""
    if not (0 < size < math.inf and 0 < first < math.inf):
        return 1.0
    return min(max(size / first, LOWEST), HIGHEST)
