"""Half precision: a scaled loss, overflows that are nobody's fault, and faults that still are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kasmina_support import grow, kernel_for, to_training
from torch import Tensor, nn

from esper.errors import Instability
from esper.kasmina import drain, graft, observe, pop_faults, seeded_layers, set_loss_scale, wrap
from esper.tolaria.precision import LEAST_SCALE, Precision

CPU = torch.device("cpu")


class InfiniteGradient(nn.Module):
    """Adds nothing to a value, and an infinity to the gradient that comes back."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        if y.requires_grad:
            y.register_hook(lambda g: torch.full_like(g, torch.inf))
        return y


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    wrap(model, torch.zeros(2, 8), include=["2"])
    return model


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def backward(model: nn.Module, scale: float, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    set_loss_scale(model, scale)
    (model(x).square().mean() * scale).backward()
    return gradients(model)


def test_while_the_loss_is_scaled_an_overflow_in_a_kernel_is_no_fault(model: nn.Module) -> None:
    layer = seeded_layers(model)["2"]
    grow(layer, 1, kernel=nn.Sequential(InfiniteGradient(), kernel_for(layer.slot("parallel", 1))))
    x = torch.randn(5, 8)
    found = backward(model, 2.0, x)
    assert pop_faults(model) == []
    assert not all(bool(g.isfinite().all()) for g in found)  # whoever scaled the loss can see it
    assert all(bool(g.isfinite().all()) for g in backward(model, 1.0, x))
    (fault,) = pop_faults(model)
    assert (fault.layer, fault.seed_idx, fault.kind) == ("2", 1, "non-finite")


def test_a_value_that_is_not_finite_is_a_fault_at_any_scale(model: nn.Module) -> None:
    layer = seeded_layers(model)["2"]
    seed = grow(layer, 1)
    with torch.no_grad():
        seed.kernel_parameters[0].fill_(torch.inf)
    backward(model, 1024.0, torch.randn(5, 8))
    assert [fault.seed_idx for fault in pop_faults(model)] == [1]


@pytest.mark.parametrize("blend", ["residual", "lerp"])
def test_every_gradient_is_scaled_alike_and_health_is_not(model: nn.Module, blend: Any) -> None:
    layer = seeded_layers(model)["2"]
    kernel = kernel_for(layer.slot("parallel", 1))
    to_training(graft(layer, 1, kernel, kernel_id="k", site="parallel", blend=blend))
    x = torch.randn(5, 8)
    observe(model, True)
    plain = [g.clone() for g in backward(model, 1.0, x)]
    norms = [s.gradient_norm for s in drain(model)["2"].signals]
    scaled = backward(model, 1024.0, x)
    assert len(plain) == 8
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one * 1024, other)
    assert [s.gradient_norm for s in drain(model)["2"].signals] == pytest.approx(norms)


@pytest.mark.parametrize(("half", "dtype"), [(None, "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_it_computes_in_the_type_that_was_asked_for(model: nn.Module, half: Any, dtype: str) -> None:
    with Precision(half, model, CPU).forward():
        assert model(torch.randn(3, 8)).dtype == getattr(torch, dtype)


def scaled_step(precision: Precision, model: nn.Module, by: float = 1.0) -> bool:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    with precision.forward():
        loss = model(torch.ones(3, 8)).float().square().mean()
    precision.backward(loss * by)
    precision.unscale(optimizer)
    return precision.step(optimizer)


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(model: nn.Module) -> None:
    precision = Precision("fp16", model, CPU)
    state = precision.state()
    assert state is not None
    precision.restore({**state, "scale": 2.0**40})
    before = [p.detach().clone() for p in model.parameters()]
    assert scaled_step(precision, model) is False
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    halved = precision.state()
    assert halved is not None
    assert halved["scale"] == 2.0**39
    precision.restore({**state, "scale": 256.0})
    assert scaled_step(precision, model) is True
    assert not all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_gradients_that_no_scale_helps_end_training(model: nn.Module) -> None:
    precision = Precision("fp16", model, CPU)
    state = precision.state()
    assert state is not None
    precision.restore({**state, "scale": LEAST_SCALE / 2})
    with pytest.raises(Instability, match="not finite in float16"):
        scaled_step(precision, model, by=torch.inf)
