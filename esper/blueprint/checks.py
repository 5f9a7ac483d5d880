"""What can be wrong with a blueprint beyond its single fields, one generator a kind.

The model stops at the first problem; ``esper.blueprint.lint`` reads on, over nodes that may be half right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from esper.blueprint import expression
from esper.blueprint.expression import ExpressionError, nearest
from esper.blueprint.graph import topological
from esper.blueprint.ops import OPS, Op, Size, canonical_size

INPUT = "x"
"""The name of the kernel's input among the nodes."""
SLOT_NAMES = ("in", "out", "stride")
"""What expressions may refer to besides the blueprint's own sizes."""

Parameters = dict[str, int | float | bool | str]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, where (a path of keys below what was checked, nodes by id), and what to do instead."""

    message: str
    at: tuple[str | int, ...] = ()
    hint: str | None = None


class NodeLike(Protocol):
    """What the checks read of a node."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def op(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def params(self) -> Parameters: ...  # noqa: D102


def below(path: tuple[str | int, ...], problems: Iterable[Problem]) -> Iterator[Problem]:
    """``problems`` with their paths told from further up."""
    return (replace(problem, at=(*path, *problem.at)) for problem in problems)


def normalise(op: Op, given: Mapping[str, object], into: Parameters) -> Iterator[Problem]:
    """Writes every parameter of ``op`` into ``into``, in its one spelling, defaults included."""
    for name in given:
        if name not in op.parameters:
            takes = nearest(name, op.parameters) if op.parameters else "it takes none"
            yield Problem(f"{op.name} has no parameter {name[:40]!r}", (name,), takes)
    for name, parameter in op.parameters.items():
        value = given.get(name, parameter.default)
        if value is None:
            yield Problem(f"{op.name} needs the parameter {name!r}")
            continue
        try:
            into[name] = parameter.normal(value)
        except ExpressionError as error:
            yield Problem(f"parameter {name!r}: {error}", (name,), error.hint)


def normalise_sizes(given: Mapping[str, object], into: dict[str, int | str]) -> Iterator[Problem]:
    """Writes every size into ``into``, in its one spelling and in alphabetical order."""
    for name, size in sorted(given.items()):
        try:
            into[name] = canonical_size(size)
        except ExpressionError as error:
            yield Problem(f"size {name!r}: {error}", (name,), error.hint)


def arity_problems(op: Op, inputs: Sequence[str]) -> Iterator[Problem]:
    """Too few inputs for ``op``, or too many."""
    least, most = op.inputs
    if not least <= len(inputs) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        yield Problem(f"{op.name} takes {wanted} inputs, not {len(inputs)}")


def graph_problems(nodes: Sequence[NodeLike]) -> Iterator[Problem]:
    """An id used twice, an input that is no node, a cycle."""
    known = {node.id for node in nodes}
    words = [INPUT, *dict.fromkeys(node.id for node in nodes)]
    seen: set[str] = set()
    sound = True
    for index, node in enumerate(nodes):
        if node.id in seen:
            sound = False
            yield Problem(f"two nodes have the id {node.id!r}", (index,))
        seen.add(node.id)
    for index, node in enumerate(nodes):
        for source in node.inputs:
            if source != INPUT and source not in known:
                sound = False
                hint = nearest(source, words)
                yield Problem(f"input {source!r} is no node", (index, "inputs"), hint)
    if sound:
        _, cycle = topological({node.id: set(node.inputs) - {INPUT} for node in nodes})
        if cycle:
            told = f"a cycle: {' -> '.join(cycle)}"
            at = next(index for index, node in enumerate(nodes) if node.id == cycle[0])
            yield Problem(told, (at,), "a kernel runs from x to output")


def output_problems(nodes: Sequence[NodeLike], output: str) -> Iterator[Problem]:
    """An output that is no node."""
    words = [node.id for node in nodes]
    if output not in words:
        yield Problem(f"output {output!r} is no node", ("output",), nearest(output, words))


def use_problems(nodes: Sequence[NodeLike], output: str) -> Iterator[Problem]:
    """Nodes that do not lead to the output; ``nodes`` and ``output`` have no problems of the kinds above."""
    sources = {node.id: set(node.inputs) for node in nodes}
    used, waiting = {INPUT}, [output]
    while waiting:
        node_id = waiting.pop()
        used.add(node_id)
        waiting.extend(sources[node_id] - used)
    for node in nodes:
        if node.id not in used:
            hint = "remove it, or use it on the way to output"
            yield Problem("its value is never used", ("nodes", node.id), hint)


def node_problems(node: NodeLike, layouts: Iterable[str], sizes: Iterable[str]) -> Iterator[Problem]:
    """An op outside the declared layouts, or an unknown name in an expression."""
    op = OPS[node.op]
    for layout in layouts:
        if layout not in op.layouts:
            hint = f"it works on {', '.join(op.layouts)}"
            yield Problem(f"{op.name} does not work on {layout}", ("op",), hint)
    for name, parameter in op.parameters.items():
        if isinstance(parameter, Size) and name in node.params:
            at = ("params", name)
            yield from _name_problems(node.params[name], f"parameter {name!r}", at, sizes)


def size_problems(sizes: Mapping[str, int | str], known: Iterable[str]) -> Iterator[Problem]:
    """Names in the sizes that are not among the ``known`` sizes, or sizes that need each other."""
    sound = True
    for name, size in sizes.items():
        for found in _name_problems(size, f"size {name!r}", ("sizes", name), known):
            sound = False
            yield found
    if sound:
        _, cycle = topological(size_uses(sizes))
        if cycle:
            yield Problem(f"sizes in a cycle: {' -> '.join(cycle)}", ("sizes", cycle[0]))


def least_problems(least: Iterable[str], sizes: Iterable[str]) -> Iterator[Problem]:
    """Names in ``least`` that are no sizes."""
    known = tuple(sizes)
    for name in least:
        if name not in known:
            hint = nearest(name, known) if known else "name it under sizes"
            yield Problem(f"least: there is no size {name[:40]!r}", ("least", name), hint)


def size_uses(sizes: Mapping[str, int | str]) -> dict[str, set[str]]:
    """The other sizes that each size refers to."""
    return {name: names_in(size) & sizes.keys() for name, size in sizes.items()}


def names_in(size: object) -> set[str]:
    """The names that a size refers to."""
    return set(expression.names(expression.parse(str(size))))


def _name_problems(size: object, what: str, at: tuple[str, ...], sizes: Iterable[str]) -> Iterator[Problem]:
    known = (*SLOT_NAMES, *sizes)
    for name in sorted(names_in(size)):
        if name not in known:
            yield Problem(f"{what}: unknown name {name!r}", at, nearest(name, known))
