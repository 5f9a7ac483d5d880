"""What counts as the same graph, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from esper.blueprint import parse_blueprint


def graph_id(nodes: dict[str, tuple[Any, ...]], sizes: dict[str, Any] | None = None, **more: Any) -> str:
    """The graph of ``id: (op, inputs, params)``, of which the last is the output."""
    data = {
        "version": 1,
        "name": "graph",
        "layouts": ["features"],
        "sizes": sizes or {},
        "nodes": [
            {"id": name, "op": op, "inputs": inputs.split(), "params": params[0] if params else {}}
            for name, (op, inputs, *params) in nodes.items()
        ],
        "output": list(nodes)[-1],
        **more,
    }
    return parse_blueprint(data).graph_id


LINEAR = {"out": "out"}
TWO = {"a": ("linear", "x", LINEAR), "b": ("linear", "x", LINEAR), "o": ("add", "a b")}


def test_a_graph_id_is_short_and_says_what_it_is() -> None:
    assert graph_id(TWO) == "graph_38625fc1ba89de72"


def test_names_of_nodes_do_not_count_even_where_they_change_the_order() -> None:
    other = {"z": ("linear", "x", LINEAR), "c": ("linear", "x", LINEAR), "o": ("add", "z c")}
    assert graph_id(other) == graph_id(TWO)


def test_two_nodes_that_do_the_same_are_not_one() -> None:
    """Two linear maps have weights of their own; one used twice has not."""
    assert graph_id({"a": ("linear", "x", LINEAR), "o": ("add", "a a")}) != graph_id(TWO)


def test_which_of_two_like_nodes_is_used_again_counts() -> None:
    first = {**TWO, "p": ("relu", "a"), "q": ("add", "o p")}
    second = {**TWO, "p": ("relu", "b"), "q": ("add", "o p")}
    assert graph_id(first) != graph_id(second)


def test_the_order_of_inputs_counts() -> None:
    nodes = {"a": ("relu", "x"), "b": ("tanh", "x")}
    assert graph_id({**nodes, "o": ("add", "a b")}) != graph_id({**nodes, "o": ("add", "b a")})


@pytest.mark.parametrize(
    ("sizes", "out"),
    [
        ({"h": "ceil(in/4)"}, "h"),
        ({"w": "ceil( in / 4 )"}, "w"),
        ({"b": "a", "a": "ceil(in/4)"}, "b"),
        ({"unused": 3}, "ceil(in/4)"),
    ],
)
def test_a_size_stands_for_its_expression(sizes: dict[str, Any], out: str) -> None:
    nodes = {"a": ("linear", "x", {"out": "ceil(in/4)"}), "o": ("linear", "a", LINEAR)}
    assert graph_id({**nodes, "a": ("linear", "x", {"out": out})}, sizes) == graph_id(nodes)


def test_a_number_in_a_size_is_not_that_word() -> None:
    assert graph_id({"o": ("linear", "x", {"out": 8})}) == graph_id(
        {"o": ("linear", "x", {"out": "h"})}, {"h": 8}
    )
    assert graph_id({"o": ("linear", "x", {"out": 8})}) != graph_id({"o": ("linear", "x", {"out": "8*in"})})


def test_layouts_tags_and_prose_do_not_count() -> None:
    more = {"layouts": ["tokens", "channels"], "tags": ["a"], "title": "T", "when": "W", "paper": "P"}
    assert graph_id(TWO, **more) == graph_id(TWO)


def test_sizes_that_double_each_other_do_not_double_the_work() -> None:
    sizes: dict[str, Any] = {"s0": "in"}
    for i in range(1, 16):
        sizes[f"s{i}"] = f"max({','.join([f's{i - 1}'] * 8)})"
    assert graph_id({"o": ("linear", "x", {"out": "s15"})}, sizes).startswith("graph_")
