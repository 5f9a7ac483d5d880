"""The widths of a network: which can grow, what grows with them, and why others cannot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from esper.kasmina.operators import (
    rules,
    rules_norm,
    rules_parts,
    rules_pointwise,
    rules_shape,
    rules_spatial,
)
from esper.kasmina.operators.calls import Place, Trace
from esper.kasmina.operators.labels import (
    Variable,
    expand,
    free,
    new_size,
    pin,
    pin_variable,
    variables,
)
from esper.kasmina.operators.tracing import trace

# Imported so that they register.
_RULES = (rules, rules_norm, rules_parts, rules_pointwise, rules_shape, rules_spatial)

Role = Literal["writer", "reader", "norm", "entry"]
"""``writer``: its rows make new units. ``reader``: it sums over them. ``norm``: weights and statistics of a
norm. ``entry``: a number for each unit, such as a bias or a position."""


@dataclass(frozen=True, slots=True)
class Width:
    """Something that is so many units wide, with all tensors that are tied to it.

    Attributes:
        name: the module that first writes it; after a colon, a factor of what that module writes.
        size: present number of units.
        granularity: it grows by multiples of this many units.
        growable: whether it can grow; if not, ``reason`` says why.
        members: (tensor, dimension, role) of each dimension that grows with it.
        parameters_per_unit: parameters that the next ``granularity`` units add.
    """

    name: str
    size: int
    granularity: int
    growable: bool
    reason: str
    members: tuple[tuple[str, int, Role], ...]
    parameters_per_unit: int


@dataclass(frozen=True)
class Named:
    """A width with the variable behind it; ``width.granularity`` units are one of the variable."""

    width: Width
    variable: Variable


Demands = dict[Place, Literal["mean", "zero"]]


def find_widths(model: nn.Module, example: Any) -> dict[str, Width]:
    """The widths of ``model`` by name, in the order in which ``example`` meets them.

    ``example`` is a tensor, a tuple of positional or a dict of keyword arguments of the model. The model and
    the random state are left as they were.

    Raises:
        GraftError: the example does not run through the network.
    """
    return {name: named.width for name, named in name_widths(trace(model, example)).items()}


def demands_of(found: Trace) -> Demands:
    """What the norms demand of the writers of growable widths; norms whose demands clash pin theirs."""
    demands: Demands = {}
    for norm in found.norms:
        for place in norm.writers:
            read = [r for r in found.readings.get(place, []) if not r.silent]
            whole = expand(found.width_of(place)) == expand(norm.dim)
            if demands.setdefault(place, norm.demand) != norm.demand:
                pin(norm.dim, f"{norm.name} and another norm ask for different rows of {place[0]}")
            elif norm.demand == "mean" and (read or not whole):
                pin(norm.dim, f"{norm.name} takes statistics over it, and {place[0]} is shared")
    return demands


def name_widths(found: Trace) -> dict[str, Named]:
    """Name every width of a trace."""
    demands_of(found)
    places: dict[Variable, list[Place]] = {}
    for name, axes in found.places.items():
        for dim, axis in enumerate(axes):
            for variable in variables(axis.dim):
                places.setdefault(variable, []).append((name, dim))
    for variable, members in places.items():
        if not any(id(found.tensors[name]) in found.used for name, _ in members):
            pin_variable(variable, "the example does not pass through it")
    written = list(found.writes)
    order = {place: i for i, place in enumerate(written)}
    last = len(order)
    ranked = sorted(places, key=lambda v: min(order.get(p, last) for p in places[v]))
    named: dict[str, Named] = {}
    for variable in ranked:
        members = sorted(places[variable], key=lambda p: order.get(p, last))
        if variable.reason is not None and not _whole(found, variable, members[0], order):
            continue  # sizes of kernels and of data, and fixed parts of what can grow
        name, unit = _name(found, variable, members[0])
        if name in named:
            leaf = f"{members[0][0]}"
            name = leaf if leaf not in named else f"{leaf}:{len(named)}"
        named[name] = Named(_width(found, name, unit, variable, members), variable)
    return named


def _whole(found: Trace, variable: Variable, place: Place, order: dict[Place, int]) -> bool:
    """Whether a pinned variable stands for a dimension that is written and cannot grow at all."""
    dim = expand(found.width_of(place))
    return place in order and not free(dim) and dim[0][0] is variable


def _name(found: Trace, variable: Variable, place: Place) -> tuple[str, int]:
    """The name of a width and its units a step."""
    tensor, dim = place
    module, _, leaf = tensor.rpartition(".")
    usual = module and leaf in ("weight", "bias", "in_proj_weight", "in_proj_bias")
    base = module if usual else tensor
    segments = expand(found.width_of((tensor, dim)))
    rest = [v for v in segments[0] if v is not variable]
    if len(segments) == 1 and segments[0][0] is variable and not any(v.reason is None for v in rest):
        return base, math.prod(v.size for v in rest)
    flat = [v for segment in segments for v in segment]
    return f"{base}:{variable.hint or flat.index(variable)}", 1


def _width(found: Trace, name: str, unit: int, variable: Variable, members: list[Place]) -> Width:
    tensors = {tensor for tensor, _ in members}
    added = sum(
        math.prod(new_size(axis.dim, lambda v: v.size + (v is variable)) for axis in found.places[tensor])
        - found.tensors[tensor].numel()
        for tensor in tensors
        if isinstance(found.tensors[tensor], nn.Parameter)
    )
    roles = tuple((tensor, dim, role_of(found, (tensor, dim), variable)) for tensor, dim in members)
    reason = variable.reason or ""
    if variable.data and (fixed := variables(found.width_of(members[0]))):
        reason = next((v.reason for v in fixed if v.reason and not v.data), reason)
    size = variable.size * unit
    return Width(name, size, unit, not reason, reason, roles, added)


def role_of(found: Trace, place: Place, variable: Variable) -> Role:
    """What a dimension of a tensor is to a width."""
    if any(variable in free(r.dim) for r in found.readings.get(place, [])):
        return "reader"
    if place in found.fills:
        return "norm"
    return "writer" if place in found.writes else "entry"
