"""Blueprint files to blueprints, and what is wrong with one in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """All but the hint: ``file:line: blueprint: node 'id': message``."""
        where = self.file + (f":{self.line}" if self.file and self.line else "")
        subject = self.blueprint or ("" if self.file else "blueprint")
        node = f"node {self.node!r}" if self.node else ""
        return ": ".join(part for part in (where, subject, node, self.message) if part)

    @classmethod
    def of_document(cls, refused: DocumentError, file: str) -> Finding:
        """What kept ``file`` from being read at all."""
        return cls(file, refused.line, "", "", refused.message, refused.hint)

    def error(self) -> BlueprintError:
        """The finding as an error to raise."""
        return BlueprintError(str(self), hint=self.hint)


def load_blueprints(path: Path) -> list[Blueprint]:
    """The blueprints in one file: a YAML or JSON document each, or several YAML documents.

    Raises ``BlueprintError`` with file, line, node and the nearest valid word.
    """
    try:
        documents = read_file(path)
    except DocumentError as refused:
        raise Finding.of_document(refused, str(path)).error() from None
    return [_validate(data, lines, str(path)) for data, lines in documents]


def read_file(path: Path) -> list[tuple[Any, Lines]]:
    """The documents of one file as plain data with their lines, at least one; raises ``DocumentError``."""
    documents = read_documents(_text(path), "json" if path.suffix == ".json" else "yaml")
    if not documents:
        raise DocumentError(None, "the file is empty", "a blueprint starts with: version: 1")
    return documents


def parse_blueprint(data: Mapping[str, Any]) -> Blueprint:
    """The blueprint in ``data`` (plain dicts, lists, strings, numbers); raises ``BlueprintError``."""
    return _validate(data, {}, "")


def from_json(text: str) -> Blueprint:
    """The blueprint in ``text``, one JSON object; raises ``BlueprintError``."""
    try:
        ((data, _),) = read_documents(text, "json")
    except DocumentError as refused:
        raise BlueprintError(f"blueprint:{refused.line}: {refused.message}", hint=refused.hint) from None
    return _validate(data, {}, "")


def _text(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise DocumentError(None, "not a blueprint file", f"its name ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DocumentError(None, "no such file")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError(None, str(error.strerror)) from None
    if len(raw) > MAX_BYTES:
        raise DocumentError(None, f"larger than {MAX_BYTES // 1024} KiB", "split it into several files")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(raw.count(b"\n", 0, error.start) + 1, "not UTF-8 text") from None


def _validate(data: Any, lines: Lines, file: str) -> Blueprint:
    blueprint, findings = examine(data, lines, file)
    if blueprint is None:
        raise next(findings).error()
    return blueprint


def examine(data: Any, lines: Lines, file: str) -> tuple[Blueprint | None, Iterator[Finding]]:
    """The blueprint in ``data``, as it was read from ``file`` ("" for none), or why there is none.

    The most telling reason comes first; the others are worked out only if they are asked for.
    """
    if not isinstance(data, Mapping):
        return None, iter([Finding(file, None, "", "", "a list where a blueprint should be")])
    try:
        data = migrate(data)
        blueprint = Blueprint.model_validate_json(json.dumps(data, allow_nan=False))
    except MigrationError as error:
        return None, iter([finding(("version",), str(error), error.hint, data, lines, file)])
    except ValidationError as error:
        # A list of which every item is wrong counts as too short; the items say more.
        found = [one for one in error.errors() if one["type"] != "too_short" or not one["input"]]
        # A misspelt field is also a missing one: the misspelling says more.
        found.sort(key=lambda details: details["type"] != "extra_forbidden")
        return None, (_explain(details, data, lines, file) for details in found)
    except (TypeError, ValueError, RecursionError) as error:
        return None, iter([Finding(file, None, "", "", str(error))])
    if not file:
        return blueprint, iter(())
    start = lines[()]
    ids = {node["id"]: lines.get(("nodes", index), start) for index, node in enumerate(data["nodes"])}
    return blueprint.with_source(Source(file, {**ids, "": start})), iter(())


def _explain(details: ErrorDetails, data: Mapping[str, Any], lines: Lines, file: str) -> Finding:
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
    subject = subject if subject.isprintable() else repr(subject)  # no line breaks, no codes for a terminal
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
