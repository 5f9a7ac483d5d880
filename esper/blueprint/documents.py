"""Text to plain data, read as if a stranger had written it.

YAML and JSON arrive as a flat stream of events, are bounded there (values, depth) and only then become data,
without recursion: 100,000 levels of nesting are refused at the 33rd, and no loader of a library ever builds
an object. Aliases, anchors, tags, duplicate keys, NaN and infinities are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

MAX_BYTES = 256 * 1024
MAX_VALUES = 5_000
MAX_DEPTH = 32

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]
"""The line of every value in a document, by its path of keys and indices."""


class DocumentError(Exception):
    """A file outside what is read here, with the line where that shows."""

    def __init__(self, line: int | None, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.line, self.message, self.hint = line, message, hint


@dataclass(frozen=True, slots=True)
class _Event:
    """One step through a file: a container opens or closes, or a scalar stands there."""

    kind: Literal["map", "list", "end", "scalar"]
    line: int
    value: Any = None


def read_documents(text: str, syntax: Literal["yaml", "json"]) -> list[tuple[Any, Lines]]:
    """Each document in ``text`` as dicts, lists and scalars, with its lines; raises ``DocumentError``."""
    if len(text) > MAX_BYTES:
        raise DocumentError(None, f"larger than {MAX_BYTES // 1024} KiB", "split it into several files")
    return _compose(_json_events(text) if syntax == "json" else _yaml_events(text))


def _yaml_events(text: str) -> Iterator[_Event]:
    """The events of PyYAML's own parser, which keeps its state in lists rather than on the stack."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            start = event.start_mark.line + 1 if event.start_mark is not None else 0
            if isinstance(event, yaml.AliasEvent):
                raise DocumentError(
                    start, f"an alias (*{event.anchor}); aliases are not read", "write the value out"
                )
            if isinstance(event, yaml.NodeEvent):
                yield _yaml_node(event, start)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                yield _Event("end", start)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        raise DocumentError(line, f"not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise DocumentError(None, f"not YAML: {str(error).splitlines()[0]}") from None


def _yaml_node(event: yaml.NodeEvent, line: int) -> _Event:
    if event.anchor is not None:
        raise DocumentError(line, f"an anchor (&{event.anchor}); anchors are not read", "remove it")
    if (tag := getattr(event, "tag", None)) is not None:
        raise DocumentError(line, f"a tag ({str(tag)[:40]}); tags are not read", "remove it")
    if isinstance(event, yaml.ScalarEvent):
        plain = event.implicit[0]
        return _Event("scalar", line, _plain(event.value, line) if plain else event.value)
    return _Event("map" if isinstance(event, yaml.MappingStartEvent) else "list", line)


_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.?(?:nan|inf|infinity)", re.IGNORECASE)


def _plain(text: str, line: int) -> Any:
    """The value of an unquoted YAML scalar, by the JSON part of YAML 1.2: ``no`` and ``010`` are strings."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise DocumentError(line, f"{text} is not a finite number")
    if _DECIMAL.fullmatch(text) and not re.match(r"-?0[0-9]", text):
        return _number(text, line)
    return text


def _number(text: str, line: int) -> int | float:
    if len(text) > 24:
        raise DocumentError(line, f"a number of {len(text)} characters; at most 24 are read")
    if _INTEGER.fullmatch(text):
        return int(text)
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError(line, f"{text} is not a finite number")
    return value


_JSON_TOKEN = re.compile(
    r'[ \t\r\n]*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<sign>[\[\]{}:,])|(?P<word>[^\s\[\]{}:,"]+))', re.ASCII
)


def _json_events(text: str) -> Iterator[_Event]:
    """The events of one JSON document: depth is counted first, then ``json`` checks the grammar."""
    tokens: list[tuple[str, str, int]] = []
    depth, line, at, end = 0, 1, 0, len(text.rstrip())
    while at < end:
        match = _JSON_TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise DocumentError(line, "not JSON: a string does not end")
        line += text.count("\n", at, match.end())
        at = match.end()
        token = match[match.lastgroup]
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0)
        _check_bounds(depth, len(tokens) // 2, line)
        tokens.append((match.lastgroup, token, line))
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        raise DocumentError(error.lineno, f"not JSON: {error.msg}") from None
    for kind, token, where in tokens:
        if kind == "string":
            yield _Event("scalar", where, json.loads(token))
        elif kind == "word":
            yield _Event("scalar", where, _plain(token, where))
        elif token in "[{":
            yield _Event("list" if token == "[" else "map", where)
        elif token in "]}":
            yield _Event("end", where)


def _check_bounds(depth: int, values: int, line: int) -> None:
    if depth > MAX_DEPTH:
        raise DocumentError(line, f"nested deeper than {MAX_DEPTH} levels")
    if values > MAX_VALUES:
        raise DocumentError(line, f"more than {MAX_VALUES} values", "split it into several files")


def _compose(events: Iterator[_Event]) -> list[tuple[Any, Lines]]:
    """Each document as data, with the line of every path in it."""
    documents: list[tuple[Any, Lines]] = []
    stack: list[tuple[dict[str, Any] | list[Any], KeyPath]] = []
    key: str | None = None
    key_line = 0
    lines: Lines = {}
    for count, event in enumerate(events):
        _check_bounds(len(stack) + (event.kind in ("map", "list")), count, event.line)
        if event.kind == "end":
            done, _ = stack.pop()
            if not stack:
                documents.append((done, lines))
                lines = {}
            continue
        holder, path = stack[-1] if stack else (None, ())
        line = event.line
        if isinstance(holder, dict) and key is None:
            key, key_line = _key(event, holder), event.line
            continue
        value = {} if event.kind == "map" else [] if event.kind == "list" else event.value
        if isinstance(holder, dict) and key is not None:
            holder[key] = value
            path, key, line = (*path, key), None, key_line
        elif isinstance(holder, list):
            path = (*path, len(holder))
            holder.append(value)
        elif event.kind == "scalar":
            raise DocumentError(
                event.line, "a single value where a blueprint should be", "it starts with: version: 1"
            )
        lines[path] = line
        if event.kind != "scalar":
            stack.append((value, path))
    return documents


def _key(event: _Event, holder: dict[str, Any]) -> str:
    if event.kind != "scalar" or not isinstance(event.value, str):
        raise DocumentError(event.line, "a key that is not a word")
    if event.value in holder:
        raise DocumentError(event.line, f"the key {event.value[:40]!r} stands there twice")
    return event.value
