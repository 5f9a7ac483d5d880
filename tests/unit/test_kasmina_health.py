from __future__ import annotations

import math

import pytest
import torch
from kasmina_support import grow
from torch import nn

from esper.kasmina import SeededLayer, drain, observe, seeded_layers, wrap
from esper.messages import SeedState, Slot


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 10, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 6))
    wrap(model, torch.zeros(2, 4, 6, 6), seeds=3)
    return model


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def first(model: nn.Module) -> SeededLayer:
    return seeded_layers(model)["0"]


@LAYOUTS
def test_signals_are_the_statistics_of_each_chunk(model: nn.Sequential, layout: torch.memory_format) -> None:
    batches = [torch.randn(8, 4, 6, 6).to(memory_format=layout) for _ in range(3)]
    observe(model, True)
    outputs, gradients = [], []
    for x in batches:
        y = model[0](x)
        y.retain_grad()
        model[1:](y).square().sum().backward()
        outputs.append(y.detach())
        gradients.append(y.grad)
    metrics = drain(model)["0"]
    for signal, *chunks in zip(
        metrics.signals,
        *(y.tensor_split(3, 1) for y in outputs),
        *(g.tensor_split(3, 1) for g in gradients),
        strict=True,
    ):
        values, slopes = chunks[:3], chunks[3:]
        variances = [y.var((0, 2, 3), correction=0).mean() for y in values]
        assert signal.activation_mean == pytest.approx(
            float(torch.stack([y.mean() for y in values]).mean()), abs=1e-6
        )
        assert signal.activation_variance == pytest.approx(float(torch.stack(variances).mean()), rel=1e-5)
        norms = torch.stack([g.square().sum() for g in slopes])
        assert signal.gradient_norm == pytest.approx(float(norms.mean().sqrt()), rel=1e-5)
        assert signal.latency_ms == 0
    whole = torch.stack([g.square().sum() for g in gradients]).mean().sqrt()
    assert metrics.gradient_norm == pytest.approx(float(whole), rel=1e-5)


@LAYOUTS
def test_dead_and_still_features_lower_the_health(model: nn.Sequential, layout: torch.memory_format) -> None:
    layer = first(model)
    with torch.no_grad():
        layer.host.weight[0] = 0.0  # never varies
        layer.host.weight[1], layer.host.bias[1] = 1e-3, -9.0  # never above zero
        layer.host.weight[4:7] *= 1e-3  # hardly varies
        layer.host.bias[4:7] = 1.0
    observe(model, True)
    model(torch.randn(16, 4, 6, 6).to(memory_format=layout))
    metrics = drain(model)["0"]
    assert [signal.dead_share for signal in metrics.signals] == [0.5, 0.0, 0.0]
    assert metrics.seed_health[2] == 1.0
    assert 0.0 < metrics.seed_health[0] <= 0.5
    assert metrics.seed_health[1] < 0.01
    assert metrics.seed_health == tuple(signal.health for signal in metrics.signals)


def test_what_is_not_finite_is_not_healthy(model: nn.Sequential) -> None:
    observe(model, True)
    model(torch.full((2, 4, 6, 6), math.nan))
    assert drain(model)["0"].seed_health == (0.0, 0.0, 0.0)


def test_draining_starts_afresh_and_nothing_is_gathered_unobserved(model: nn.Sequential) -> None:
    x = torch.randn(4, 4, 6, 6)
    observe(model, True)
    model(x).sum().backward()
    observed = drain(model)
    observe(model, False)
    model(x).sum().backward()
    assert drain(model)["0"].signals == ()
    assert drain(model)["0"].seed_health == ()
    observe(model, True)
    model(x).sum().backward()
    assert drain(model)["3"].signals == observed["3"].signals


def test_metrics_tell_slots_states_and_size(model: nn.Sequential) -> None:
    grow(first(model), 1)
    metrics = drain(model)
    assert metrics["0"].kind == "conv2d"
    assert metrics["0"].seed_states == (SeedState.DORMANT, SeedState.BLENDING, SeedState.DORMANT)
    assert metrics["0"].parallel_slots == (Slot("channels", 2, 4, 2), *[Slot("channels", 1, 3, 2)] * 2)
    assert metrics["0"].series_slots == tuple(Slot("channels", n, n) for n in (4, 3, 3))
    assert metrics["0"].parameters == sum(p.numel() for p in first(model).parameters())
    assert metrics["3"].parallel_slots[0] == Slot("features", 30, 2)


def test_the_latency_of_a_running_kernel_is_sampled(model: nn.Sequential) -> None:
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(200):
                x = x + 1
            return x

    grow(first(model), 1, kernel=Slow(), site="series")
    observe(model, True)
    model(torch.randn(4, 4, 6, 6))
    latencies = [signal.latency_ms for signal in drain(model)["0"].signals]
    assert latencies[1] > 0.1
    assert latencies[0] == latencies[2] == 0


def test_observing_a_grown_layer_changes_no_bit(model: nn.Sequential) -> None:
    grow(first(model), 1)
    x = torch.randn(4, 4, 6, 6)

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        return [y, *(p.grad.clone() for p in model.parameters())]

    plain = run()
    observe(model, True)
    assert all(torch.equal(a, b) for a, b in zip(run(), plain, strict=True))
