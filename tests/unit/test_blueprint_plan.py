"""Blueprints worked out for slots: sizes, shapes, and one spelling for one meaning."""

from __future__ import annotations

from typing import Any

import pytest

from esper.blueprint import LAYOUTS, Blueprint, Shape, fits, parse_blueprint, plan
from esper.errors import BlueprintError
from esper.messages import Layout, Slot


def blueprint(*nodes: tuple[str, str, list[str], dict[str, Any]], **fields: Any) -> Blueprint:
    """A blueprint of ``nodes`` (id, op, inputs, params), the last of them its output."""
    data = {
        "version": 1,
        "name": "test",
        "layouts": list(LAYOUTS),
        "nodes": [dict(zip(("id", "op", "inputs", "params"), node, strict=True)) for node in nodes],
        "output": nodes[-1][0],
    }
    return parse_blueprint(data | fields)


LINEAR = ("map", "linear", ["x"], {"out": "out"})


def conv(node_id: str, source: str, **params: Any) -> tuple[str, str, list[str], dict[str, Any]]:
    return (node_id, "conv2d", [source], {"out": "out"} | params)


def test_sizes_may_refer_to_each_other_in_any_order() -> None:
    made = plan(
        blueprint(LINEAR, sizes={"a": "b + 1", "b": "c * 2", "c": "ceil(in / 4)"}), Slot("features", 9, 5)
    )
    assert made.sizes == {"in": 9, "out": 5, "stride": 1, "a": 7, "b": 6, "c": 3}


def test_shapes_follow_the_graph() -> None:
    made = plan(
        blueprint(
            conv("wide", "x", out="2 * in", stride="stride"),
            ("mean", "global_pool", ["wide"], {}),
            ("gated", "mul", ["wide", "mean"], {}),
            ("both", "concat", ["gated", "wide"], {}),
            ("last", "linear", ["both"], {"out": "out"}),
            layouts=["channels"],
        ),
        Slot("channels", 4, 6, 2),
    )
    assert {node.id: node.shape for node in made.nodes} == {
        "wide": Shape(8, 2),
        "mean": Shape(8, 2, pooled=True),
        "gated": Shape(8, 2),
        "both": Shape(16, 2),
        "last": Shape(6, 2),
    }


@pytest.mark.parametrize(
    ("nodes", "slot", "message"),
    [
        ([("h", "relu", ["x"], {})], Slot("features", 4, 5), "the output has 4 features"),
        ([LINEAR], Slot("channels", 4, 5, 2), "needs 5 features, space over 2"),
        ([conv("c", "x", stride=2)], Slot("channels", 4, 5), "the output has 5 features, space over 2"),
        ([conv("c", "x", groups=3)], Slot("channels", 4, 6), "3 groups do not divide 4 input features"),
        ([conv("c", "x", groups="in")], Slot("channels", 4, 6), "4 groups do not divide 6 output features"),
        ([conv("c", "x", kernel=4)], Slot("channels", 4, 6), "kernel 4 is even"),
        ([("m", "linear", ["x"], {"out": "out - 5"})], Slot("features", 4, 5), "out-5 = 0 is outside 1 to"),
        (
            [("m", "linear", ["x"], {"out": "out / 2"})],
            Slot("features", 4, 5),
            "out/2 is 2.5, not a whole number",
        ),
        ([("m", "linear", ["x"], {"out": "out // (in - 4)"})], Slot("features", 4, 5), "divides by zero"),
        ([("m", "linear", ["x"], {"out": "out * 9999999"})], Slot("features", 4, 5), "outside 1 to 1000000"),
        (
            [("a", "linear", ["x"], {"out": 3}), ("s", "add", ["a", "x"], {})],
            Slot("features", 4, 4),
            "3 and 4",
        ),
        (
            [("s", "slice", ["x"], {"start": 2, "size": 3})],
            Slot("features", 4, 3),
            "features 2 to 4 of an input",
        ),
        ([("g", "global_pool", ["x"], {})], Slot("channels", 4, 4), "pooled to one position"),
        (
            [("g", "global_pool", ["x"], {}), conv("c", "g")],
            Slot("channels", 4, 4),
            "a convolution needs positions",
        ),
        (
            [conv("a", "x", stride=2), conv("b", "x"), ("s", "add", ["a", "b"], {})],
            Slot("channels", 4, 4, 2),
            "reduced by 1 and 2",
        ),
        ([("n", "layer_norm", ["x"], {})], Slot("features", 1, 1), "carries nothing"),
        ([("n", "attention", ["x", "x", "x"], {"heads": 3})], Slot("tokens", 4, 4), "3 heads do not divide"),
        ([("p", "pool", ["x"], {"stride": 2})], Slot("tokens", 4, 4), "only channels have a stride"),
    ],
)
def test_a_shape_that_cannot_be_names_the_node(nodes: list[Any], slot: Slot, message: str) -> None:
    layouts = [slot.layout]
    made = blueprint(*nodes, layouts=layouts)
    assert not fits(made, slot)
    with pytest.raises(BlueprintError) as caught:
        plan(made, slot)
    assert message in str(caught.value)
    assert f"node {nodes[-1][0]!r}" in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_blueprint_fits_only_its_layouts(layout: Layout) -> None:
    made = blueprint(LINEAR, layouts=["features"])
    assert fits(made, Slot(layout, 4, 4)) == (layout in ("features", "tokens"))


def test_same_meaning_same_id() -> None:
    first = blueprint(
        ("a", "linear", ["x"], {"out": "ceil( in/2 )", "gain": 1, "bias": True}),
        ("b", "scale", ["a"], {"init": -0.0}),
        ("c", "relu", ["a"], {}),
        ("d", "add", ["b", "c"], {}),
        ("e", "linear", ["d"], {"out": "out"}),
        tags=["one", "two", "one"],
        sizes={"h": "(in) + 4", "g": 3},
    )
    second = blueprint(
        ("e", "linear", ["d"], {"out": " out"}),
        ("c", "relu", ["a"], {}),
        ("d", "add", ["b", "c"], {}),
        ("b", "scale", ["a"], {"init": 0.0}),
        ("a", "linear", ["x"], {"out": "ceil(in / 2)"}),
        tags=["two", "one"],
        layouts=["channels", "tokens", "features"],
        sizes={"g": "3", "h": "in+4"},
        output="e",
    )
    assert first.canonical_json() == second.canonical_json()
    assert (first, hash(first), first.blueprint_id) == (second, hash(second), second.blueprint_id)


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"title": "t"}, {"tags": ["t"]}, {"sizes": {"h": 2}}, {"layouts": ["features"]}],
)
def test_other_content_other_id(change: dict[str, Any]) -> None:
    assert blueprint(LINEAR).blueprint_id != blueprint(LINEAR, **change).blueprint_id


def test_order_of_inputs_matters() -> None:
    one = ("a", "linear", ["x"], {"out": "in"})
    ids = {blueprint(one, ("c", "concat", inputs, {})).blueprint_id for inputs in (["a", "x"], ["x", "a"])}
    assert len(ids) == 2


def test_number_of_nodes_is_bounded() -> None:
    chain = [(f"n{i}", "relu", ["x" if i == 0 else f"n{i - 1}"], {}) for i in range(65)]
    assert blueprint(*chain[:64]).output == "n63"
    with pytest.raises(BlueprintError, match="at most 64 items"):
        blueprint(*chain)
