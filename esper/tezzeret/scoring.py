"""A measured guess at how useful a kernel will be, before any trial of it in a network."""

from __future__ import annotations

import torch
from torch import nn

from esper.messages import Slot
from esper.tezzeret.examples import Teacher, example

STEPS = 32
LEARNING_RATE = 1e-2
BATCH = (8, 8)


def performance_score(kernel: nn.Module, slot: Slot, *, seed: int = 0) -> float:
    """Share of a teacher's variance that ``kernel`` explains after 32 Adam steps; in [0, 1].

    The teacher is a fixed random nonlinear map for the slot (``examples.Teacher``); inputs are standard
    normal, new ones each step; the share is taken on a batch never trained on. ``kernel`` is trained in
    place. It says which kernels learn fast on generic data, no more: a proxy for the cold start, which field
    trials outweigh as they come in.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher = Teacher(slot, generator)
    like = next(kernel.parameters(), torch.empty(0))
    if like.numel():
        optimizer = torch.optim.Adam(kernel.parameters(), lr=LEARNING_RATE)
        kernel.train()
        for _ in range(STEPS):
            x = example(slot, *BATCH, generator=generator)
            loss = nn.functional.mse_loss(kernel(x.to(like)), teacher(x).to(like))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    kernel.eval()
    x = example(slot, *BATCH, generator=generator)
    target = teacher(x)
    with torch.no_grad():
        error = (kernel(x.to(like)).to(target) - target).square().mean()
    share = float(1 - error / target.square().mean())
    return min(1.0, max(0.0, share)) if share == share else 0.0
