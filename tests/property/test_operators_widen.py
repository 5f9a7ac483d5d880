"""On random networks and on public ones: widening is exact at birth, trains, and is undone."""

from __future__ import annotations

import copy
import random
from typing import Any, get_args

import pytest
import torch
from operators_support import HOSTS, assert_same, call, outputs, public_network, worst
from random_networks import RandomNetwork
from torch import Tensor, nn

from esper.kasmina.operators import Growth, Start, carry, find_widths, replay, uncarry, widen

torch.set_num_threads(1)

NETWORKS = 200
PER_TEST = 10
STARTS = get_args(Start)


def choose(model: nn.Module, x: Any, rng: random.Random) -> dict[str, int]:
    able = [w for w in find_widths(model, x).values() if w.growable]
    assert able
    chosen = rng.sample(able, min(len(able), rng.randint(1, 3)))
    return {w.name: w.size + rng.randint(1, 2) * w.granularity for w in chosen}


def frozen(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    state = {name: (t.clone(), t.stride()) for name, t in model.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return state, grads, copy.deepcopy(optimizer.state_dict()), repr(model)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, seed: int = 0) -> None:
    model.train()
    torch.manual_seed(seed)
    y = call(model, x)
    optimizer.zero_grad()
    (y * torch.randn(y.shape, dtype=y.dtype)).sum().backward()
    optimizer.step()


def new_slices(growth: Growth) -> list[list[Tensor]]:
    """For each grown dimension of each grown tensor, the slices that are new."""
    found = []
    for change in growth.resized:
        for dim, kept in enumerate(change.kept):
            if kept is not None:
                new = sorted(set(range(change.new_shape[dim])) - set(kept))
                found.append([change.tensor.detach().select(dim, i) for i in new])
    return found


def check(model: nn.Module, x: Any, sizes: dict[str, int], fresh: nn.Module, seed: int) -> None:
    """Birth, replay and undo at birth; then training, and undo after it."""
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if seed % 2:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    step(model, optimizer, x)
    born = outputs(model, x)
    before = frozen(model, optimizer)
    for again in (True, False):
        generator, start = torch.Generator().manual_seed(seed), STARTS[seed % 4 < 2]
        growth = widen(model, sizes, example=x, generator=generator, start=start)
        carry(optimizer, growth)
        assert growth.parameters_added > 0
        assert worst(born, outputs(model, x)) <= 1e-12
        if again:
            growth.undo()
            uncarry(optimizer, growth)
            assert_same(frozen(model, optimizer), before)
    replay(fresh, growth.record, example=x)
    fresh.load_state_dict(model.state_dict())
    assert repr(fresh) == repr(model)
    assert all(torch.equal(a, b) for a, b in zip(outputs(fresh, x), outputs(model, x), strict=True))

    for i in range(2):
        step(model, optimizer, x, seed=i)
    groups = [g for g in new_slices(growth) if len(g) > 1 and g[0].numel() > 1]
    alike = [all(torch.equal(g[0], other) for other in g[1:]) for g in groups]
    assert not groups or not all(alike)
    trained = {id(c.tensor): c.shrink(c.tensor.detach()) for c in growth.resized}
    scaled = {id(m.weight) for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm)}
    growth.undo()
    uncarry(optimizer, growth)
    for change in growth.resized:
        if id(change.tensor) not in scaled:
            assert torch.equal(change.tensor, trained[id(change.tensor)])
    assert repr(model) == before[3]
    step(model, optimizer, x)


@pytest.mark.parametrize("first", range(0, NETWORKS, PER_TEST))
def test_random_networks(first: int) -> None:
    for seed in range(first, first + PER_TEST):
        model, fresh = RandomNetwork(seed).double(), RandomNetwork(seed).double()
        x = model.example()
        check(model, x, choose(model, x, random.Random(seed)), fresh, seed)


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_whole_numbers_stay_exact(first: int) -> None:
    for seed in range(first, first + 20):
        model = RandomNetwork(seed, exact=True).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((3 * parameter).round())
        x = model.example()
        before = outputs(model, x)
        widen(model, choose(model, x, random.Random(seed)), example=x, start="zeros")
        after = outputs(model, x)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), seed


@pytest.mark.parametrize("name", HOSTS)
def test_networks_that_this_project_did_not_write(name: str) -> None:
    def build() -> nn.Module:
        return public_network(name)[0]

    _, x = public_network(name)
    growable = [w for w in find_widths(build(), x).values() if w.growable]
    assert len(growable) >= 3
    for seed, width in enumerate(growable):
        check(build(), x, {width.name: width.size + 2 * width.granularity}, build(), seed)
