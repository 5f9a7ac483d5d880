"""A name for a graph that does not depend on the names within it.

Two graphs are the same where one can be renamed into the other: the same ops with the same parameters, joined
in the same way, inputs in the same order. The ids of nodes, their order in the file, the prose, the tags and
the layouts do not count, nor does how a size is called: it stands for its expression. Expressions are the
same where they are spelled the same once their names are written out; ``in+out`` is not ``out+in``. Two nodes
that do the same stay two: each has weights, or draws random numbers, of its own.

Every node lies on a path to the output, and inputs are ordered. So walking from the output along the inputs
meets all nodes in one order only, whatever they are called, and the list of what was met is canonical.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from esper.blueprint import expression
from esper.blueprint.checks import INPUT, NodeLike
from esper.blueprint.expression import Term
from esper.blueprint.ops import OPS, Size


def graph_digest(nodes: Sequence[NodeLike], output: str, sizes: Mapping[str, int | str]) -> str:
    """SHA-256, in hex, of the graph of a valid blueprint."""
    by_id = {node.id: node for node in nodes}
    written_out = _Sizes(sizes)
    numbers: dict[str, int] = {INPUT: 0}
    code: list[Any] = []

    def visit(node_id: str) -> int:
        if node_id not in numbers:
            node = by_id[node_id]
            inputs = [visit(source) for source in node.inputs]
            parameters = {
                name: written_out.digest(value) if isinstance(OPS[node.op].parameters[name], Size) else value
                for name, value in node.params.items()
            }
            code.append([node.op, inputs, parameters])
            numbers[node_id] = len(code)
        return numbers[node_id]

    visit(output)
    return _digest(code)


class _Sizes:
    """Digests of expressions with the blueprint's own sizes written out, each worked out once.

    Writing them out in full could double the text with each size.
    """

    def __init__(self, sizes: Mapping[str, int | str]) -> None:
        self.sizes = sizes
        self.known: dict[str, str] = {}

    def digest(self, size: object) -> str:
        return self._of(expression.parse(str(size)))

    def _of(self, term: Term) -> str:
        if isinstance(term.head, str) and term.head in self.sizes and not term.args:
            if term.head not in self.known:
                self.known[term.head] = self.digest(self.sizes[term.head])
            return self.known[term.head]
        return _digest([str(term.head), [self._of(arg) for arg in term.args]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
