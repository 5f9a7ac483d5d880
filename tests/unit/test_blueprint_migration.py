"""Documents of older versions, through a made-up version 0 and -1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from esper.blueprint import from_json, load_blueprints, parse_blueprint
from esper.blueprint.migration import MIGRATIONS, migrate
from esper.errors import BlueprintError

NEW: dict[str, Any] = {
    "version": 1,
    "name": "one",
    "layouts": ["features"],
    "nodes": [{"id": "map", "op": "linear", "inputs": ["x"], "params": {"out": "out"}}],
    "output": "map",
}
OLD = {
    **NEW,
    "version": 0,
    "nodes": [{"id": "map", "kind": "dense", "inputs": ["x"], "params": {"out": "out"}}],
}


def renamed(data: dict[str, Any]) -> dict[str, Any]:
    """Version 0 called an op a kind, and linear dense."""
    for node in data["nodes"]:
        kind = node.pop("kind")
        node["op"] = "linear" if kind == "dense" else kind
    return data


@pytest.fixture
def migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIGRATIONS, 0, renamed)


@pytest.mark.usefixtures("migrations")
def test_an_older_document_means_what_it_meant(tmp_path: Path) -> None:
    text = json.dumps(OLD)
    (tmp_path / "old.json").write_text(text)
    (read,) = load_blueprints(tmp_path / "old.json")
    assert read == parse_blueprint(OLD) == from_json(text) == parse_blueprint(NEW)
    assert read.version == 1
    assert json.dumps(OLD) == text  # what was given is left alone


@pytest.mark.usefixtures("migrations")
def test_migrations_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIGRATIONS, -1, lambda data: {"nodes": data.pop("layers"), **data})
    older = {**OLD, "version": -1, "layers": OLD["nodes"]}
    del older["nodes"]
    assert parse_blueprint(older) == parse_blueprint(NEW)


@pytest.mark.usefixtures("migrations")
def test_a_mistake_in_an_older_document_is_named_on_its_line(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(OLD, indent=1).replace("dense", "gelo"))
    with pytest.raises(
        BlueprintError, match=r"old.json:\d+: one: node 'map': unknown op 'gelo' \(did you mean"
    ):
        load_blueprints(path)


@pytest.mark.usefixtures("migrations")
@pytest.mark.parametrize("nodes", [None, 3, [3], [{}], {"a": 1}, ["kind"]])
def test_what_a_migration_cannot_read_is_refused(nodes: object) -> None:
    with pytest.raises(BlueprintError, match=r"this is no document of version 0 \(write version: 1\)"):
        parse_blueprint({**OLD, "nodes": nodes})


def test_versions_without_a_way_here_are_refused() -> None:
    with pytest.raises(BlueprintError, match=r"version 0 is not read here \(write version: 1\)"):
        parse_blueprint(OLD)
    with pytest.raises(BlueprintError, match="version 7 is newer than 1, the newest that is read here"):
        parse_blueprint({**NEW, "version": 7})
    assert migrate(NEW) is NEW
