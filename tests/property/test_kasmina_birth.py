"""Whatever kernel is grafted, the network gives exactly what it gave before."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esper.kasmina import SeededLayer, graft, pop_faults, seeded_layers, wrap
from esper.messages import SeedState, Slot

torch.set_num_threads(1)


class Scaled(nn.Module):
    """A kernel whose values may be tiny, huge, infinite or not a number."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale


@st.composite
def kernels(draw: st.DrawFn, slot: Slot) -> nn.Module:
    i, o, s = slot.in_features, slot.out_features, slot.stride
    hidden = draw(st.integers(1, 5))
    act = draw(st.sampled_from([nn.Identity, nn.ReLU, nn.Tanh, nn.GELU, nn.Dropout]))
    if slot.layout == "channels":
        last: list[nn.Module] = [nn.Conv2d(hidden, o, 1)]
        last += draw(st.sampled_from([[], [nn.BatchNorm2d(o)]]))
        inner = nn.Sequential(nn.Conv2d(i, hidden, 3, s, 1), act(), *last)
    else:
        last = [nn.Linear(hidden, o), *draw(st.sampled_from([[], [nn.LayerNorm(o)]]))]
        inner = nn.Sequential(nn.Linear(i, hidden), act(), *last)
    scale = draw(st.sampled_from([0.0, 1e-30, 1.0, -1e3, 1e38, float("inf"), float("nan")]))
    return Scaled(inner, scale)


@st.composite
def layers(draw: st.DrawFn) -> tuple[SeededLayer, torch.Tensor]:
    layout = draw(st.sampled_from(["features", "tokens", "channels"]))
    seeds = draw(st.integers(1, 4))
    i, o = draw(st.integers(seeds, 9)), draw(st.integers(seeds, 9))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    if layout == "channels":
        host: nn.Module = nn.Conv2d(i, o, 3, draw(st.sampled_from([1, 2])), 1)
        x = torch.randn(2, i, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    else:
        host = nn.Linear(i, o)
        x = torch.randn(3, i) if layout == "features" else torch.randn(2, draw(st.integers(1, 4)), i)
    model = nn.Sequential(host)
    wrap(model, x, include=("0",), seeds=seeds)
    return seeded_layers(model)["0"], x


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_birth_leaves_output_and_gradient_exactly(data: st.DataObject) -> None:
    layer, x = data.draw(layers())
    layer.train(data.draw(st.booleans()))
    x.requires_grad_()
    before = layer(x)
    leaves = [x, *layer.host.parameters()]
    gradients = torch.autograd.grad(before.square().sum(), leaves)
    chosen = data.draw(st.sets(st.integers(0, len(layer.seeds) - 1), min_size=1))
    seeds = []
    for index in chosen:
        sites = ["series"] if layer.parallel_refusal() else ["parallel", "series"]
        site = data.draw(st.sampled_from(sites))
        kernel = data.draw(kernels(layer.slot(site, index)))
        seeds.append(graft(layer, index, kernel, kernel_id="k", site=site, blend="residual"))
    for state in (SeedState.GERMINATED, SeedState.TRAINING, SeedState.BLENDING):
        for seed in seeds:
            if state is not SeedState.GERMINATED:
                evidence = {"optimizer_parameters": seed.trainable_parameters, "steps": 1}
                seed.transition(state, evidence)
        assert torch.equal(layer(x), before), state
        after = torch.autograd.grad(layer(x).square().sum(), leaves)
        assert all(torch.equal(a, b) for a, b in zip(after, gradients, strict=True)), state
    broken = {seed.index for seed in seeds if not math.isfinite(seed.kernel.scale)}
    failed = {fault.seed_idx for fault in pop_faults(layer)}
    assert broken <= failed
    assert torch.equal(layer(x), before)
