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
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from esper.blueprint import expression
from esper.blueprint.checks import (
    INPUT,
    SLOT_NAMES,
    Parameters,
    Problem,
    arity_problems,
    below,
    graph_problems,
    least_problems,
    node_problems,
    normalise,
    normalise_sizes,
    output_problems,
    size_problems,
    size_uses,
    use_problems,
)
from esper.blueprint.expression import nearest
from esper.blueprint.graph import topological
from esper.blueprint.isomorphism import graph_digest
from esper.blueprint.migration import VERSION
from esper.blueprint.ops import LAYOUTS, MAX_FEATURES, OPS
from esper.messages import Layout

MAX_NODES = 64
MAX_SIZES = 16
RESERVED = (INPUT, *SLOT_NAMES, *expression.FUNCTIONS, *keyword.kwlist)
"""What no node and no size may be called."""


def refuse(problems: Iterable[Problem]) -> None:
    """Refuses a blueprint for the first of ``problems``, if there is one."""
    for problem in problems:
        context = {"message": problem.message, "at": problem.at, "hint": problem.hint}
        raise PydanticCustomError("blueprint", "{message}", context)


def _identifier(word: str) -> str:
    if word in RESERVED:
        refuse([Problem(f"{word!r} is a reserved name", hint="choose another")])
    return word


def _one_line(text: str) -> str:
    for character in text:
        if unicodedata.category(character)[0] in "CZ" and character != " ":
            told = f"the character U+{ord(character):04X} is not allowed in text"
            refuse([Problem(told, hint="write one plain line")])
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
            refuse([Problem(f"unknown op {word[:40]!r}", hint=nearest(word, OPS))])
        return word

    @field_validator("inputs")
    @classmethod
    def _arity(cls, inputs: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if op := OPS.get(info.data.get("op", "")):
            refuse(arity_problems(op, inputs))
        return inputs

    @field_validator("params")
    @classmethod
    def _normal(cls, params: Parameters, info: ValidationInfo) -> Parameters:
        op = OPS.get(info.data.get("op", ""))
        if op is None:
            return params
        normal: Parameters = {}
        refuse(normalise(op, params, normal))
        return normal


@dataclass(frozen=True, slots=True)
class Source:
    """Where a blueprint was read: the file, and the line of each node."""

    file: str
    lines: Mapping[str, int]


class Blueprint(BaseModel):
    """A network to be compiled for the slots it fits.

    ``layouts`` are the slots it is written for; ``sizes`` name expressions over ``in``, ``out``, ``stride``
    and each other; those in ``least`` may be halved down to what it says, where a kernel of the full size
    cannot be made; ``output`` is the id of the node whose value is the kernel's. ``title``, ``when`` and
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
    least: Annotated[
        dict[Identifier, Annotated[int, Field(ge=1, le=MAX_FEATURES)]], Field(max_length=MAX_SIZES)
    ] = {}
    nodes: Annotated[tuple[Node, ...], Field(min_length=1, max_length=MAX_NODES)]
    output: Word

    _source: Source | None = PrivateAttr(default=None)

    @field_validator("version")
    @classmethod
    def _readable(cls, version: int) -> int:
        if version != VERSION:
            refuse([Problem(f"version {version} is not read here", hint=f"write version: {VERSION}")])
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
        refuse(normalise_sizes(sizes, normal))
        return normal

    @field_validator("nodes")
    @classmethod
    def _ordered(cls, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        refuse(graph_problems(nodes))
        by_id = {node.id: node for node in nodes}
        order, _ = topological({node.id: set(node.inputs) - {INPUT} for node in nodes})
        return tuple(by_id[name] for name in order)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse(output_problems(self.nodes, self.output))
        refuse(use_problems(self.nodes, self.output))
        for node in self.nodes:
            refuse(below(("nodes", node.id), node_problems(node, self.layouts, self.sizes)))
        refuse(size_problems(self.sizes, self.sizes))
        refuse(least_problems(self.least, self.sizes))
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without an empty ``least``: blueprints that were written before there was any keep their ids."""
        data: dict[str, Any] = handler(self)
        if not self.least:
            del data["least"]
        return data

    @property
    def size_order(self) -> tuple[str, ...]:
        """The names of ``sizes``, each after those that it refers to."""
        return tuple(topological(size_uses(self.sizes))[0])

    def canonical_json(self) -> str:
        """The one spelling of this blueprint: ASCII JSON, keys sorted, no blanks."""
        data = self.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def blueprint_id(self) -> str:
        """``blueprint_`` and the first 16 hex digits of the SHA-256 of the canonical JSON."""
        return f"blueprint_{hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]}"

    @property
    def graph_id(self) -> str:
        """``graph_`` and 16 hex digits over the graph alone: equal for graphs that differ in names only.

        See ``esper.blueprint.isomorphism`` for what counts.
        """
        sizes = {name: self.sizes[name] for name in self.size_order}
        return f"graph_{graph_digest(self.nodes, self.output, sizes)[:16]}"

    @property
    def file(self) -> str:
        """Where it was read; "" if it was not read from a file."""
        return self._source.file if self._source else ""

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
