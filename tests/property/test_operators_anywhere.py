"""Grafts, folds and blocks in random and in public networks: exact at birth, and undone without a trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operators_support import HOSTS, assert_same, outputs, public_network, worst
from random_networks import RandomNetwork
from torch import nn

from esper.errors import GraftError
from esper.kasmina import SeededLayer, graft, seeded_layers, wrap
from esper.kasmina.operators.deepen import deepen
from esper.kasmina.operators.fold import fold
from esper.kasmina.seed import Seed
from esper.messages import SeedState

torch.set_num_threads(1)

NETWORKS, PER_TEST = 200, 20
GROUPS = range(0, NETWORKS, PER_TEST)
Case = tuple[nn.Module, Any, random.Random]


def random_network(number: int) -> Case:
    model = RandomNetwork(number).double()
    return model, model.example(), random.Random(number)


def wrapped(case: Case) -> list[SeededLayer]:
    model, x, _ = case
    wrap(model, x, types=("linear", "conv2d"), seeds=1)
    return [layer for layer in seeded_layers(model).values() if layer.kind in ("linear", "conv2d")]


def affine(layer: SeededLayer, site: str) -> nn.Module:
    """A kernel without a nonlinearity for the layer's only seed."""
    slot = layer.slot(site, 0)
    if slot.layout != "channels":
        return nn.Linear(slot.in_features, slot.out_features, bias=False).double()
    return nn.Conv2d(slot.in_features, slot.out_features, 1, slot.stride, bias=False).double()


def grafted(layer: SeededLayer, rng: random.Random, *, site: str = "") -> Seed:
    site = site or ("series" if layer.parallel_refusal() else rng.choice(["parallel", "series"]))
    return graft(layer, 0, affine(layer, site), kernel_id="k", site=site, blend="residual")


def check_graft(case: Case) -> int:
    """1, or 0 where the network does not look at the layer that was drawn."""
    model, x, rng = case
    layer = rng.choice(wrapped(case))
    state, before = copy.deepcopy(model.state_dict()), outputs(model, x)
    seed = grafted(layer, rng)
    assert_same(outputs(model, x), before)
    seed.transition(SeedState.TRAINING, {"optimizer_parameters": seed.trainable_parameters})
    seed.transition(SeedState.BLENDING, {"steps": 1})
    assert_same(outputs(model, x), before)
    seed.set_alpha(0.5)
    blended = worst(before, outputs(model, x)) > 0
    seed.transition(SeedState.CULLED, {"reason": "undone"})
    seed.remove_kernel()
    assert_same(dict(model.state_dict()), dict(state))
    assert_same(outputs(model, x), before)
    return blended


def check_fold(case: Case) -> int:
    """Fold into a plain layer that another module does not read around its call."""
    model, x, rng = case
    layers = [layer for layer in wrapped(case) if getattr(layer.host, "groups", 1) == 1]
    plain = [layer for layer in layers if getattr(layer.host, "padding_mode", "zeros") == "zeros"]
    layer = rng.choice(plain)
    seed = grafted(layer, rng, site="series")
    seed.transition(SeedState.TRAINING, {"optimizer_parameters": seed.trainable_parameters})
    seed.transition(SeedState.BLENDING, {"steps": 1})
    seed.set_alpha(0.7)
    seed.transition(SeedState.HOLDING, {"alpha_target": 0.7})
    evidence = {"gain_lower": 1.0, "threshold": 0.0, "gain": 1.0, "gain_error": 0.0, "split": "held_out"}
    seed.transition(SeedState.FOSSILIZED, evidence)
    state, before = copy.deepcopy(model.state_dict()), outputs(model, x)
    growth = fold(layer, 0)
    assert seed.kernel is None
    assert worst(before, outputs(model, x)) <= 1e-9
    growth.undo()
    assert_same(dict(model.state_dict()), dict(state))
    assert_same(outputs(model, x), before)
    return 1


def check_deepen(case: Case) -> int:
    """1, or 0 where no block can stand behind the module that was drawn."""
    model, x, rng = case
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)
    target = rng.choice([name for name, module in model.named_modules() if isinstance(module, kinds)])
    state, before, tree = copy.deepcopy(model.state_dict()), outputs(model, x), repr(model)
    try:
        growth = deepen(model, target, example=x, generator=torch.Generator().manual_seed(0))
    except GraftError:
        assert_same(dict(model.state_dict()), dict(state))
        return 0
    assert growth.parameters_added > 0
    assert_same(outputs(model, x), before)
    growth.undo()
    assert repr(model) == tree
    assert_same(dict(model.state_dict()), dict(state))
    return 1


CHECKS: list[Callable[[Case], int]] = [check_graft, check_fold, check_deepen]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("first", GROUPS)
def test_random_networks(first: int, check: Callable[[Case], int]) -> None:
    assert sum(check(random_network(number)) for number in range(first, first + PER_TEST)) >= PER_TEST // 2


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", HOSTS)
def test_networks_that_this_project_did_not_write(name: str, check: Callable[[Case], int]) -> None:
    assert sum(check((*public_network(name), random.Random(number))) for number in range(8)) >= 2
