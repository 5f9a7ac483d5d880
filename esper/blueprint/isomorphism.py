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
    """SHA-256, in hex, of the graph of a valid blueprint; ``sizes`` stand after those that they use."""
    by_id = {node.id: node for node in nodes}
    known: dict[str, str] = {}  # digests, for written out in full each size could double the text
    for name, size in sizes.items():
        known[name] = _of_expression(size, known)
    numbers: dict[str, int] = {INPUT: 0}
    code: list[Any] = []

    def visit(node_id: str) -> int:
        if node_id not in numbers:
            node = by_id[node_id]
            inputs = [visit(source) for source in node.inputs]
            parameters = {
                name: _of_expression(value, known)
                if isinstance(OPS[node.op].parameters[name], Size)
                else value
                for name, value in node.params.items()
            }
            code.append([node.op, inputs, parameters])
            numbers[node_id] = len(code)
        return numbers[node_id]

    visit(output)
    return _digest(code)


def _of_expression(size: object, known: Mapping[str, str]) -> str:
    """The digest of an expression, with the digests of ``known`` sizes in the place of their names."""
    return _of_term(expression.parse(str(size)), known)


def _of_term(term: Term, known: Mapping[str, str]) -> str:
    if isinstance(term.head, str) and not term.args and term.head in known:
        return known[term.head]
    return _digest([str(term.head), [_of_term(arg, known) for arg in term.args]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
