"""GradMax: no last weight of the same norm lets the loss fall faster along alpha, and nothing else moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esper.errors import GraftError
from esper.karn.catalogue import load_catalogue
from esper.kasmina import SeededLayer, graft, seeded_layers, wrap
from esper.kasmina.operators.gradmax import gradmax
from esper.messages import SeedState, Slot
from esper.tezzeret.builder import build
from esper.tezzeret.torchscript import TorchScriptTarget

torch.set_num_threads(1)
CATALOGUE = {b.name: b for b in load_catalogue([Path(__file__).parents[2] / "blueprints"]).blueprints}
STEP = 1e-5
"""Of alpha, for a central difference in float64."""


class Pooled(nn.Module):
    """Linear layers at each position of (N, T, F), in place activations, and the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(F.leaky_relu(self.b(F.leaky_relu(self.a(x), inplace=True)), inplace=True).mean(1))
        return y


class TimeFirst(Pooled):
    """The same over (T, N, F), inside."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(F.leaky_relu(self.b(F.leaky_relu(self.a(x.transpose(0, 1))))).mean(0))
        return y


class Twice(nn.Module):
    """A layer that is called twice, beside dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.c = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(torch.tanh(self.b(x))), 0.5, self.training)
        y: Tensor = self.c(torch.tanh(self.b(x)))
        return y


class Attending(nn.Module):
    """A host that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.MultiheadAttention(6, 2, batch_first=True)
        self.c = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.b(x, x, x)[0].mean(1))
        return y


def images() -> nn.Module:
    model = nn.Sequential()
    model.add_module("a", nn.Conv2d(2, 5, 3, padding=1))
    model.add_module("norm", nn.BatchNorm2d(5))
    model.add_module("b", nn.Conv2d(5, 6, 3, stride=2, padding=1))
    model.add_module("tail", nn.Sequential(nn.LeakyReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model.add_module("c", nn.Linear(6, 3))
    return model


HOSTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "positions": (Pooled, (4, 5)),
    "time first": (TimeFirst, (4, 5)),
    "twice": (Twice, (6,)),
    "attention": (Attending, (4, 6)),
    "images": (images, (2, 6, 6)),
}


class Gated(nn.Module):
    """A kernel that ends in a plain layer which is registered before the ones that feed it.

    Tokens are mixed along time, so that it matters which axis that is.
    """

    def __init__(self, slot: Slot, dropout: float = 0.0) -> None:
        super().__init__()
        i, o = slot.in_features, slot.out_features
        conv = slot.layout == "channels"
        self.last: nn.Module = nn.Conv2d(4, o, 1) if conv else nn.Linear(4, o)
        self.first: nn.Module = nn.Conv2d(i, 4, 3, slot.stride, 1) if conv else nn.Linear(i, 4)
        self.linear: nn.Module = nn.Conv2d(4, 4, 1) if conv else nn.Linear(4, 4)
        self.dropout = nn.Dropout(dropout)
        self.mixes = slot.layout == "tokens"

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.mixes:
            h = h + h.cumsum(1)
        y: Tensor = self.last(self.linear(self.dropout(h)))
        return y


class Normed(Gated):
    """The same behind a norm with buffers."""

    def __init__(self, slot: Slot) -> None:
        super().__init__(slot)
        conv = slot.layout == "channels"
        self.norm: nn.Module = nn.BatchNorm2d(slot.in_features) if conv else nn.LayerNorm(slot.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


@dataclass
class Case:
    model: nn.Module
    layer: SeededLayer
    idx: int
    kernel: nn.Module
    x: Tensor
    y: Tensor

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def slope(self) -> float:
        """d loss / d alpha at 0, by a central difference through the layer's own blending."""
        seed = self.layer.seed(self.idx)
        assert seed.alpha is not None
        before, losses = seed.state, []
        seed.restore(SeedState.BLENDING)
        self.model.eval()
        with torch.no_grad():
            for alpha in (STEP, -STEP):
                seed.alpha.fill_(alpha)
                losses.append(float(self.loss()))
            seed.alpha.zero_()
        seed.restore(before)
        return (losses[0] - losses[1]) / (2 * STEP)


def case(
    host: str,
    *,
    seed: int = 0,
    site: str = "parallel",
    blend: str = "residual",
    idx: int = 1,
    make: Callable[[Slot], nn.Module] = Gated,
) -> Case:
    torch.manual_seed(seed)
    build_host, shape = HOSTS[host]
    model, x = build_host().double(), torch.randn(7, *shape, dtype=torch.float64)
    wrap(model, x, include=("b",), seeds=2)
    layer = seeded_layers(model)["b"]
    kernel = make(layer.slot(site, idx)).double()
    graft(layer, idx, kernel, kernel_id="k", site=site, blend=blend)
    return Case(model, layer, idx, kernel, x, torch.randint(0, 3, (7,)))


def scripted(slot: Slot) -> nn.Module:
    target = TorchScriptTarget()
    return target.load(target.save(target.compile(Gated(slot))))


def weights_of(case: Case) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in case.model.state_dict().items()}


@given(
    host=st.sampled_from(sorted(HOSTS)),
    seed=st.integers(0, 2**16),
    site=st.sampled_from(["parallel", "series"]),
    blend=st.sampled_from(["residual", "lerp"]),
    idx=st.integers(0, 1),
    make=st.sampled_from([Gated, scripted]),
)
@settings(max_examples=40, deadline=None)
def test_no_direction_of_the_same_norm_is_steeper(host, seed, site, blend, idx, make):
    found = case(host, seed=seed, site=site, blend=blend, idx=idx, make=make)
    born = found.slope()
    set_to = gradmax(found.model, found.layer, found.idx, found.loss)
    assert set_to.weight == "last.weight"
    steepest = found.slope()
    assert steepest < born
    # With lerp the host's own part is in both slopes.
    assert set_to.after - set_to.before == pytest.approx(steepest - born, rel=1e-4, abs=1e-8)
    weight = dict(found.kernel.named_parameters())["last.weight"]
    best = weight.detach().clone()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(40):
        other = torch.randn(best.shape, generator=generator, dtype=best.dtype)
        with torch.no_grad():
            weight.copy_(other * best.norm() / other.norm())
        assert found.slope() >= steepest - 1e-8


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("make", [Gated, scripted, Normed])
@pytest.mark.parametrize("training", [True, False])
def test_only_that_weight_changes_and_the_output_not_by_a_bit(host, make, training):
    found = case(host, make=make)
    model = found.model.train(training)
    found.loss().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    before, modes = weights_of(found), [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    outputs = model.eval()(found.x)
    model.train(training)
    random = torch.random.get_rng_state()
    gradmax(model, found.layer, found.idx, found.loss)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    after = model.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert [name.rpartition("kernel.")[2] for name in changed] == ["last.weight"]
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert (gradient is None) == (parameter.grad is None)
        assert gradient is None or torch.equal(gradient, parameter.grad)
    assert torch.equal(model.eval()(found.x), outputs)
    weight = after[changed[0]]
    assert float(weight.norm()) == pytest.approx(float(before[changed[0]].norm()))
    rows = weight.flatten(1)
    assert float(torch.cdist(rows, rows).fill_diagonal_(1.0).min()) > 1e-6


def test_it_is_the_same_again():
    """Twice from one state gives one result, dropout in the kernel and whatever was drawn in between."""
    results = []
    for _ in range(2):
        found = case("positions", make=lambda slot: Gated(slot, dropout=0.5))
        torch.rand(len(results) + 1)
        gradmax(found.model, found.layer, found.idx, found.loss)
        results.append(found.kernel.state_dict()["last.weight"])
    assert torch.equal(*results)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_kernels_that_are_in_use_count(alpha):
    """The loss gradient is that of the network as it stands, grown before."""
    found = case("positions")
    other = Gated(found.layer.slot("parallel", 0)).double()
    graft(found.layer, 0, other, kernel_id="other", site="parallel", blend="residual")
    seed = found.layer.seed(0)
    seed.restore(SeedState.FOSSILIZED)
    seed.alpha.fill_(alpha)
    set_to = gradmax(found.model, found.layer, found.idx, found.loss)
    assert set_to.after == pytest.approx(found.slope(), rel=1e-6)


class Branches(nn.Module):
    """Two layers that are added: both make the output."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.a = nn.Linear(slot.in_features, slot.out_features)
        self.b = nn.Linear(slot.in_features, slot.out_features)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(torch.tanh(x)) + self.b(x)
        return y


@pytest.mark.parametrize("name", ["a", "b"])
def test_of_two_branches_the_steeper_is_set(name):
    def make(slot: Slot) -> nn.Module:
        kernel = Branches(slot)
        with torch.no_grad():
            getattr(kernel, name).weight.mul_(100)
        return kernel

    found = case("positions", make=make)
    assert gradmax(found.model, found.layer, found.idx, found.loss).weight == f"{name}.weight"


class Squashed(Branches):
    """Nothing is affine in a weight."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(3 * super().forward(x))


class Failing(Branches):
    """Raises on what it meets in the network, and not on what a graft tries it with."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 3:
            raise ValueError("too many")
        return super().forward(x)


def zeroed(slot: Slot) -> nn.Module:
    kernel = Gated(slot)
    nn.init.zeros_(kernel.last.weight)  # type: ignore[arg-type]
    return kernel


@pytest.mark.parametrize(
    ("make", "scale", "said"),
    [
        (Gated, 0.0, "its gradient's 0"),
        (Gated, float("nan"), "its gradient's nan"),
        (Gated, float("inf"), "its gradient's nan"),
        (zeroed, 1.0, "its norm is 0"),
        (Squashed, 1.0, "no weight of the kernel makes its output alone"),
        (Failing, 1.0, "the kernel raises ValueError: too many"),
    ],
)
def test_where_there_is_no_direction_the_weights_stay_and_why_is_said(make: Any, scale: float, said: str):
    found = case("positions", make=make)
    before = weights_of(found)
    with pytest.raises(GraftError, match=said):
        gradmax(found.model, found.layer, found.idx, lambda: found.loss() * scale)
    after = found.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_batch_that_does_not_reach_the_layer_is_refused():
    found = case("positions")
    with pytest.raises(GraftError, match="does not reach b"):
        gradmax(found.model, found.layer, found.idx, lambda: torch.zeros(()))
    found.layer.seed(found.idx).reset()
    with pytest.raises(GraftError, match="holds no kernel"):
        gradmax(found.model, found.layer, found.idx, found.loss)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("low_rank", "up.weight"),
        ("bottleneck_mlp", "up.weight"),
        ("swiglu", "project.weight"),
        ("siren", "project.weight"),
        ("pointwise", "project.weight"),
    ],
)
def test_the_last_weight_of_shipped_kernels_is_found(name, weight):
    target = TorchScriptTarget()

    def make(slot: Slot) -> nn.Module:
        return target.load(target.save(target.compile(build(CATALOGUE[name], slot))))

    found = case("positions", make=make)
    assert gradmax(found.model, found.layer, found.idx, found.loss).weight == weight
