"""Expressions, reading and identity over generated input."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.blueprint import expression, load_blueprints, parse_blueprint
from esper.blueprint.expression import ExpressionError, Term
from esper.errors import BlueprintError

NAMES = ("in", "out", "stride")


def _operation(children: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    return st.one_of(
        st.builds(
            lambda op, a, b: Term(op, (a, b)), st.sampled_from(["+", "-", "*", "/", "//"]), children, children
        ),
        st.builds(lambda f, a: Term(f, (a,)), st.sampled_from(["ceil", "floor"]), children),
        st.builds(lambda f, a, b: Term(f, (a, b)), st.sampled_from(["min", "max"]), children, children),
    )


LITERALS = st.integers(0, 9999).map(lambda number: Term(Fraction(number, 100)))
TERMS = st.recursive(LITERALS | st.sampled_from(NAMES).map(Term), _operation, max_leaves=8)


@given(TERMS)
def test_rendered_terms_parse_to_themselves(term: Term) -> None:
    assert expression.parse(expression.render(term)) == term


@given(st.text("in out()+-*/,.0123456789ceilfloormax_\t\n", max_size=170))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        tree = expression.parse(text)
    except ExpressionError:
        return
    assert expression.parse(expression.render(tree)) == tree


DATA: dict[str, Any] = {
    "version": 1,
    "name": "sample",
    "title": "A sample: quotes \" and 'colons'",
    "tags": ["linear", "mlp"],
    "layouts": ["features", "channels"],
    "sizes": {"h": "ceil(in / 4)", "w": "2 * h"},
    "nodes": [
        {"id": "pooled", "op": "pool", "inputs": ["x"], "params": {"stride": "stride"}},
        {"id": "a", "op": "linear", "inputs": ["pooled"], "params": {"out": "h", "bias": False}},
        {"id": "b", "op": "linear", "inputs": ["pooled"], "params": {"out": "h", "gain": 0.5}},
        {"id": "m", "op": "mul", "inputs": ["a", "b"]},
        {"id": "o", "op": "linear", "inputs": ["m"], "params": {"out": "out"}},
    ],
    "output": "o",
}


def _shuffled(value: Any, order: random.Random) -> Any:
    """``value`` with the keys of every mapping, and the nodes, in another order."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: _shuffled(value[key], order) for key in keys}
    if isinstance(value, list):
        items = [_shuffled(item, order) for item in value]
        if items and isinstance(items[0], dict):
            order.shuffle(items)
        return items
    return value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.sampled_from([None, 1, 4]))
def test_format_and_order_do_not_change_the_id(
    tmp_path: Path, order: random.Random, flow: bool, indent: int | None
) -> None:
    data = _shuffled(DATA, order)
    (tmp_path / "a.json").write_text(json.dumps(data, indent=indent))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(data, default_flow_style=flow, sort_keys=False))
    wanted = parse_blueprint(DATA).blueprint_id
    for name in ("a.json", "a.yaml"):
        (blueprint,) = load_blueprints(tmp_path / name)
        assert blueprint.blueprint_id == wanted


def _refusal(read: Callable[[], object]) -> str | None:
    """Why ``read`` refused, or None; any other exception is a failure."""
    try:
        read()
    except BlueprintError as error:
        return str(error)
    return None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*DATA, "id", "op"]), inner),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(DATA)), PLAIN)
def test_any_field_is_read_or_refused_in_one_line(field: str, value: Any) -> None:
    message = _refusal(lambda: parse_blueprint({**DATA, field: value}))
    assert message is None or "\n" not in message


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(["yaml", "json"]))
def test_damaged_files_are_read_or_refused(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    text = yaml.safe_dump(DATA) if suffix == "yaml" else json.dumps(DATA, indent=1)
    at = data.draw(st.integers(0, len(text)))
    insert = data.draw(st.text("[]{}:,&*!|>?-\"'#%@\\ \n\t0x\u202e", max_size=6) | st.text(max_size=4))
    path = tmp_path / f"damaged.{suffix}"
    path.write_text(
        text[:at] + insert + text[at + data.draw(st.integers(0, 4)) :], encoding="utf-8", errors="replace"
    )
    message = _refusal(lambda: load_blueprints(path))
    assert message is None or message.startswith(str(path))


@pytest.mark.parametrize("field", ["nodes", "output", "name", "layouts", "version"])
def test_required_fields(field: str) -> None:
    with pytest.raises(BlueprintError, match=f"the field '{field}' is missing"):
        parse_blueprint({key: value for key, value in DATA.items() if key != field})
