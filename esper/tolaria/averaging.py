"""Gradients of a batch that is trained in parts: one after another, in several processes, or both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from esper.tolaria.distributed import Group

LEAST = 2
"""Samples that a part has at least, where there are as many: a batch norm needs two."""


def parts(samples: int, wanted: int) -> list[slice]:
    """``samples`` in up to ``wanted`` parts, in order; of nearly one size, the first are one larger."""
    count = max(1, min(wanted, samples // LEAST))
    size, larger = divmod(samples, count)
    ends = [size * (i + 1) + min(i + 1, larger) for i in range(count)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def share(samples: int, group: Group) -> slice:
    """The part of ``samples`` that this process of ``group`` takes; it may be empty."""
    everyone = parts(samples, group.size)
    return everyone[group.rank] if group.rank < len(everyone) else slice(samples, samples)


def usual_part(samples: int, group: Group, accumulate: int) -> int:
    """The size that most parts of a batch of so many ``samples`` have in this process."""
    mine = share(samples, group)
    sizes: list[int] = [part.stop - part.start for part in parts(mine.stop - mine.start, accumulate)]
    return max(sizes, key=sizes.count)


class Averaged(NamedTuple):
    """A whole batch: its mean loss, and how many faults of kernels there were in all processes."""

    loss: Tensor
    faults: int


class GradientAverage:
    """Sums gradients of the parts of one batch, each weighted by its share of the samples.

    The sum is the gradient of the mean over the whole batch, whatever the sizes of the parts. One for each
    step; ``optimizer`` says which parameters there are, the same in each process of ``group``.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, group: Group) -> None:
        self._model = model
        self._group = group
        self._parameters = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        self._sums: list[Tensor | None] = [None] * len(self._parameters)
        self._loss: Tensor | None = None
        self._weight = 0.0

    def add(self, loss: Tensor, weight: float) -> None:
        """Take over the gradients of a part with mean ``loss`` and ``weight`` of the samples, in [0, 1]."""
        self._weight += weight
        weighted = loss.detach() * weight
        self._loss = weighted if self._loss is None else self._loss + weighted
        for index, parameter in enumerate(self._parameters):
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                continue
            total = self._sums[index]
            self._sums[index] = gradient.mul_(weight) if total is None else total.add_(gradient, alpha=weight)

    def finish(self, faults: int = 0) -> Averaged:
        """Give each parameter its gradient over the whole batch, and each process the same buffers."""
        if self._group.size > 1:
            faults = self._reduce(faults)
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.grad = total
        assert self._loss is not None
        return Averaged(self._loss, faults)

    @torch.no_grad()
    def _reduce(self, faults: int) -> int:
        """Sum over the processes, with one call for each dtype; the faults there were."""
        device = self._parameters[0].device
        known = [float(total is not None) for total in self._sums]
        loss = torch.zeros((), device=device) if self._loss is None else self._loss.float()
        tail = torch.cat([torch.tensor([*known, float(faults)], device=device), loss.view(1)])
        gradients = [
            torch.zeros_like(p) if s is None else s for p, s in zip(self._parameters, self._sums, strict=True)
        ]
        buffers = list(_buffers(self._model))
        sent = [*gradients, *(b * self._share_of(averaged) for b, averaged in buffers), tail]
        *reduced, tail = self._summed(sent)
        for (buffer, _), value in zip(buffers, reduced[len(gradients) :], strict=True):
            buffer.copy_(value)
        *known, faults_there, mean = tail.tolist()
        self._sums = [
            total if there else None for total, there in zip(reduced[: len(gradients)], known, strict=True)
        ]
        self._loss = loss.new_tensor(mean)
        return int(faults_there)

    def _share_of(self, averaged: bool) -> float:
        """What this process adds to a buffer: its part of a mean, or all of it in the first and nothing."""
        return self._weight if averaged else float(self._group.rank == 0)

    def _summed(self, tensors: list[Tensor]) -> list[Tensor]:
        summed: list[Tensor] = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[i].flatten() for i in places])
            self._group.sum(flat)
            for i, piece in zip(
                places, flat.split_with_sizes([tensors[i].numel() for i in places]), strict=True
            ):
                summed[i] = piece.view(tensors[i].shape)
        return summed


def _buffers(model: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """The floating-point buffers, and whether each is a statistic of the batches that it saw.

    Statistics are averaged. Others are taken from the first process: they are alike unless a layer of the
    user's own gathers something in them.
    """
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                statistic = isinstance(module, _BatchNorm) and name in ("running_mean", "running_var")
                yield buffer, statistic
