"""Failing kernels are contained in their layer, in that step, and reported; training goes on."""

from __future__ import annotations

import random

import pytest
import torch
from kasmina_support import grow, kernel_for, to_training
from torch import nn

from esper.kasmina import SeededLayer, graft, pop_faults, seeded_layers, wrap
from esper.messages import SeedState

torch.set_num_threads(1)


class BackwardFault(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, value: float) -> torch.Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, g: torch.Tensor):
        return torch.full_like(g, ctx.value), None


class Failing(nn.Module):
    """A sound kernel that fails in one way once it is told to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.fault = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = self.inner(x)
        where, _, value = self.fault.rpartition(" ")
        if self.fault == "raise":
            raise ValueError("told to\nfail")
        if self.fault == "shape":
            return k[..., :-1]
        if self.fault == "dtype":
            return k.double()
        if self.fault == "type":
            return [k]
        if where == "output":
            return k + float(value)
        if where == "one value":
            return torch.where(torch.arange(k.numel()).view_as(k) == 0, float(value), k)
        return BackwardFault.apply(k, float(value)) if where == "backward" else k


FAULTS = {
    "raise": "raised",
    "shape": "shape",
    "type": "shape",
    "dtype": "dtype",
    "output nan": "non-finite",
    "output inf": "non-finite",
    "one value -inf": "non-finite",
    "one value nan": "non-finite",
    "backward nan": "non-finite",
    "backward -inf": "non-finite",
}


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(4, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 8),
            nn.LayerNorm(8),
        )


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    model = Net()
    wrap(model, torch.zeros(2, 4, 4, 4))
    return model


def finite(model: nn.Module) -> bool:
    tensors = [
        *model.parameters(),
        *model.buffers(),
        *(p.grad for p in model.parameters() if p.grad is not None),
    ]
    return all(bool(t.isfinite().all()) for t in tensors)


def failing(layer: SeededLayer, index: int, state: SeedState, site="parallel", blend="residual") -> Failing:
    kernel = Failing(kernel_for(layer.slot(site, index)))
    if state is SeedState.TRAINING:
        to_training(graft(layer, index, kernel, kernel_id=f"k{index}", site=site, blend=blend))
    else:
        grow(layer, index, 0.5, kernel=kernel, site=site, blend=blend)
    return kernel


@pytest.mark.parametrize("state", [SeedState.TRAINING, SeedState.BLENDING])
@pytest.mark.parametrize("site", ["parallel", "series"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_gives_the_default_transform_and_is_reported(model: Net, fault: str, site, state) -> None:
    layers = seeded_layers(model)
    kernels = {name: failing(layer, 1, state, site) for name, layer in layers.items()}
    x = torch.randn(5, 4, 4, 4, requires_grad=True)
    for name, layer in layers.items():
        kernels[name].fault = fault
        y = layer(x if name == "0" else torch.randn(5, 32, requires_grad=True))
        if not fault.startswith("backward"):
            assert torch.equal(y, layer.host(x)) if name == "0" else y.isfinite().all()
    model(x).square().mean().backward()
    faults = pop_faults(model)
    assert [(f.layer, f.seed_idx, f.kernel_id, f.kind, f.from_state) for f in faults] == [
        (name, 1, "k1", FAULTS[fault], state) for name in ("0", "4")
    ]
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert finite(model)
    for layer in layers.values():
        assert layer.seed(1).state is SeedState.ERROR_RECOVERY
        assert all(p.grad is None for p in layer.seed(1).parameters())
        layer.seed(1).remove_kernel()
        layer.seed(1).transition(SeedState.DORMANT, {})
    assert not pop_faults(model)


def test_messages_say_what_the_kernel_did(model: Net) -> None:
    layer = seeded_layers(model)["4"]
    for index, fault in enumerate(("raise", "shape", "dtype", "output nan")):
        failing(layer, index, SeedState.BLENDING).fault = fault
    layer(torch.randn(5, 32))
    assert [f.message for f in sorted(pop_faults(model), key=lambda f: f.seed_idx)] == [
        "ValueError: fail",
        "returned (5, 1) where (5, 2) belongs",
        "returned torch.float64 where torch.float32 belongs",
        "non-finite values at the kernel's output",
    ]


def test_sound_kernels_beside_a_failing_one_keep_their_part(model: Net) -> None:
    layer = seeded_layers(model)["4"]
    x = torch.randn(5, 32)
    grow(layer, 0)
    bad = failing(layer, 1, SeedState.BLENDING)
    grow(layer, 2, blend="lerp", site="series")
    sound = layer(x)
    for fault in FAULTS:
        bad.fault = fault
        y, bare = layer(x), layer.host(x)
        expected = bad.fault.startswith("backward")
        assert torch.equal(y[:, 2:4], sound[:, 2:4] if expected else bare[:, 2:4])
        assert torch.equal(y[:, [0, 1, 4, 5, 6, 7]], sound[:, [0, 1, 4, 5, 6, 7]])
        y.sum().backward()
        pop_faults(model)
        layer.seed(1).reset()
        bad = failing(layer, 1, SeedState.BLENDING)
        sound = layer(x)


def test_a_diverging_network_is_not_blamed_on_its_kernels(model: Net) -> None:
    layer = seeded_layers(model)["4"]
    for index, blend in enumerate(("residual", "lerp")):
        grow(layer, index, blend=blend)
        grow(layer, index + 2, blend=blend, site="series")
    x = torch.randn(5, 32)
    model[5](layer(x * float("nan"))).sum().backward()
    assert not pop_faults(model)
    (layer(x).sum() * float("inf")).backward()
    assert not pop_faults(model)
    model.zero_grad()
    layer(x).sum().backward()
    assert not pop_faults(model)
    assert layer.running == [0, 1, 2, 3]


def test_a_network_that_diverges_in_evaluation_is_not_blamed_on_its_kernels(model: Net) -> None:
    layer = seeded_layers(model)["4"]
    grow(layer, 0)
    with torch.no_grad():
        layer(torch.full((5, 32), float("inf")))
    assert not pop_faults(model)


def test_a_new_kernel_is_not_blamed_for_the_one_before(model: Net) -> None:
    layer = seeded_layers(model)["4"]
    kernel = failing(layer, 0, SeedState.BLENDING)
    for fault in ("output nan", "raise"):
        kernel.fault = fault
        layer(torch.randn(5, 32))
    assert [fault.kind for fault in pop_faults(model)] == ["raised"]
    layer.seed(0).reset()
    grow(layer, 0)
    layer(torch.randn(5, 32))
    assert not pop_faults(model)


def test_interrupts_are_not_swallowed(model: Net) -> None:
    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 2:
                raise KeyboardInterrupt
            return x

    layer = seeded_layers(model)["4"]
    seed = grow(layer, 0, kernel=Interrupted(), site="series")
    with pytest.raises(KeyboardInterrupt):
        layer(torch.randn(5, 32))
    assert seed.state is SeedState.BLENDING


def test_half_precision_sums_do_not_overflow() -> None:
    """A sum of 10,000 bfloat16 or float16 ones is finite only in a wider type."""
    model = nn.Sequential(nn.Linear(4, 4)).half()
    wrap(model, torch.zeros(2, 4, dtype=torch.half))
    seed = grow(seeded_layers(model)["0"], 0, 1.0, kernel=nn.Softplus(threshold=0), site="series")
    y = model(torch.full((20_000, 4), 10.0, dtype=torch.half))
    assert y.isfinite().all()
    assert not pop_faults(model)
    assert seed.state is SeedState.BLENDING


def test_a_thousand_injected_faults_and_training_finishes(model: Net) -> None:
    chance = random.Random(0)
    x, y = torch.randn(32, 4, 4, 4), torch.randint(8, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    layers = seeded_layers(model)
    kernels: dict[tuple[str, int], Failing] = {}
    counts: dict[str, int] = dict.fromkeys(FAULTS, 0)
    first = last = float("nan")
    while sum(counts.values()) < 1000:
        for name, layer in layers.items():
            for seed in layer.seeds:
                if seed.kernel is None:
                    site, blend = chance.choice(["parallel", "series"]), chance.choice(["residual", "lerp"])
                    state = chance.choice([SeedState.TRAINING, SeedState.BLENDING])
                    kernel = kernels[name, seed.index] = failing(layer, seed.index, state, site, blend)
                    optimizer.add_param_group({"params": list(kernel.parameters()), "lr": 0.02})
        told = {}
        for key, kernel in kernels.items():
            if chance.random() < 0.4:
                told[key] = kernel.fault = chance.choice(list(FAULTS))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        for fault in pop_faults(model):
            key = fault.layer, fault.seed_idx
            assert fault.kind == FAULTS[told.pop(key)]
            counts[kernels[key].fault] += 1
            kernel = layers[fault.layer].seed(fault.seed_idx).remove_kernel()
            gone = {id(p) for p in kernel.parameters()}
            optimizer.param_groups = [g for g in optimizer.param_groups if id(g["params"][0]) not in gone]
            layers[fault.layer].seed(fault.seed_idx).transition(SeedState.DORMANT, {})
        assert not told
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        assert finite(model)
        first, last = (loss.item() if first != first else first), loss.item()
    assert min(counts.values()) > 50
    assert last < first
    model.eval()
    assert model(x).isfinite().all()
