"""Measuring a network without changing it: losses, accuracy, FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from esper.data.losses import mean_loss, sample_losses
from esper.kasmina import seeded_layers
from esper.tolaria.averaging import share
from esper.tolaria.distributed import ALONE, Group
from esper.tolaria.weight_average import WeightAverage


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Per-sample cross-entropy in nats, shape (N,), on the CPU; accuracy in [0, 1]."""

    losses: Tensor
    accuracy: float

    @property
    def loss(self) -> float:
        """Mean loss over the samples."""
        return float(self.losses.mean())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 500) -> Evaluation:
    """Cross-entropy and accuracy of ``model`` on ``x`` (N, ...), in eval mode.

    Labels ``y`` are (N,), or (N, T) for sequences, of which each position counts alike.
    """
    losses, correct = [], torch.zeros((), dtype=torch.long, device=y.device)
    with evaluating(model):
        for start in range(0, len(y), batch_size):
            labels = y[start : start + batch_size]
            logits = model(x[start : start + batch_size])
            losses.append(sample_losses(logits.float(), labels))
            correct += (logits.argmax(-1) == labels).sum()
    return Evaluation(torch.cat(losses).cpu(), correct.item() / y.numel())


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs per sample of one forward pass, and of one training step (forward and backward)."""

    forward: float
    training: float


class _NoModules(ModuleTracker):
    """In place of what tells FLOPs apart by module: it cannot go back through a parametrised weight."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@contextmanager
def counting_flops(device: torch.device) -> Iterator[FlopCounterMode]:
    """Count what runs inside, on ``device``, with torch's own counter."""
    # On the CPU the counter knows no fused attention: it would count none of it.
    fused = nullcontext() if device.type == "cuda" else sdpa_kernel(SDPBackend.MATH)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with fused, counter:
        yield counter


def count_flops(model: nn.Module, x: Tensor, y: Tensor) -> Flops:
    """Count with torch's own counter on the batch ``x``, ``y``; no gradient, buffer or RNG state changes.

    Layers are in training mode for the step, everything inside them in eval mode: a kernel that trains in
    isolation runs in the step only.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    devices = {x.device} if x.is_cuda else set()
    samples = len(y)
    with evaluating(model), torch.random.fork_rng(devices=devices), torch.enable_grad():
        with counting_flops(x.device) as forward:
            model(x)
        for layer in seeded_layers(model).values():
            layer.training = True
        with counting_flops(x.device) as step:
            torch.autograd.grad(mean_loss(model(x), y), parameters, allow_unused=True)
    return Flops(forward.get_total_flops() / samples, step.get_total_flops() / samples)


class HeldOut:
    """The held-out split, bound to the model: it judges seeds and feeds the policy, and is never reported.

    Each process of ``group`` evaluates a part of it, and all get the whole. Where the weights are averaged,
    the network that is measured is that of the averages.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        group: Group = ALONE,
        average: WeightAverage | None = None,
    ) -> None:
        self.model = model
        self.x = x
        self.y = y
        self.average = average
        self._group = group
        self._samples = 0

    def evaluate(self) -> Evaluation:
        """Measure the model as it stands."""
        with nullcontext() if self.average is None else self.average.swapped():
            return self._evaluate()

    def _evaluate(self) -> Evaluation:
        self._samples += len(self.y)
        if self._group.size == 1:
            return evaluate(self.model, self.x, self.y)
        mine = share(len(self.y), self._group)
        part = evaluate(self.model, self.x[mine], self.y[mine]) if mine.start < mine.stop else None
        everyone = [each for each in self._group.gather(part) if each is not None]
        correct = sum(each.accuracy * len(each.losses) for each in everyone)
        return Evaluation(torch.cat([each.losses for each in everyone]), correct / len(self.y))

    def take_samples(self) -> int:
        """Samples evaluated since the last call, for the count of FLOPs."""
        samples, self._samples = self._samples, 0
        return samples
