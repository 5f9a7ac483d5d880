"""Blueprint files to blueprints, and what is wrong with one in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from esper.blueprint.documents import MAX_BYTES, DocumentError, KeyPath, Lines, read_documents
from esper.blueprint.expression import nearest
from esper.blueprint.migration import MigrationError, migrate
from esper.blueprint.model import Blueprint, Node, Source
from esper.errors import BlueprintError

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where (each part as far as it is known), what, and what to do instead."""

    file: str
    line: int | None
    blueprint: str
    node: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        """All but the hint: ``file:line: blueprint: node 'id': message``."""
        where = self.file + (f":{self.line}" if self.file and self.line else "")
        subject = self.blueprint or ("" if self.file else "blueprint")
        node = f"node {self.node!r}" if self.node else ""
        return ": ".join(part for part in (where, subject, node, self.message) if part)

    def error(self) -> BlueprintError:
        """The finding as an error to raise."""
        return BlueprintError(str(self), hint=self.hint)


def load_blueprints(path: Path) -> list[Blueprint]:
    """The blueprints in one file: a YAML or JSON document each, or several YAML documents.

    Raises ``BlueprintError`` with file, line, node and the nearest valid word.
    """
    return [validate(data, lines, str(path)) for data, lines in read_file(path)]


def read_file(path: Path) -> list[tuple[Any, Lines]]:
    """The documents of one file as plain data with their lines, at least one; raises ``BlueprintError``."""
    text = _text(path)
    try:
        documents = read_documents(text, "json" if path.suffix == ".json" else "yaml")
    except DocumentError as refused:
        line = f":{refused.line}" if refused.line else ""
        raise BlueprintError(f"{path}{line}: {refused.message}", hint=refused.hint) from None
    if not documents:
        raise BlueprintError(f"{path}: the file is empty", hint="a blueprint starts with: version: 1")
    return documents


def parse_blueprint(data: Mapping[str, Any]) -> Blueprint:
    """The blueprint in ``data`` (plain dicts, lists, strings, numbers); raises ``BlueprintError``."""
    return validate(data, {}, "")


def from_json(text: str) -> Blueprint:
    """The blueprint in ``text``, one JSON object; raises ``BlueprintError``."""
    try:
        ((data, _),) = read_documents(text, "json")
    except DocumentError as refused:
        raise BlueprintError(f"blueprint:{refused.line}: {refused.message}", hint=refused.hint) from None
    return validate(data, {}, "")


def _text(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise BlueprintError(f"{path}: not a blueprint file", hint=f"its name ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise BlueprintError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BlueprintError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise BlueprintError(
            f"{path}: larger than {MAX_BYTES // 1024} KiB", hint="split it into several files"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BlueprintError(f"{path}:{line}: not UTF-8 text") from None


def validate(data: Any, lines: Lines, file: str) -> Blueprint:
    """The blueprint in ``data`` as it was read from ``file`` ("" for none); raises ``BlueprintError``."""
    if not isinstance(data, Mapping):
        raise BlueprintError(f"{file or 'blueprint'}: a list where a blueprint should be")
    try:
        data = migrate(data)
        blueprint = Blueprint.model_validate_json(json.dumps(data, allow_nan=False))
    except MigrationError as error:
        raise finding(("version",), str(error), error.hint, data, lines, file).error() from None
    except ValidationError as error:
        # A misspelt field is also a missing one: the misspelling says more.
        first = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
        raise explain(first, data, lines, file).error() from None
    except (TypeError, ValueError, RecursionError) as error:
        raise BlueprintError(f"{file or 'blueprint'}: {error}") from None
    if not file:
        return blueprint
    start = lines[()]
    ids = {node["id"]: lines.get(("nodes", index), start) for index, node in enumerate(data["nodes"])}
    return blueprint.with_source(Source(file, {**ids, "": start}))


def explain(details: ErrorDetails, data: Mapping[str, Any], lines: Lines, file: str) -> Finding:
    """One of pydantic's errors in the words of the file."""
    context = details.get("ctx", {}) if details["type"] == "blueprint" else {}
    message, hint = _in_words(details)
    loc = (*details["loc"], *context.get("at", ()))
    return finding(loc, message, context.get("hint") or hint, data, lines, file)


def finding(
    loc: KeyPath, message: str, hint: str | None, data: Mapping[str, Any], lines: Lines, file: str
) -> Finding:
    """A finding at the path ``loc`` of ``data``, on the line where the nearest part of it stands."""
    path, node_id = _locate(loc, data)
    line = next((lines[path[:size]] for size in range(len(path), -1, -1) if path[:size] in lines), None)
    name = data.get("name")
    subject = name[:40] if isinstance(name, str) else "blueprint"
    return Finding(file, line, subject, node_id[:40], message, hint)


def _locate(loc: tuple[str | int, ...], data: Mapping[str, Any]) -> tuple[KeyPath, str]:
    """The path in the file of ``loc``, where a node may stand by its id, and that id."""
    nodes = data.get("nodes")
    if loc[:1] != ("nodes",) or len(loc) == 1 or not isinstance(nodes, list):
        return loc, ""
    first, *rest = loc[1:]
    ids = [node.get("id") if isinstance(node, dict) else None for node in nodes]
    # The last of that id: where two share one, the second is the mistake.
    index = first if isinstance(first, int) else len(ids) - 1 - ids[::-1].index(first)
    node_id = ids[index]
    return ("nodes", index, *rest), node_id if isinstance(node_id, str) else f"#{index + 1}"


def _in_words(details: ErrorDetails) -> tuple[str, str | None]:
    """What is wrong, and the next step, in the words of the file."""
    field = next((part for part in reversed(details["loc"]) if isinstance(part, str)), "the document")
    if details["type"] == "blueprint":
        return details["msg"], None
    if details["type"] == "missing":
        return f"the field {details['loc'][-1]!r} is missing", None
    if details["type"] == "extra_forbidden":
        model = Node if "nodes" in details["loc"] else Blueprint
        word = str(details["loc"][-1])
        return f"unknown field {word[:40]!r}", nearest(word, list(model.model_fields))
    given = repr(details["input"])[:40]
    return f"{field}: {details['msg']}, not {given}", None
