"""The graph of a plain network, ready to be written as source.

The network is traced with ``torch.fx`` once in training and once in evaluation mode. Where the two traces
differ in a flag only, the flag becomes ``self.training``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node, Tracer

from esper.errors import RunError
from esper.tolaria.export.constructors import is_plain
from esper.tolaria.export.plain import GrownLayer
from esper.tolaria.export.source import MODE, rename_path


class Entry(nn.Module):
    """Calls ``network`` with one tensor, so that its other arguments take their defaults in a trace."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """The output of the network."""
        return self.network(x)


class _PlainTracer(Tracer):
    """Traces through everything but the modules that ``torch.nn`` exports."""

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=True)
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name  # part of the interface; the class decides
        return is_plain(m) and not any(isinstance(part, GrownLayer) for part in m.modules())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or f"{rename_path(self.path_of_module(m))!r} ({type(m).__name__})"
            raise


def trace(root: Entry, example: Tensor) -> Graph:
    """The graph of ``root`` for any batch size and both modes.

    ``node.meta["shape"]`` is set to the shape of each value, N for the batch. Raises RunError naming the
    module whose forward cannot be traced.
    """
    for path, module in root.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise RunError(
                f"cannot export module {rename_path(path)!r}: it has forward hooks, which plain source lacks",
                hint="remove the hooks, or do their work in the forward",
            )
    training = _trace(root.train())
    evaluation = _trace(root.eval())
    _join_modes(training, evaluation, root)
    for node in reversed(list(training.nodes)):
        if not node.users and node.target is operator.getitem:  # of a tuple that was unpacked
            training.erase_node(node)
    _Shapes(root, graph=training, batch=len(example)).run(example)
    return training


def _trace(root: Entry) -> Graph:
    tracer = _PlainTracer()
    try:
        return tracer.trace(root)
    except Exception as error:  # a forward may do anything with what stands for its tensors
        where = tracer.failed or "of the network"
        if "'len' is not supported" in str(error):  # torch's own advice is about other functions
            raise RunError(
                f"cannot export module {where}: its forward takes len() of a tensor",
                hint="write x.size(0) in place of len(x)",
            ) from error
        raise RunError(
            f"cannot export module {where}: its forward cannot be traced: {error}",
            hint="a forward that is exported may not branch or loop on the values or sizes of tensors",
        ) from error


def _join_modes(training: Graph, evaluation: Graph, root: nn.Module) -> None:
    """Make ``training`` the graph of both modes, with ``self.training`` where only a flag differs."""
    pairs = list(zip(training.nodes, evaluation.nodes, strict=False))
    partner = {second: first for first, second in pairs}
    for node, other in pairs:
        if not _same_target(node, other, root):
            raise _modes_differ(node)
        with training.inserting_before(node):
            node.args = _join(node.args, other.args, node, partner)
            node.kwargs = _join(node.kwargs, other.kwargs, node, partner)


def _same_target(node: Node, other: Node, root: nn.Module) -> bool:
    if node.op != other.op or node.op != "get_attr":
        return (node.op, node.target) == (other.op, other.target)
    first, second = (operator.attrgetter(str(each.target))(root) for each in (node, other))
    return first is second or (first.dtype == second.dtype and torch.equal(first, second))


def _join(value: Any, other: Any, node: Node, partner: Mapping[Node, Node]) -> Any:
    match value, other:
        case (True, False) | (False, True):
            flag = node.graph.create_node("get_attr", MODE)
            return flag if value else node.graph.call_function(operator.not_, (flag,))
        case (Node(), Node()) if partner.get(other) is value:
            return value
        case (slice(), slice()):
            ends = zip(
                (value.start, value.stop, value.step), (other.start, other.stop, other.step), strict=True
            )
            return slice(*(_join(a, b, node, partner) for a, b in ends))
        case (tuple() | list(), tuple() | list()) if len(value) == len(other):
            items = (_join(a, b, node, partner) for a, b in zip(value, other, strict=True))
            return list(items) if isinstance(value, list) else tuple(items)
        case (dict(), dict()) if value.keys() == other.keys():
            return {key: _join(value[key], other[key], node, partner) for key in value}
        case _ if type(value) is type(other) and value == other:
            return value
    raise _modes_differ(node)


def _modes_differ(node: Node) -> RunError:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    path = rename_path(next(reversed(stack.values()))[0])
    return RunError(
        f"cannot export module {path!r}: it computes something else in training than in evaluation",
        hint="use modules that follow their mode themselves, such as nn.Dropout",
    )


class _Shapes(Interpreter):
    """Notes the shape of each value, with N for a first axis that is the batch."""

    def __init__(self, root: nn.Module, graph: Graph, batch: int) -> None:
        super().__init__(root, graph=graph)
        self.batch = batch

    @torch.no_grad()
    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.dim() and len(value) == self.batch:
            n.meta["shape"] = f"({', '.join(['N', *map(str, value.shape[1:])])})"
        return value
