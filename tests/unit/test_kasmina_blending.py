"""The maths of blending and its gradients, against the same written by hand for autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from kasmina_support import grow, kernel_for, to_training
from torch import nn

from esper.kasmina import SeededLayer, graft, pop_faults, seed_off, seeded_layers, wrap
from esper.messages import SeedState

HOSTS = {
    "features": (nn.Linear(10, 7), (5, 10)),
    "tokens": (nn.Linear(10, 7), (3, 5, 10)),
    "channels": (nn.Conv2d(10, 7, 3, 2, 1), (3, 10, 7, 6)),
}


def wrapped(name: str) -> tuple[SeededLayer, torch.Tensor]:
    torch.manual_seed(0)
    host, shape = HOSTS[name]
    model = nn.Sequential(copy.deepcopy(host)).double()
    x = torch.randn(shape, dtype=torch.float64)
    wrap(model, x, seeds=3)
    return seeded_layers(model)["0"], x.requires_grad_()


def by_hand(layer: SeededLayer, x: torch.Tensor) -> torch.Tensor:
    axis = 1 if layer.layout == "channels" else -1
    y = layer.host(x)
    parts = list(y.tensor_split(3, axis))
    for i, seed in enumerate(layer.seeds):
        if seed.kernel is not None and seed.state is SeedState.BLENDING:
            k = seed.kernel((x if seed.site == "parallel" else y).tensor_split(3, axis)[i])
            parts[i] = parts[i] + seed.alpha * (k - parts[i] if seed.blend == "lerp" else k)
    return torch.cat(parts, axis)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("site", ["parallel", "series"])
@pytest.mark.parametrize("blend", ["residual", "lerp"])
def test_values_and_gradients_are_those_by_hand(name: str, site, blend) -> None:
    layer, x = wrapped(name)
    for index in (0, 2):
        kernel = kernel_for(layer.slot(site, index)).double()
        grow(layer, index, 0.3 + 0.2 * index, kernel=kernel, site=site, blend=blend)
    leaves = [x, *layer.parameters()]
    y, expected = layer(x), by_hand(layer, x)
    assert torch.allclose(y, expected, rtol=1e-12)
    weights = torch.randn_like(y)
    gradients = torch.autograd.grad((y * weights).sum(), leaves)
    for gradient, hand in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), leaves), strict=True
    ):
        assert torch.allclose(gradient, hand, rtol=1e-10)
    assert not pop_faults(layer)


def test_mixed_sites_blends_and_states_share_a_layer() -> None:
    layer, x = wrapped("channels")
    grow(layer, 0, 0.5, kernel=kernel_for(layer.slot("series", 0)).double(), site="series", blend="lerp")
    grow(layer, 1, 1.0, kernel=kernel_for(layer.slot("parallel", 1)).double())
    kernel = kernel_for(layer.slot("parallel", 2)).double()
    to_training(graft(layer, 2, kernel, kernel_id="k", site="parallel", blend="residual"))
    y, expected = layer(x), by_hand(layer, x)
    assert torch.allclose(y, expected, rtol=1e-12)
    host_leaves = [x, *layer.host.parameters(), *layer.seed(0).parameters(), *layer.seed(1).parameters()]
    ours = torch.autograd.grad(y.square().sum(), host_leaves)
    hand = torch.autograd.grad(expected.square().sum(), host_leaves)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(ours, hand, strict=True))


@pytest.mark.parametrize("site", ["parallel", "series"])
def test_training_in_isolation_leaves_the_host_alone_and_teaches_the_kernel(site) -> None:
    layer, x = wrapped("tokens")
    kernel = kernel_for(layer.slot(site, 1)).double()
    to_training(graft(layer, 1, kernel, kernel_id="k", site=site, blend="residual"))
    y, bare = layer(x), layer.host(x)
    assert torch.equal(y, bare)
    host_leaves = [x, *layer.host.parameters()]
    ours = torch.autograd.grad(y.pow(3).sum(), [*host_leaves, *kernel.parameters()])
    hand = torch.autograd.grad(bare.pow(3).sum(), host_leaves)
    assert all(torch.equal(a, b) for a, b in zip(ours, hand, strict=False))
    # The kernel's gradient is that of the loss at the output, as if the kernel were added in full.
    bare = layer.host(x).detach()
    source = (x if site == "parallel" else bare).detach().tensor_split(3, -1)[1]
    target = bare.tensor_split(3, -1)[1]
    k = kernel(source)
    surrogate = (target + (k - k.detach())).pow(3).sum()
    hand = torch.autograd.grad(surrogate, list(kernel.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(ours[len(host_leaves) :], hand, strict=True))


def test_training_towards_a_lerp_also_imitates_the_host() -> None:
    """Without a loss at the output the kernel converges to what the host gives."""
    layer, x = wrapped("features")
    kernel = nn.Linear(4, 3).double()
    seed = to_training(graft(layer, 0, kernel, kernel_id="k", site="parallel", blend="lerp"))
    layer.host.weight.data[:3, 4:] = 0  # the chunk of the host that a kernel on chunk 0 of x can give
    optimizer = torch.optim.SGD(kernel.parameters(), lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        (0.0 * layer(x)).sum().backward()
        optimizer.step()
    assert torch.allclose(kernel(x[:, :4]), layer.host(x)[:, :3], atol=0.05)
    assert not pop_faults(layer)
    with seed_off(seed):
        assert torch.equal(layer(x), layer.host(x))


def test_autocast_casts_what_a_kernel_gives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    x = torch.randn(4, 8)
    wrap(model, x)
    layer = seeded_layers(model)["0"]
    grow(layer, 0, 1.0, kernel=nn.Softplus())  # gives float32 under autocast
    grow(layer, 1, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        bare = layer.host(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y[:, 4:], bare[:, 4:])
        assert not torch.equal(y[:, :2], bare[:, :2])
    y.float().square().mean().backward()
    assert not pop_faults(model)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_other_results_of_a_layer_pass_through() -> None:
    model = nn.Sequential(nn.LSTM(4, 6, batch_first=True))
    x = torch.randn(2, 3, 4)
    wrap(model, x, include=("0",))
    y, (hidden, _) = model(x)
    grow(seeded_layers(model)["0"], 0, 1.0)
    grown, (same, _) = model(x)
    assert torch.equal(hidden, same)
    assert not torch.equal(y[..., :2], grown[..., :2])
    assert torch.equal(y[..., 2:], grown[..., 2:])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own, at a graph break
def test_compiled_networks_keep_their_running_seeds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    x = torch.randn(4, 8)
    wrap(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    bare = compiled(x)
    seed = grow(seeded_layers(model)["0"], 1, 0.0)
    assert torch.equal(compiled(x), bare)
    for alpha in (0.25, 0.5, 1.0):
        seed.set_alpha(alpha)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
        assert not torch.allclose(compiled(x), bare, atol=1e-3)


def test_channels_last_stays_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    wrap(model, x)
    for index in range(4):
        grow(seeded_layers(model)["0"], index)
    assert model(x).is_contiguous(memory_format=torch.channels_last)


def test_an_in_place_operation_may_follow_a_seeded_layer() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
    x = torch.randn(4, 8)
    wrap(model, x)
    layer = seeded_layers(model)["0"]
    to_training(graft(layer, 0, nn.Linear(2, 2), kernel_id="k", site="series", blend="lerp"))
    grow(layer, 1)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
