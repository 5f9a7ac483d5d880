"""Smaller blueprints: halved where they say so, never below their bound; all others keep their ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esper.blueprint import Blueprint, parse_blueprint, plan, smaller
from esper.blueprint.lint import Linter
from esper.errors import BlueprintError
from esper.messages import Slot

SLOT = Slot("features", 12, 8)


def blueprint(groups: int = 1, **fields: Any) -> Blueprint:
    """A bottleneck of width ``2*in``, shuffled in ``groups``."""
    nodes = [
        {"id": "down", "op": "linear", "inputs": ["x"], "params": {"out": "h"}},
        {"id": "mixed", "op": "shuffle", "inputs": ["down"], "params": {"groups": groups}},
        {"id": "up", "op": "linear", "inputs": ["mixed"], "params": {"out": "out"}},
    ]
    data = {"version": 1, "name": "block", "layouts": ["features"], "nodes": nodes, "output": "up"}
    return parse_blueprint({**data, "sizes": {"h": "2*in"}, **fields})


def widths(first: Blueprint) -> list[int]:
    """Its width, and that of each smaller one."""
    found: list[int] = []
    one: Blueprint | None = first
    while one is not None:
        found.append(plan(one, SLOT).sizes["h"])
        one = smaller(one, SLOT)
    return found


def test_sizes_are_halved_down_to_their_bound() -> None:
    assert widths(blueprint(least={"h": 4})) == [24, 12, 6, 4]
    assert widths(blueprint(least={"h": 1})) == [24, 12, 6, 3, 1]
    assert widths(blueprint(least={"h": 30})) == [24]  # a bound is no reason to grow
    assert widths(blueprint()) == [24]


def test_what_does_not_fit_is_halved_on() -> None:
    assert widths(blueprint(groups=4, least={"h": 3})) == [24, 12]  # 6 and 3 are no multiples of 4
    assert widths(blueprint(groups=8, least={"h": 8})) == [24, 8]


def test_a_smaller_blueprint_is_another_one_of_the_same_name() -> None:
    first = blueprint(least={"h": 4})
    second = smaller(first, SLOT)
    assert second is not None
    assert (second.name, second.least, second.sizes) == ("block", {"h": 4}, {"h": 12})
    assert second.blueprint_id != first.blueprint_id


def test_ids_are_what_they_were_before_there_was_a_least() -> None:
    assert "least" not in blueprint().canonical_json()
    assert blueprint(least={}).blueprint_id == blueprint().blueprint_id
    assert blueprint(least={"h": 4}).blueprint_id != blueprint().blueprint_id
    assert blueprint(least={"h": 4}).graph_id == blueprint().graph_id


def test_a_bound_of_no_size_is_refused_and_linted(tmp_path: Path) -> None:
    with pytest.raises(BlueprintError, match="least: there is no size 'g'"):
        blueprint(least={"g": 4})
    with pytest.raises(BlueprintError, match="h: Input should be greater than or equal to 1"):
        blueprint(least={"h": 0})
    file = tmp_path / "block.json"
    file.write_text(blueprint(least={"h": 4}).canonical_json().replace('"least":{"h":4}', '"least":{"hh":4}'))
    (found,) = (one for one in Linter().read(file) if one.severity == "error")
    assert "there is no size 'hh'" in found.message
    assert found.hint == "did you mean 'h'?"
