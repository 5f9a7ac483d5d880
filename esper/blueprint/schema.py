"""The language as a JSON Schema, for editors; made from the model and the table of ops.

A schema cannot tell all: that inputs are nodes, that there is no cycle, that sizes work out.
``esper blueprints lint`` does. ``python -m esper.blueprint.schema`` prints the schema.
"""

from __future__ import annotations

import json
from typing import Any

from esper.blueprint import expression
from esper.blueprint.checks import SLOT_NAMES
from esper.blueprint.migration import VERSION
from esper.blueprint.model import RESERVED, Blueprint
from esper.blueprint.ops import MAX_FEATURES, OPS, Flag, Op, Parameter, Real, Size

_FIELDS = {
    "version": "the version of the language",
    "name": "the name of the blueprint and of its kernels",
    "title": "what it is, in a few words",
    "when": "when it helps, in a line",
    "paper": "where it is from: authors, year, title",
    "tags": "words to find its kernels by",
    "layouts": "what it runs on: features (the last axis), tokens (a sequence) or channels (images)",
    "sizes": f"named sizes: whole numbers, or expressions over {', '.join(SLOT_NAMES)} and each other",
    "least": "sizes that may be halved, down to this, where a kernel of the full size cannot be made",
    "nodes": "the graph: each node applies an op to x or to other nodes; in any order",
    "output": "the id of the node whose value is the kernel's",
}
_NODE_FIELDS = {
    "id": "the name of the node",
    "inputs": "x (the kernel's input) or ids of other nodes; their order counts",
}


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12; ``version`` is that of the language it describes."""
    made = _untitled(Blueprint.model_json_schema())
    fields = made["properties"]
    for name, told in _FIELDS.items():
        fields[name]["description"] = told
    fields["version"] = {"const": VERSION, "description": _FIELDS["version"]}
    fields["sizes"] |= {
        "additionalProperties": _size(Size(1, MAX_FEATURES)),
        "propertyNames": _name(fields["sizes"].pop("patternProperties")),
    }
    fields["least"] |= {
        "additionalProperties": {"type": "integer", "minimum": 1, "maximum": MAX_FEATURES},
        "propertyNames": _name(fields["least"].pop("patternProperties")),
    }
    node = made["$defs"]["Node"]
    for name, told in _NODE_FIELDS.items():
        node["properties"][name]["description"] = told
    node["properties"]["id"] |= {"not": {"enum": list(RESERVED)}}
    node["properties"]["op"] = {
        "oneOf": [{"const": op.name, "description": op.summary} for op in OPS.values()]
    }
    node["properties"]["params"] = {"type": "object", "description": "settings of the op"}
    node["allOf"] = [
        {"if": {"properties": {"op": {"const": op.name}}, "required": ["op"]}, "then": _of_op(op)}
        for op in OPS.values()
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Blueprint of Esper",
        "version": VERSION,
        **made,
    }


def schema_text() -> str:
    """The schema as the file that ships."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


def _of_op(op: Op) -> dict[str, Any]:
    """What holds for a node of ``op``."""
    needed = [name for name, parameter in op.parameters.items() if parameter.default is None]
    params: dict[str, Any] = {
        "additionalProperties": False,
        "properties": {name: _parameter(parameter) for name, parameter in op.parameters.items()},
    }
    least, most = op.inputs
    fields = {"inputs": {"minItems": least, "maxItems": most}, "params": params}
    if not needed:
        return {"properties": fields}
    return {"properties": {**fields, "params": {**params, "required": needed}}, "required": ["params"]}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    default = {} if parameter.default is None else {"default": parameter.default}
    if isinstance(parameter, Size):
        return {**_size(parameter), **default}
    if isinstance(parameter, Real):
        return {"type": "number", "minimum": parameter.low, "maximum": parameter.high, **default}
    if isinstance(parameter, Flag):
        return {"type": "boolean", **default}
    raise TypeError(f"no schema is defined for {type(parameter).__name__}")


def _size(size: Size) -> dict[str, Any]:
    """A whole number, or an expression: the characters that may occur in one."""
    written = {
        "type": "string",
        "minLength": 1,
        "maxLength": expression.MAX_LENGTH,
        "pattern": r"^[A-Za-z0-9_ \t.,()*/+-]+$",
    }
    return {"anyOf": [{"type": "integer", "minimum": size.low, "maximum": size.high}, written]}


def _name(patterns: dict[str, Any]) -> dict[str, Any]:
    """What the names of sizes are like; the model tells it as a pattern for properties."""
    (pattern,) = patterns
    return {"pattern": pattern, "not": {"enum": list(RESERVED)}}


def _untitled(value: Any) -> Any:
    """Without the titles and docstrings that pydantic adds to every field and model."""
    if isinstance(value, list):
        return [_untitled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _untitled(item) for key, item in value.items()
            if not (key in ("title", "description") and isinstance(item, str))}  # fmt: skip


if __name__ == "__main__":
    print(schema_text(), end="")
