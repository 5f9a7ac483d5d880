"""A training step with all seeds dormant against the same step of the bare network. Goal: at most 1.02x.

Run: python benchmarks/dormant_overhead.py [--rounds N]
"""

from __future__ import annotations

import argparse
import copy

import torch
from paired import paired, train_step
from torch import nn

from esper.kasmina import wrap
from esper.models.mlp import MLP
from esper.models.resnet import ResNet

GOAL = 1.02


def networks() -> list[tuple[str, nn.Module, torch.Tensor]]:
    """Name, network and a batch for it."""
    return [
        ("ResNet width 8, 64x1x28x28", ResNet(width=8), torch.randn(64, 1, 28, 28)),
        ("MLP 784-256-256-10, batch 128", MLP(784, (256, 256)), torch.randn(128, 784)),
        ("MLP 64-64-64-10, batch 128", MLP(64, (64, 64)), torch.randn(128, 64)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'training step, all seeds dormant':34}{'bare ms':>9}{'wrapped ms':>12}{'ratio':>8}  middle half")
    for name, bare, x in networks():
        y = torch.randint(10, (len(x),))
        wrapped = copy.deepcopy(bare)
        layers = len(wrap(wrapped, x[:2]))
        steps = 4 if x.ndim == 4 else 40
        result = paired(train_step(bare, x, y), train_step(wrapped, x, y), rounds=rounds, steps=steps)
        print(result.row(name, GOAL, f"{layers} layers, 4 seeds each"))


if __name__ == "__main__":
    main()
