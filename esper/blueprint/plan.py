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


def plan(blueprint: Blueprint, slot: Slot) -> Plan:
    """``blueprint`` for ``slot``; raises ``BlueprintError`` naming the node where it cannot be."""
    if not any(slot.accepts(layout) for layout in blueprint.layouts):
        written = ", ".join(blueprint.layouts)
        raise BlueprintError(f"{blueprint.where()}: written for {written}, not for {slot}")
    sizes = _sizes(blueprint, slot)
    shapes = {INPUT: Shape(slot.in_features)}
    nodes = []
    for node in blueprint.nodes:
        planned = _plan_node(blueprint, node, slot, sizes, shapes)
        shapes[node.id] = planned.shape
        nodes.append(planned)
    made, wanted = shapes[blueprint.output], Shape(slot.out_features, slot.stride)
    if made != wanted:
        where = blueprint.where(blueprint.output)
        raise BlueprintError(f"{where}: the output has {_words(made)}; {slot} needs {_words(wanted)}")
    return Plan(blueprint, slot, sizes, tuple(nodes))


def fits(blueprint: Blueprint, slot: Slot) -> bool:
    """Whether ``blueprint`` can be built for ``slot``."""
    try:
        plan(blueprint, slot)
    except BlueprintError:
        return False
    return True


def _sizes(blueprint: Blueprint, slot: Slot) -> dict[str, int]:
    """Every size as a number; the slot's own (``in``, ``out``, ``stride``) among them."""
    known = {"in": slot.in_features, "out": slot.out_features, "stride": slot.stride}
    for name in blueprint.size_order:
        text = blueprint.sizes[name]
        try:
            known[name] = _SIZE.check(_value(text, known), text)
        except ExpressionError as error:
            raise BlueprintError(
                f"{blueprint.where()}: size {name!r} for {slot}: {error}", hint=error.hint
            ) from None
    return known


def _value(text: object, known: Mapping[str, int]) -> Fraction:
    return expression.evaluate(expression.parse(str(text)), known)


def _plan_node(
    blueprint: Blueprint, node: Node, slot: Slot, sizes: Mapping[str, int], shapes: Mapping[str, Shape]
) -> PlannedNode:
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
            where = blueprint.where(node.id)
            raise BlueprintError(
                f"{where}: parameter {name!r} for {slot}: {error}", hint=error.hint
            ) from None
    given = tuple(shapes[source] for source in node.inputs)
    try:
        shape = op.shape(values, given)
    except ShapeError as error:
        raise BlueprintError(f"{blueprint.where(node.id)}: {node.op} for {slot}: {error}") from None
    if shape.stride > 1 and slot.layout != "channels":
        raise BlueprintError(f"{blueprint.where(node.id)}: {node.op} for {slot}: only channels have a stride")
    return PlannedNode(node.id, node.op, node.inputs, values, given, shape)


def _words(shape: Shape) -> str:
    space = "pooled to one position" if shape.pooled else f"space over {shape.stride}"
    return f"{shape.features} features, {space}"
