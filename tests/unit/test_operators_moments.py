"""An optimizer's state follows a growth and comes back from it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from esper.errors import GraftError
from esper.kasmina.operators.moments import begin_anew, carry, uncarry
from esper.kasmina.operators.operator import Growth, resize, shrink

torch.set_num_threads(1)

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adamax": (torch.optim.Adamax, {}),
    "rprop": (torch.optim.Rprop, {}),
    "asgd": (torch.optim.ASGD, {"t0": 0}),
}


def stepped(kind: str) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    make, options = OPTIMIZERS[kind]
    optimizer = make(model.parameters(), lr=0.01, **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def grow(model: nn.Linear) -> Growth:
    """Two more inputs, between the old ones and behind; an added parameter; the bias leaves."""
    wide = torch.zeros(2, 5)
    wide[:, [0, 2, 3]] = model.weight.detach()
    change = resize(model.weight, wide, (None, (0, 2, 3)))
    bias = model.bias
    model.bias = None
    model.extra = nn.Parameter(torch.ones(2))

    def undo() -> None:
        shrink(change)
        del model.extra
        model.bias = bias

    return Growth("test", "0", undo=undo, record={}, resized=[change], added=[model.extra], removed=[bias])


def state_of(optimizer: torch.optim.Optimizer) -> Any:
    return copy.deepcopy(optimizer.state_dict())


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("group", [0, {"lr": 0.5}], ids=["old-group", "new-group"])
def test_uncarry_is_the_inverse_and_training_goes_on(kind: str, group: Any) -> None:
    model, optimizer = stepped(kind)
    before, values = state_of(optimizer), copy.deepcopy(model.state_dict())
    gradient = model.weight.grad.clone()
    growth = grow(model)
    carry(optimizer, growth, group=group)
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(model.weight), id(model.extra)}
    growth.undo()
    uncarry(optimizer, growth)
    assert_same(state_of(optimizer), before)
    assert_same(dict(model.state_dict()), dict(values))
    assert torch.equal(model.weight.grad, gradient)

    growth = grow(model)
    carry(optimizer, growth, group=group)
    optimizer.zero_grad()
    (model(torch.randn(4, 5)) * model.extra).square().sum().backward()
    optimizer.step()
    growth.undo()
    uncarry(optimizer, growth)
    optimizer.zero_grad()
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()


def test_new_entries_of_averages_are_zero_and_of_magnitudes_the_mean() -> None:
    model, optimizer = stepped("adam")
    old = {name: value.clone() for name, value in optimizer.state[model.weight].items()}
    carry(optimizer, grow(model))
    state = optimizer.state[model.weight]
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert torch.equal(state[name][:, [0, 2, 3]], old[name])
    assert not state["exp_avg"][:, [1, 4]].any()
    assert torch.equal(state["exp_avg_sq"][:, [1, 4]], old["exp_avg_sq"].mean().expand(2, 2))
    assert torch.equal(state["step"], old["step"])


def test_a_state_of_another_shape_is_refused_and_nothing_changes() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    growth = grow(model)
    before = state_of(optimizer)
    with pytest.raises(GraftError, match=r"'row_var' of shape \(2, 1\)"):
        carry(optimizer, growth)
    assert_same(state_of(optimizer), before)


def test_carry_and_undo_count_once() -> None:
    model, optimizer = stepped("sgd")
    growth = grow(model)
    with pytest.raises(GraftError, match="was not carried"):
        uncarry(optimizer, growth)
    with pytest.raises(GraftError, match="no parameter group 3"):
        carry(optimizer, growth, group=3)
    carry(optimizer, growth)
    with pytest.raises(GraftError, match="was carried before"):
        carry(optimizer, growth)
    growth.undo()
    with pytest.raises(GraftError, match="was undone before"):
        growth.undo()


def test_parameters_that_the_optimizer_does_not_hold_are_passed_over() -> None:
    model, _ = stepped("sgd")
    other = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([other], lr=0.1)
    growth = grow(model)
    carry(optimizer, growth)
    assert optimizer.param_groups[0]["params"] == [other, model.extra]


def test_an_earlier_growth_cannot_be_undone_before_a_later_one() -> None:
    model, _ = stepped("sgd")
    first = grow(model)
    wide = torch.zeros(2, 6)
    wide[:, :5] = model.weight.detach()
    resize(model.weight, wide, (None, (0, 1, 2, 3, 4)))
    with pytest.raises(GraftError, match="undo the later growth first"):
        first.undo()


def test_a_loss_that_is_still_held_does_not_break_the_next_backward_pass() -> None:
    model = nn.Linear(3, 2)
    loss = model(torch.ones(1, 3)).sum()  # keeps the gradient accumulator of the old shape alive
    grow(model)
    model(torch.ones(1, 5)).sum().backward()
    assert model.weight.grad.shape == (2, 5)
    assert loss.requires_grad


def test_channels_last_stays_channels_last() -> None:
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    before = convolution.weight.detach().clone()
    wide = torch.zeros(6, 3, 3, 3)
    wide[:4] = before
    change = resize(convolution.weight, wide, ((0, 1, 2, 3), None, None, None))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    shrink(change)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(convolution.weight, before)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_that_begins_anew_steps_as_a_new_one(kind) -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind([weights], lr=0.1, **momentum)
    for gradient in (5.0, -3.0):
        weights.grad = torch.full((3,), gradient)
        optimizer.step()
    begin_anew(optimizer)
    other = torch.nn.Parameter(weights.detach().clone())
    fresh = kind([other], lr=0.1, **momentum)
    for parameter, one in ((weights, optimizer), (other, fresh)):
        parameter.grad = torch.ones(3)
        one.step()
    assert torch.equal(weights, other)
