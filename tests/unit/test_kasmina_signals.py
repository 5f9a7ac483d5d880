"""Health in the middle of an epoch is what a drain would say then."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import nn

from esper.kasmina import drain, observe, signals_so_far, wrap
from esper.messages import SeedState


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 10, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 6))
    wrap(model, torch.zeros(2, 4, 6, 6), seeds=3)
    return model


def test_signals_so_far_are_those_of_a_drain_and_reset_nothing(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].host.weight[0] = 0.0  # a feature that never varies
        model[0].host.weight[1], model[0].host.bias[1] = 1e-3, -9.0  # one that is never above zero
    assert signals_so_far(model) == {}
    observe(model, True)
    for _ in range(2):
        model(torch.randn(8, 4, 6, 6)).square().sum().backward()
        found = signals_so_far(model)
    model(torch.randn(8, 4, 6, 6))  # without a gradient yet
    found = signals_so_far(model)
    metrics = drain(model)
    assert list(found) == list(metrics) == ["0", "3"]
    for name, layer in found.items():
        assert layer.sampled == 3
        assert layer.states == (SeedState.DORMANT,) * 3
        expected = np.array([astuple(signal) for signal in metrics[name].signals])
        np.testing.assert_allclose(layer.values, expected, rtol=1e-5, atol=1e-6)
    assert signals_so_far(model) == {}


def test_what_is_not_finite_or_never_varies_is_not_healthy(model: nn.Sequential) -> None:
    observe(model, True)
    model(torch.full((2, 4, 6, 6), float("nan")))
    assert [list(layer.values[:, -1]) for layer in signals_so_far(model).values()] == [[0.0] * 3] * 2
    drain(model)
    with torch.no_grad():
        model[3].host.weight.zero_()
    model(torch.randn(4, 4, 6, 6))
    assert list(signals_so_far(model)["3"].values[:, -1]) == [0.0] * 3
