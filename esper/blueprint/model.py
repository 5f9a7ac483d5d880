"""The blueprint itself: a small typed graph of ops, in one canonical spelling.

Validation leaves nothing to choice: defaults are written out, expressions are respelled, nodes stand in
topological order. So two files that mean the same have the same canonical JSON, and its SHA-256 is the
identity of the blueprint.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from esper.blueprint import expression
from esper.blueprint.expression import ExpressionError, nearest
from esper.blueprint.graph import topological
from esper.blueprint.ops import LAYOUTS, OPS, Op, Size, canonical_size
from esper.messages import Layout

VERSION = 1
MAX_NODES = 64
MAX_SIZES = 16
INPUT = "x"
"""The name of the kernel's input among the nodes."""
SLOT_NAMES = ("in", "out", "stride")
"""What expressions may refer to besides the blueprint's own sizes."""

Parameters = dict[str, int | float | bool | str]


def problem(message: str, *, at: tuple[str, ...] = (), hint: str | None = None) -> NoReturn:
    """Refuses a blueprint: ``at`` is a path of keys below the field in question, nodes by their id."""
    raise PydanticCustomError("blueprint", "{message}", {"message": message, "at": at, "hint": hint})


def _identifier(word: str) -> str:
    if keyword.iskeyword(word) or word in (INPUT, *SLOT_NAMES, *expression.FUNCTIONS):
        problem(f"{word!r} is a reserved name", hint="choose another")
    return word


def _one_line(text: str) -> str:
    for character in text:
        if unicodedata.category(character)[0] in "CZ" and character != " ":
            problem(
                f"the character U+{ord(character):04X} is not allowed in text", hint="write one plain line"
            )
    return text


Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Identifier = Annotated[Word, AfterValidator(_identifier)]
Tag = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Text = Annotated[str, Field(max_length=240), AfterValidator(_one_line)]


class Node(BaseModel):
    """One op applied to the outputs of other nodes (or of ``x``, the kernel's input)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    id: Identifier
    op: Annotated[str, Field(max_length=64)]
    inputs: Annotated[tuple[Word, ...], Field(min_length=1, max_length=8)]
    params: Annotated[Parameters, Field(default_factory=dict, max_length=16, validate_default=True)]

    @field_validator("op")
    @classmethod
    def _known(cls, word: str) -> str:
        if word not in OPS:
            problem(f"unknown op {word[:40]!r}", hint=nearest(word, OPS))
        return word

    @field_validator("inputs")
    @classmethod
    def _arity(cls, inputs: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if op := OPS.get(info.data.get("op", "")):
            least, most = op.inputs
            if not least <= len(inputs) <= most:
                wanted = str(least) if least == most else f"{least} to {most}"
                problem(f"{op.name} takes {wanted} inputs, not {len(inputs)}")
        return inputs

    @field_validator("params")
    @classmethod
    def _normal(cls, params: Parameters, info: ValidationInfo) -> Parameters:
        op = OPS.get(info.data.get("op", ""))
        return params if op is None else _normal_parameters(op, params)


def _normal_parameters(op: Op, params: Parameters) -> Parameters:
    """Every parameter of ``op`` in its canonical spelling, defaults included."""
    for name in params:
        if name not in op.parameters:
            takes = nearest(name, op.parameters) if op.parameters else "it takes none"
            problem(f"{op.name} has no parameter {name[:40]!r}", at=(name,), hint=takes)
    normal: Parameters = {}
    for name, parameter in op.parameters.items():
        value = params.get(name, parameter.default)
        if value is None:
            problem(f"{op.name} needs the parameter {name!r}")
        try:
            normal[name] = parameter.normal(value)
        except ExpressionError as error:
            problem(f"parameter {name!r}: {error}", at=(name,), hint=error.hint)
    return normal


@dataclass(frozen=True, slots=True)
class Source:
    """Where a blueprint was read: the file, and the line of each node."""

    file: str
    lines: Mapping[str, int]


class Blueprint(BaseModel):
    """A network to be compiled for the slots it fits.

    ``layouts`` are the slots it is written for; ``sizes`` name expressions over ``in``, ``out``, ``stride``
    and each other; ``output`` is the id of the node whose value is the kernel's. ``title``, ``when`` and
    ``paper`` are for the reader: what it is, when it helps, where it is from. Equal means: same content.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    version: int
    name: Word
    title: Text = ""
    when: Text = ""
    paper: Text = ""
    tags: Annotated[tuple[Tag, ...], Field(max_length=16)] = ()
    layouts: Annotated[tuple[Layout, ...], Field(min_length=1, max_length=3)]
    sizes: Annotated[dict[Identifier, int | str], Field(max_length=MAX_SIZES)] = {}
    nodes: Annotated[tuple[Node, ...], Field(min_length=1, max_length=MAX_NODES)]
    output: Word

    _source: Source | None = PrivateAttr(default=None)

    @field_validator("version")
    @classmethod
    def _readable(cls, version: int) -> int:
        if version != VERSION:
            problem(f"version {version} is not read here", hint=f"write version: {VERSION}")
        return version

    @field_validator("tags")
    @classmethod
    def _sorted_tags(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(tags)))

    @field_validator("layouts")
    @classmethod
    def _sorted_layouts(cls, layouts: tuple[Layout, ...]) -> tuple[Layout, ...]:
        return tuple(layout for layout in LAYOUTS if layout in layouts)

    @field_validator("sizes")
    @classmethod
    def _normal_sizes(cls, sizes: dict[str, int | str]) -> dict[str, int | str]:
        normal: dict[str, int | str] = {}
        for name, size in sorted(sizes.items()):
            try:
                normal[name] = canonical_size(size)
            except ExpressionError as error:
                problem(f"size {name!r}: {error}", at=(name,), hint=error.hint)
        return normal

    @field_validator("nodes")
    @classmethod
    def _ordered(cls, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        by_id: dict[str, Node] = {}
        for node in nodes:
            if node.id in by_id:
                problem(f"two nodes have the id {node.id!r}", at=(node.id,))
            by_id[node.id] = node
        for node in nodes:
            for source in node.inputs:
                if source != INPUT and source not in by_id:
                    words = [INPUT, *by_id]
                    problem(
                        f"input {source!r} is no node",
                        at=(node.id, "inputs"),
                        hint=nearest(source, words),
                    )
        order, cycle = topological({node.id: set(node.inputs) - {INPUT} for node in nodes})
        if cycle:
            problem(
                f"a cycle: {' -> '.join(cycle)}",
                at=(cycle[0],),
                hint="a kernel runs from x to output",
            )
        return tuple(by_id[name] for name in order)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = {node.id: set(node.inputs) for node in self.nodes}
        if self.output not in ids:
            problem(f"output {self.output!r} is no node", at=("output",), hint=nearest(self.output, ids))
        used, waiting = {INPUT}, [self.output]
        while waiting:
            node_id = waiting.pop()
            used.add(node_id)
            waiting.extend(ids[node_id] - used)
        for node in self.nodes:
            if node.id not in used:
                problem(
                    "its value is never used",
                    at=("nodes", node.id),
                    hint="remove it, or use it on the way to output",
                )
            _check_node(node, self.layouts, self.sizes)
        _ = self.size_order
        return self

    @property
    def size_order(self) -> tuple[str, ...]:
        """The names of ``sizes``, each after those that it refers to."""
        uses: dict[str, set[str]] = {}
        for name, size in self.sizes.items():
            at = ("sizes", name)
            uses[name] = _check_names(size, f"size {name!r}", at, self.sizes) - set(SLOT_NAMES)
        order, cycle = topological(uses)
        if cycle:
            problem(f"sizes in a cycle: {' -> '.join(cycle)}", at=("sizes", cycle[0]))
        return tuple(order)

    def canonical_json(self) -> str:
        """The one spelling of this blueprint: ASCII JSON, keys sorted, no blanks."""
        data = self.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def blueprint_id(self) -> str:
        """``blueprint_`` and the first 16 hex digits of the SHA-256 of the canonical JSON."""
        return f"blueprint_{hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]}"

    def where(self, node_id: str | None = None) -> str:
        """A prefix for messages: file and line when known, then the node or the blueprint's name."""
        subject = self.name if node_id is None else f"{self.name}: node {node_id!r}"
        if self._source is None:
            return subject
        line = self._source.lines.get(node_id or "")
        return f"{self._source.file}{f':{line}' if line else ''}: {subject}"

    def with_source(self, source: Source) -> Blueprint:
        """The same blueprint, knowing where it was read."""
        copy = self.model_copy()
        copy._source = source
        return copy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blueprint) and self.canonical_json() == other.canonical_json()

    def __hash__(self) -> int:
        return hash(self.canonical_json())


def _check_node(node: Node, layouts: Iterable[Layout], sizes: Mapping[str, Any]) -> None:
    """Refuses an op outside the declared layouts, and unknown names in its expressions."""
    op = OPS[node.op]
    for layout in layouts:
        if layout not in op.layouts:
            fits = ", ".join(op.layouts)
            problem(
                f"{op.name} does not work on {layout}",
                at=("nodes", node.id, "op"),
                hint=f"it works on {fits}",
            )
    for name, parameter in op.parameters.items():
        if isinstance(parameter, Size):
            value = node.params[name]
            _check_names(value, f"parameter {name!r}", ("nodes", node.id, "params", name), sizes)


def _check_names(size: object, what: str, at: tuple[str, ...], sizes: Mapping[str, Any]) -> set[str]:
    """The names in ``size``, all of them known."""
    found = expression.names(expression.parse(str(size)))
    known = (*SLOT_NAMES, *sizes)
    for name in sorted(found):
        if name not in known:
            problem(f"{what}: unknown name {name!r}", at=at, hint=nearest(name, known))
    return set(found)
