"""Grown networks for the tests of export, and exports loaded as modules."""

import importlib.util
from dataclasses import dataclass, field

import torch
from torch import nn

from esper.kasmina import graft, seeded_layers, wrap
from esper.messages import SeedState
from esper.tezzeret.torchscript import TorchScriptTarget

torch.set_num_threads(1)


@dataclass(frozen=True)
class Growth:
    """One kernel that a test grows."""

    layer: str
    seed_idx: int
    eager: nn.Module
    site: str = "parallel"
    blend: str = "residual"
    alpha: float = 1.0
    state: SeedState = SeedState.FOSSILIZED


@dataclass
class Grown:
    """A wrapped and grown network, and the eager form of each of its kernels."""

    model: nn.Module
    example: torch.Tensor
    kernels: dict = field(default_factory=dict)


def grow(model, example, growths, **wrapping) -> Grown:
    """``model`` wrapped, with scripted kernels whose weights are not those of their eager forms."""
    wrap(model, example, **wrapping)
    layers, target = seeded_layers(model), TorchScriptTarget()
    grown = Grown(model, example)
    for growth in growths:
        kernel = target.load(target.save(target.compile(growth.eager)))
        seed = graft(
            layers[growth.layer],
            growth.seed_idx,
            kernel,
            kernel_id=f"kernel_{growth.layer}_{growth.seed_idx}",
            site=growth.site,
            blend=growth.blend,
        )
        with torch.no_grad():
            for value in kernel.parameters():
                value.add_(torch.randn_like(value), alpha=0.1)
        seed.alpha.fill_(growth.alpha)
        seed.restore(growth.state)
        grown.kernels[growth.layer, growth.seed_idx] = growth.eager
    return grown


def train_a_little(model, example, steps=2):
    """Move BatchNorm statistics and weights off their initial values."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(example).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()


def load_export(folder):
    """The module ``model`` of the export in ``folder``."""
    spec = importlib.util.spec_from_file_location("exported", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
