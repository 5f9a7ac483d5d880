"""A training step with every seed blending against the same maths written by hand. Goal: at most 1.15x.

The peer splits, runs the same kernels, adds ``alpha * k`` and joins, with no masking of faults, no lifecycle
and no health; ours contains faults and reads them after every backward, as training does.

Run: python benchmarks/active_overhead.py [--rounds N]
"""

from __future__ import annotations

import argparse
import copy
import functools

import torch
from dormant_overhead import networks
from paired import paired, train_step
from torch import nn

from esper.kasmina import SeededLayer, graft, pop_faults, seeded_layers, wrap
from esper.messages import SeedState, Site, Slot

GOAL = 1.15
ALPHA = 0.5


class ByHand(nn.Module):
    """``host`` with kernels on the chunks of its input (or output), written without Esper."""

    def __init__(self, layer: SeededLayer, site: Site) -> None:
        super().__init__()
        self.host = layer.host
        self.kernels = nn.ModuleList(seed.kernel for seed in layer.seeds)
        self.site, self.axis = site, layer.geometry.axis
        self.in_sizes = layer.in_sizes if site == "parallel" else layer.out_sizes
        self.out_sizes = layer.out_sizes
        self.register_buffer("alpha", torch.tensor(ALPHA))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Host, chunks, kernels, blend, join."""
        y = self.host(x)
        sources = (x if self.site == "parallel" else y).split(self.in_sizes, self.axis)
        targets = y.split(self.out_sizes, self.axis)
        parts = [t + self.alpha * k(s) for k, s, t in zip(self.kernels, sources, targets, strict=True)]
        return torch.cat(parts, self.axis)


def kernel(slot: Slot) -> nn.Module:
    """A small kernel of two layers for ``slot``."""
    i, o = slot.in_features, slot.out_features
    if slot.layout == "channels":
        return nn.Sequential(nn.Conv2d(i, o, 3, slot.stride, 1), nn.ReLU(), nn.Conv2d(o, o, 1))
    return nn.Sequential(nn.Linear(i, o), nn.ReLU(), nn.Linear(o, o))


def grow(model: nn.Module) -> nn.Module:
    """Put a kernel into every seed of the wrapped ``model`` and blend it in; return the same by hand."""
    for layer in seeded_layers(model).values():
        site: Site = "series" if layer.parallel_refusal() else "parallel"
        for index in range(len(layer.seeds)):
            module = kernel(layer.slot(site, index))
            seed = graft(layer, index, module, kernel_id="bench", site=site, blend="residual")
            parameters = float(seed.trainable_parameters)
            seed.transition(SeedState.TRAINING, {"optimizer_parameters": parameters})
            seed.transition(SeedState.BLENDING, {"steps": 1})
            seed.set_alpha(ALPHA)
    by_hand = copy.deepcopy(model)
    for parent in list(by_hand.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, SeededLayer):
                setattr(parent, key, ByHand(child, child.seed(0).site))
    return by_hand


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'training step, all seeds blending':34}{'hand ms':>9}{'seeded ms':>12}{'ratio':>8}  middle half")
    for name, ours, x in networks():
        y = torch.randint(10, (len(x),))
        layers = len(wrap(ours, x[:2]))
        by_hand = grow(ours)
        gap = float((ours(x) - by_hand(x)).detach().abs().max())
        steps = 2 if x.ndim == 4 else 15
        contain = functools.partial(pop_faults, ours)
        result = paired(
            train_step(by_hand, x, y), train_step(ours, x, y, contain), rounds=rounds, steps=steps
        )
        print(result.row(name, GOAL, f"{layers} layers, largest difference {gap:.1e}"))


if __name__ == "__main__":
    main()
