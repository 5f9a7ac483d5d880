"""What several tests of the seeded layers share."""

from __future__ import annotations

from torch import nn

from esper.kasmina import Seed, SeededLayer, graft
from esper.messages import Blend, SeedState, Site, Slot


def kernel_for(slot: Slot) -> nn.Module:
    """A kernel with a hidden layer that fits ``slot``."""
    i, o = slot.in_features, slot.out_features
    if slot.layout == "channels":
        return nn.Sequential(nn.Conv2d(i, 3, 3, slot.stride, 1), nn.Tanh(), nn.Conv2d(3, o, 1))
    return nn.Sequential(nn.Linear(i, 3), nn.Tanh(), nn.Linear(3, o))


def to_training(seed: Seed) -> Seed:
    seed.transition(SeedState.TRAINING, {"optimizer_parameters": seed.trainable_parameters})
    return seed


def to_blending(seed: Seed, alpha: float) -> Seed:
    to_training(seed).transition(SeedState.BLENDING, {"steps": 1})
    seed.set_alpha(alpha)
    return seed


def grow(
    layer: SeededLayer,
    index: int,
    alpha: float = 0.5,
    *,
    kernel: nn.Module | None = None,
    site: Site = "parallel",
    blend: Blend = "residual",
) -> Seed:
    """Graft into seed ``index`` and blend with ``alpha``."""
    kernel = kernel or kernel_for(layer.slot(site, index))
    return to_blending(graft(layer, index, kernel, kernel_id=f"k{index}", site=site, blend=blend), alpha)
