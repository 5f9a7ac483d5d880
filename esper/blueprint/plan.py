"""A blueprint worked out for one slot: every size a number, every edge a shape. Arithmetic only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from esper.blueprint import expression
from esper.blueprint.checks import INPUT
from esper.blueprint.expression import ExpressionError
from esper.blueprint.model import Blueprint, Node
from esper.blueprint.ops import MAX_FEATURES, OPS, Shape, ShapeError, Size, Value
from esper.errors import BlueprintError
from esper.messages import Slot

_SIZE = Size(1, MAX_FEATURES)


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """A node with its parameters as numbers, the shapes that enter it and the one that leaves it."""

    id: str
    op: str
    inputs: tuple[str, ...]
    parameters: Mapping[str, Value]
    input_shapes: tuple[Shape, ...]
    shape: Shape


@dataclass(frozen=True, slots=True)
class Plan:
    """The nodes in topological order, for ``slot``; ``sizes`` are the blueprint's own, worked out."""

    blueprint: Blueprint
    slot: Slot
    sizes: Mapping[str, int]
    nodes: tuple[PlannedNode, ...]


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a blueprint cannot be built for a slot: the node that is to blame, if it is one."""

    message: str
    node: str | None
    hint: str | None


class _MisfitError(Exception):
    """Why there is no plan."""

    def __init__(self, message: str, node: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.misfit = Misfit(message, node, hint)


def plan(blueprint: Blueprint, slot: Slot) -> Plan:
    """``blueprint`` for ``slot``; raises ``BlueprintError`` naming the node where it cannot be."""
    try:
        return _plan(blueprint, slot)
    except _MisfitError as error:
        found = error.misfit
        raise BlueprintError(f"{blueprint.where(found.node)}: {found.message}", hint=found.hint) from None


def misfit(blueprint: Blueprint, slot: Slot) -> Misfit | None:
    """Why ``blueprint`` cannot be built for ``slot``; None where it can."""
    try:
        _plan(blueprint, slot)
    except _MisfitError as error:
        return error.misfit
    return None


def fits(blueprint: Blueprint, slot: Slot) -> bool:
    """Whether ``blueprint`` can be built for ``slot``."""
    return misfit(blueprint, slot) is None


def _plan(blueprint: Blueprint, slot: Slot) -> Plan:
    if not any(slot.accepts(layout) for layout in blueprint.layouts):
        written = ", ".join(blueprint.layouts)
        raise _MisfitError(f"written for {written}, not for {slot}")
    sizes = _sizes(blueprint, slot)
    shapes = {INPUT: Shape(slot.in_features)}
    nodes = []
    for node in blueprint.nodes:
        planned = _plan_node(node, slot, sizes, shapes)
        shapes[node.id] = planned.shape
        nodes.append(planned)
    made, wanted = shapes[blueprint.output], Shape(slot.out_features, slot.stride)
    if made != wanted:
        told = f"the output has {_words(made)}; {slot} needs {_words(wanted)}"
        raise _MisfitError(told, blueprint.output)
    return Plan(blueprint, slot, sizes, tuple(nodes))


def _sizes(blueprint: Blueprint, slot: Slot) -> dict[str, int]:
    """Every size as a number; the slot's own (``in``, ``out``, ``stride``) among them."""
    known = {"in": slot.in_features, "out": slot.out_features, "stride": slot.stride}
    for name in blueprint.size_order:
        text = blueprint.sizes[name]
        try:
            known[name] = _SIZE.check(_value(text, known), text)
        except ExpressionError as error:
            raise _MisfitError(f"size {name!r} for {slot}: {error}", hint=error.hint) from None
    return known


def _value(text: object, known: Mapping[str, int]) -> Fraction:
    return expression.evaluate(expression.parse(str(text)), known)


def _plan_node(node: Node, slot: Slot, sizes: Mapping[str, int], shapes: Mapping[str, Shape]) -> PlannedNode:
    op = OPS[node.op]
    values: dict[str, Value] = {}
    for name, parameter in op.parameters.items():
        written = node.params[name]
        if not isinstance(parameter, Size):
            values[name] = parameter.normal(written)
            continue
        try:
            values[name] = parameter.check(_value(written, sizes), written)
        except ExpressionError as error:
            raise _MisfitError(f"parameter {name!r} for {slot}: {error}", node.id, error.hint) from None
    given = tuple(shapes[source] for source in node.inputs)
    try:
        shape = op.shape(values, given)
    except ShapeError as error:
        raise _MisfitError(f"{node.op} for {slot}: {error}", node.id) from None
    if shape.stride > 1 and slot.layout != "channels":
        raise _MisfitError(f"{node.op} for {slot}: only channels have a stride", node.id)
    return PlannedNode(node.id, node.op, node.inputs, values, given, shape)


def _words(shape: Shape) -> str:
    space = "pooled to one position" if shape.pooled else f"space over {shape.stride}"
    return f"{shape.features} features, {space}"
