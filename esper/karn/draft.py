"""A blueprint taken apart for one slot, so that edits can be made; and put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from esper.blueprint import INPUT, LAYOUTS, OPS, Blueprint, Node, Shape, expression, fits, plan
from esper.blueprint.checks import names_in
from esper.blueprint.expression import Term
from esper.blueprint.migration import VERSION
from esper.blueprint.ops import Size
from esper.messages import Layout, Slot

Parameters = dict[str, int | float | bool | str]
CONVOLUTIONS = frozenset({"conv1d", "conv2d"})
MAPS = frozenset({"linear", *CONVOLUTIONS})
"""Ops with a weight matrix, which make as many features as they are told to."""
ACTIVATIONS = frozenset({"relu", "gelu", "silu", "tanh", "sigmoid", "sin"})
NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm"})
INVENTED = "invented"
"""The tag by which a blueprint that was made here is told from one that was written."""


@dataclass(slots=True)
class DraftNode:
    """As ``esper.blueprint.Node``, open to change."""

    op: str
    inputs: list[str]
    params: Parameters = field(default_factory=dict)


@dataclass(slots=True)
class Draft:
    """The graph of ``origin``; ``shapes`` are those of its nodes for ``slot``, before any change."""

    origin: Blueprint
    slot: Slot
    nodes: dict[str, DraftNode]
    sizes: dict[str, int | str]
    output: str
    shapes: Mapping[str, Shape]

    @classmethod
    def of(cls, blueprint: Blueprint, slot: Slot) -> Draft:
        """Raises ``BlueprintError`` where ``blueprint`` does not fit ``slot``."""
        shapes = {node.id: node.shape for node in plan(blueprint, slot).nodes}
        nodes = {
            node.id: DraftNode(node.op, list(node.inputs), dict(node.params)) for node in blueprint.nodes
        }
        shapes[INPUT] = Shape(slot.in_features)
        return cls(blueprint, slot, nodes, dict(blueprint.sizes), blueprint.output, shapes)

    def edges(self) -> Iterator[tuple[str, int, str]]:
        """Every (user, place among its inputs, source)."""
        for name, node in self.nodes.items():
            for index, source in enumerate(node.inputs):
                yield name, index, source

    def users(self, name: str) -> list[tuple[str, int]]:
        """The (user, place among its inputs) of ``name``."""
        return [(user, index) for user, index, source in self.edges() if source == name]

    def below(self, name: str) -> set[str]:
        """``name`` and all that depends on it: what may not become an input of it."""
        found = {name}
        for other in self.order():
            if found.intersection(self.nodes[other].inputs):
                found.add(other)
        return found

    def add(self, op: str, *inputs: str, **params: int | float | bool | str) -> str:
        """A new node, by its name, which no blueprint can have."""
        name = f"NEW{len(self.nodes)}"
        self.nodes[name] = DraftNode(op, list(inputs), params)
        return name

    def put_after(self, old: str, new: str) -> None:
        """What used ``old`` uses ``new`` from now on, nodes that were added apart."""
        for user, index in self.users(old):
            if user in self.shapes:
                self.nodes[user].inputs[index] = new
        if self.output == old:
            self.output = new

    def width(self, name: str) -> str:
        """The features of ``name`` as an expression over the slot and the sizes."""
        if name == INPUT:
            return "in"
        node = self.nodes[name]
        if node.op in MAPS:
            return str(node.params["out"])
        if node.op == "slice":
            return str(node.params["size"])
        if node.op == "concat":
            return "+".join(f"({self.width(source)})" for source in node.inputs)
        return self.width(node.inputs[0])

    def order(self) -> list[str]:
        """The nodes on the way to the output, each after those that it uses, in the order of a walk."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            if name != INPUT and name not in order:
                for source in self.nodes[name].inputs:
                    visit(source)
                order[name] = None

        visit(self.output)
        return list(order)

    def finished(self, *, name: str, title: str, paper: str) -> Blueprint | None:
        """The blueprint of what leads to the output, its nodes renamed; None where it is none for the slot.

        It is written for those layouts of its origin, and that of the slot, where it can be built.
        """
        order = self.order()
        names = {INPUT: INPUT, **{old: f"{self.nodes[old].op}_{place}" for place, old in enumerate(order, 1)}}
        ops = [OPS[self.nodes[old].op] for old in order]
        wanted = (*self.origin.layouts, self.slot.layout)
        layouts = [one for one in LAYOUTS if one in wanted and all(one in op.layouts for op in ops)]
        try:
            nodes = tuple(self._node(old, names) for old in order)
            blueprint = Blueprint(
                version=VERSION,
                name=name,
                title=title[:240],
                when="Invented: what it is good for, trials say.",
                paper=paper[:240],
                tags=tags_of(nodes),
                layouts=tuple(layouts),
                sizes=self._used_sizes(nodes),
                nodes=nodes,
                output=names[self.output],
            )
        except ValidationError:
            return None
        fitting = tuple(one for one in layouts if fits(blueprint, _slot_of(one, self.slot)))
        if not fits(blueprint, self.slot):
            return None
        return blueprint.model_copy(update={"layouts": fitting})

    def _node(self, old: str, names: Mapping[str, str]) -> Node:
        node = self.nodes[old]
        inputs = tuple(names[source] for source in node.inputs)
        return Node(id=names[old], op=node.op, inputs=inputs, params=node.params)

    def _used_sizes(self, nodes: tuple[Node, ...]) -> dict[str, int | str]:
        used: dict[str, int | str] = {}
        waiting = [
            name
            for node in nodes
            for parameter, value in node.params.items()
            if isinstance(OPS[node.op].parameters[parameter], Size)
            for name in names_in(value)
        ]
        while waiting:
            name = waiting.pop()
            if name in self.sizes and name not in used:
                used[name] = self.sizes[name]
                waiting.extend(names_in(used[name]))
        return used


def tags_of(nodes: Iterable[Node]) -> tuple[str, ...]:
    """What a stranger would call a graph of ``nodes``, from its ops; ``INVENTED`` among them."""
    ops = {node.op for node in nodes}
    words = {
        "linear": MAPS & ops == {"linear"},
        "conv": bool(CONVOLUTIONS & ops),
        "norm": bool(NORMS & ops),
        "gated": "mul" in ops,
        "multi-branch": bool({"add", "concat"} & ops),
        "attention": bool({"attention", "attention_pool"} & ops),
        "spectral": bool({"sin", "fourier"} & ops),
    }
    return (INVENTED, *(word for word, holds in words.items() if holds))


def renamed(size: int | str, names: Mapping[str, str]) -> str:
    """An expression with ``names`` in the place of its own."""
    return expression.render(_renamed(expression.parse(str(size)), names))


def _renamed(term: Term, names: Mapping[str, str]) -> Term:
    head = names.get(term.head, term.head) if isinstance(term.head, str) and not term.args else term.head
    return Term(head, tuple(_renamed(one, names) for one in term.args))


def _slot_of(layout: Layout, slot: Slot) -> Slot:
    stride = slot.stride if layout == "channels" else 1
    return Slot(layout, slot.in_features, slot.out_features, stride)
