"""Readable Python source of a traced network: a class of plain ``torch.nn`` modules, and its weights.

Names of modules become attributes (``stage1.0.conv1`` is ``stage1_0_conv1``); operators, functions of
``torch`` and methods of tensors are written as a person would call them. Anything else is a RunError.
"""

from __future__ import annotations

import builtins
import inspect
import keyword
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import Argument

from esper.errors import RunError
from esper.tolaria.export.constructors import bare_tensor, built, call, function_name, literal, same, sequence

MODE = "training"
"""Target of the ``get_attr`` nodes that stand for the mode of the network, ``self.training``."""

_BINARY: Mapping[Callable[..., Any], str] = {
    **{operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.pow: "**"},
    **{operator.floordiv: "//", operator.mod: "%", operator.matmul: "@", operator.and_: "&"},
    **{operator.or_: "|", operator.xor: "^", operator.lt: "<", operator.le: "<=", operator.gt: ">"},
    **{operator.ge: ">=", operator.eq: "==", operator.ne: "!="},
}
_UNARY: Mapping[Callable[..., Any], str] = {operator.neg: "-", operator.invert: "~", operator.not_: "not "}
_RESERVED = frozenset({"self", "torch", "nn", "F", "math", *keyword.kwlist, *dir(builtins)})
_TAKEN = frozenset(dir(nn.Module()))  # attributes that a module may not lose
_ATOM = r"[\w.]+(\[[^\[\]]*\])?|\d[\w.]*e-\d+"
_INLINE_DEPTH = 3


@dataclass(frozen=True)
class NetworkSource:
    """``initialisation`` and ``forward`` are the bodies of the two methods, ``state`` what they load.

    ``state`` names each tensor once: of tensors that are shared it holds the first.
    """

    initialisation: tuple[str, ...]
    forward: tuple[str, ...]
    state: Mapping[str, Tensor]


def network_source(graph: Graph, root: nn.Module, rename: Callable[[str], str]) -> NetworkSource:
    """The source of ``graph``, traced from ``root``, which takes one tensor ``x``.

    ``rename`` maps the path of a module or tensor in ``root`` to the name it should have; names are made
    unique and valid here. Shapes in the comments come from ``node.meta["shape"]`` where it is set. Raises
    RunError for a node that cannot be written.
    """
    attributes: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target != MODE and node.target not in attributes:
            name = identifier(rename(str(node.target)), {*attributes.values(), *_TAKEN, MODE})
            attributes[str(node.target)] = name
    initialisation, state = _initialisation(root, attributes)
    return NetworkSource(tuple(initialisation), tuple(_Forward(graph, attributes).lines()), state)


def identifier(name: str, taken: Collection[str]) -> str:
    """A valid name like ``name`` that is not among ``taken``."""
    base = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "layer"
    base = f"layer_{base}" if base[0].isdigit() else base
    candidate, number = base, 1
    while candidate in taken or candidate in _RESERVED:
        number += 1
        candidate = f"{base}_{number}"
    return candidate


def _initialisation(root: nn.Module, attributes: Mapping[str, str]) -> tuple[list[str], dict[str, Tensor]]:
    lines: list[str] = []
    last: list[str] = []  # what refers to several attributes
    state: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for path, name in attributes.items():
        found = _attribute(root, path)
        if isinstance(found, nn.Module):
            lines.append(f"self.{name} = {built(found, rename_path(path))}")
            tensors = {f"{name}.{key}": value for key, value in found.state_dict(keep_vars=True).items()}
        else:
            lines.append(bare_tensor(name, found))
            tensors = {name: found}
        for key, value in tensors.items():
            if id(value) in first:
                last.append(f"self.{key} = self.{first[id(value)]}  # shared")
                continue
            first[id(value)] = key
            state[key] = value
            if isinstance(value, nn.Parameter) and not value.requires_grad:
                last.append(f"self.{key}.requires_grad_(False)")
    return lines + last, state


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for part in path.split("."):
        found = getattr(found, part)
    return found


def rename_path(path: str) -> str:
    """The path of a module for a message."""
    return path.removeprefix("network.")


class _Forward:
    """Writes the statements of a graph, reusing a name as soon as what it held is not needed any more."""

    def __init__(self, graph: Graph, attributes: Mapping[str, str]) -> None:
        self.nodes: list[Node] = list(graph.nodes)
        self.attributes = attributes
        self.statement = _statements(self.nodes)
        self.names: dict[Node, str] = {}
        place = {node: number for number, node in enumerate(self.nodes)}
        self.uses = {
            node: max((place[self.statement[user]] for user in node.users), default=0) for node in self.nodes
        }

    def lines(self) -> Iterable[str]:
        shape = None
        for place, node in enumerate(self.nodes):
            if node.op == "placeholder":
                self.names[node] = "x"
                continue
            if node.op == "get_attr" or self.statement[node] is not node:
                continue
            text = self.expression(node)
            if node.op == "output":
                yield f"return {text}"
                continue
            name = self.name(node, place)
            changed = node.meta.get("shape", shape) != shape
            shape = node.meta.get("shape", shape)
            yield f"{name} = {text}" + (f"  # {shape}" if changed else "")
            self.names[node] = name

    def name(self, node: Node, place: int) -> str:
        """A name for the value of the statement at ``place``: that of an input which ends there, or a new."""
        ended = [held for held in self.names if self.uses[held] <= place]
        names = [self.names.pop(held) for held in ended]
        pairs = zip(ended, names, strict=True)
        inputs = [name for held, name in pairs if node in map(self.statement.get, held.users)]
        # What a kernel computes is called after its seed, whatever came before it.
        seed = re.search(r"\.(seed\d+)\b", _owner(node)[0])
        if inputs and (seed is None or seed[1] in inputs):
            return seed[1] if seed else min(inputs, key=lambda name: (len(name), name))
        free = [name for name in "xyzuvw" if name not in self.names.values()]
        return identifier(seed[1] if seed else free[0] if free else "x", self.names.values())

    def expression(self, node: Node) -> str:
        path, kind = _owner(node)
        called = getattr(node.target, "__name__", node.target)
        where = f"{called} in {rename_path(path)!r} ({kind})"
        arguments = [self.argument(value, where) for value in node.args]
        arguments += [f"{name}={self.argument(value, where)}" for name, value in _given(node).items()]
        if node.op == "output":
            return arguments[0]
        if node.op == "call_module":
            return call(f"self.{self.attributes[str(node.target)]}", arguments, indent=20)
        if node.op == "call_method":
            method = str(node.target)
            if hasattr(Tensor, method) and not method.startswith("_"):
                return call(f"{self.operand(node.args[0], where)}.{method}", arguments[1:], indent=20)
        elif (text := self.function(node, arguments, where)) is not None:
            return text
        raise RunError(
            f"cannot export {where}: it is neither a public function of torch nor a method of its tensors",
            hint="write that part of the forward with functions of torch",
        )

    def function(self, node: Node, arguments: list[str], where: str) -> str | None:
        """Text of a call to an operator or a public function; None for any other."""
        function: Any = node.target
        if function in _BINARY:
            left, right = (self.operand(value, where, _BINARY[function]) for value in node.args)
            return f"{left} {_BINARY[function]} {right}"
        if function in _UNARY:
            return f"{_UNARY[function]}{self.operand(node.args[0], where)}"
        if function is operator.getitem:
            return f"{self.operand(node.args[0], where)}[{self.index(node.args[1], where)}]"
        if (
            function is getattr
            and len(node.args) == 2
            and re.fullmatch("[A-Za-z][A-Za-z_]*", str(node.args[1]))
        ):
            return f"{self.operand(node.args[0], where)}.{node.args[1]}"
        name = function_name(function)
        return call(name, arguments, indent=20) if name else None

    def argument(self, value: Argument, where: str) -> str:
        match value:
            case Node():
                if value.op == "get_attr":
                    return f"self.{self.attributes.get(str(value.target), MODE)}"
                return self.names[value] if value in self.names else self.expression(value)
            case slice():
                parts = (self.argument(part, where) for part in (value.start, value.stop, value.step))
                return f"slice({', '.join(parts)})"
            case list():
                return sequence("[]", [self.argument(item, where) for item in value])
            case tuple():
                return sequence("()", [self.argument(item, where) for item in value])
            case dict():
                pairs = ((literal(key, where), self.argument(item, where)) for key, item in value.items())
                return f"{{{', '.join(f'{key}: {item}' for key, item in pairs)}}}"
            case _:
                return literal(value, where)

    def operand(self, value: Argument, where: str, within: str = "") -> str:
        """``value`` as a part of a larger expression: in brackets unless it is a name or index, or binds."""
        text = self.argument(value, where)
        product = isinstance(value, Node) and value not in self.names and value.target is operator.mul
        binds = product and within in ("+", "-")
        return text if binds or re.fullmatch(_ATOM, text) else f"({text})"

    def index(self, value: Argument, where: str) -> str:
        if isinstance(value, slice):
            ends = (value.start, value.stop, value.step)
            parts = ["" if end is None else self.argument(end, where) for end in ends]
            return ":".join(parts if parts[2] else parts[:2])
        if isinstance(value, tuple) and value:
            return ", ".join(self.index(item, where) for item in value) + ("," if len(value) == 1 else "")
        return self.argument(value, where)


def _statements(nodes: list[Node]) -> dict[Node, Node]:
    """The node whose statement each node is written in.

    An operator goes into the statement of its only user if nothing but that statement comes between: the
    order of what is executed stays, so operations in place mean what they meant.
    """
    statement: dict[Node, Node] = {}
    depth: dict[Node, int] = {}
    after: Node | None = None
    for node in reversed(nodes):
        if node.op == "get_attr":
            continue
        target: Any = node.target
        pure = node.op == "call_function" and (
            target in (operator.getitem, getattr) or target in _BINARY or target in _UNARY
        )
        user = next(iter(node.users)) if pure and len(node.users) == 1 else None
        if user and after and statement[user] is statement[after] and depth[user] < _INLINE_DEPTH:
            statement[node], depth[node] = statement[user], depth[user] + 1
        else:
            statement[node], depth[node] = node, 0
        after = node
    return statement


def _given(node: Node) -> dict[str, Argument]:
    """The keyword arguments of ``node`` that are not at their default: torch passes those on as well."""
    try:
        known = inspect.signature(node.target).parameters if callable(node.target) else {}
    except ValueError:  # a built-in without a signature
        known = {}
    return {
        name: value
        for name, value in node.kwargs.items()
        if name not in known or not same(value, known[name].default)
    }


def _owner(node: Node) -> tuple[str, str]:
    """Path and class of the module whose forward made ``node``."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", nn.Module)
    return path, kind.__name__
