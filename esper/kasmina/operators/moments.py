"""Carry an optimizer's state over a growth, and back.

Known state tensors of a parameter's shape are padded: averages of gradients with zero, averages of squares
and step sizes with the mean of the old entries, so that the first steps of new entries are as large as those
of old ones (a second moment of zero would make them huge). Scalars such as ``step`` stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import GraftError
from esper.kasmina.operators.operator import Growth

ZERO = frozenset({"momentum_buffer", "exp_avg", "grad_avg", "prev"})
"""States that are averages of gradients, or the last gradient: new entries have none yet."""

MEAN = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "step_size"})
"""States that are magnitudes: new entries take the mean of the old ones."""

COPY = frozenset({"ax"})
"""States that are averages of the parameter itself: new entries start as the parameter's."""


def carry(optimizer: torch.optim.Optimizer, growth: Growth, *, group: int | Mapping[str, Any] = 0) -> None:
    """Fit ``optimizer`` to the model after ``growth``.

    Args:
        optimizer: it holds the model's parameters; those that it does not hold are passed over.
        growth: made just before, with no step since.
        group: where ``growth.added`` goes: the index of a parameter group, or options of a new one.

    Raises:
        GraftError: a state is of no known kind or of another shape, there is no such group, or this growth
            was carried before; nothing is changed then.
    """
    if growth.held:
        raise GraftError(f"{growth.operator} of {growth.target} was carried before", hint="carry it once")
    if isinstance(group, int) and not 0 <= group < len(optimizer.param_groups):
        raise GraftError(f"the optimizer has no parameter group {group}", hint="groups count from 0")
    padded = [
        (optimizer.state[r.tensor], name, r.grow(value, _fill(name, value, r.tensor)))
        for r in growth.resized
        if r.tensor in optimizer.state
        for name, value in _shaped(optimizer.state[r.tensor], r.tensor, r.old_shape)
    ]
    for state, name, value in padded:
        state[name] = value
    held: list[Any] = [_take_out(optimizer, parameter) for parameter in growth.removed]
    created = None
    if isinstance(group, int):
        optimizer.param_groups[group]["params"].extend(growth.added)
    elif growth.added:
        optimizer.add_param_group({**group, "params": list(growth.added)})
        created = optimizer.param_groups[-1]
    if isinstance(optimizer, torch.optim.Adagrad):
        _begin_adagrad(optimizer, growth.added)
    growth.held = [created, held]


def uncarry(optimizer: torch.optim.Optimizer, growth: Growth) -> None:
    """Fit ``optimizer`` to the model without ``growth``; right after ``carry`` it is its exact inverse.

    Raises:
        GraftError: the growth was not carried, or a state has another shape than the grown parameter.
    """
    if not growth.held:
        raise GraftError(f"{growth.operator} of {growth.target} was not carried", hint="carry it first")
    created, held = growth.held
    shrunk = [
        (optimizer.state[r.tensor], name, r.shrink(value))
        for r in growth.resized
        if r.tensor in optimizer.state
        for name, value in _shaped(optimizer.state[r.tensor], r.tensor, r.new_shape)
    ]
    for state, name, value in shrunk:
        state[name] = value
    for parameter in growth.added:
        _take_out(optimizer, parameter)
    if created is not None:
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if g is not created]
    for place in reversed(held):
        if place is not None:
            group, position, parameter, state = place
            group["params"].insert(position, parameter)
            if state is not None:
                optimizer.state[parameter] = state
    growth.held = []


def begin_anew(optimizer: torch.optim.Optimizer) -> None:
    """Forget what ``optimizer`` knows of every parameter, as if it had just been made."""
    optimizer.state.clear()
    if isinstance(optimizer, torch.optim.Adagrad):
        every = [p for group in optimizer.param_groups for p in group["params"]]
        _begin_adagrad(optimizer, every)


def _shaped(state: Mapping[str, Any], parameter: Tensor, shape: tuple[int, ...]) -> list[tuple[str, Tensor]]:
    """The state tensors that have the parameter's shape.

    Raises:
        GraftError: one is of another shape, or of no known kind.
    """
    shaped = []
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or value.numel() == 1 < parameter.numel():
            continue
        if name not in ZERO | MEAN | COPY or tuple(value.shape) != shape:
            raise GraftError(
                f"optimizer state {name!r} of shape {tuple(value.shape)} cannot follow a parameter of shape "
                f"{shape}",
                hint="use SGD, Adam, AdamW, RMSprop or Adagrad",
            )
        shaped.append((name, value))
    return shaped


def _fill(name: str, value: Tensor, parameter: Tensor) -> float | Tensor:
    if name in COPY:
        return parameter.detach()
    return value.mean() if name in MEAN else 0.0


def _begin_adagrad(optimizer: torch.optim.Adagrad, parameters: Iterable[Tensor]) -> None:
    """Give ``parameters`` their state: alone among torch's optimizers, Adagrad makes it at construction."""
    added = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in added:
                start = group["initial_accumulator_value"]
                state = {"step": torch.tensor(0.0), "sum": torch.full_like(parameter, start)}
                optimizer.state[parameter] = state


def _take_out(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Any:
    """Remove ``parameter``; where it was, with its state, or None when it was not there."""
    for group in optimizer.param_groups:
        for position, other in enumerate(group["params"]):
            if other is parameter:
                del group["params"][position]
                return group, position, parameter, optimizer.state.pop(parameter, None)
    return None
