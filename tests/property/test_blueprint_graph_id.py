"""The hash over the graph alone: names and order never change it; ops, parameters and edges always do."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

from blueprint_graphs import blueprints
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esper.blueprint import OPS, Blueprint, parse_blueprint
from esper.blueprint.ops import Flag, Real
from esper.errors import BlueprintError
from esper.messages import Slot

Case = tuple[Blueprint, Slot]


def data_of(blueprint: Blueprint) -> dict[str, Any]:
    return blueprint.model_dump(mode="json")


def renamed(data: dict[str, Any], order: random.Random) -> dict[str, Any]:
    """The same graph: other names for nodes and sizes, another order, other prose."""
    names = [node["id"] for node in data["nodes"]]
    fresh = [f"z{i}" for i in range(len(names))]
    order.shuffle(fresh)
    new = {"x": "x", **dict(zip(names, fresh, strict=True))}
    nodes = [
        {
            **node,
            "id": new[node["id"]],
            "inputs": [new[source] for source in node["inputs"]],
            "params": {
                name: "width" if value == "h" else value for name, value in sorted(node["params"].items())
            },
        }
        for node in data["nodes"]
    ]
    order.shuffle(nodes)
    prose = {"name": "another", "title": "Another", "tags": ["other"], "paper": "None"}
    sizes = {"width": data["sizes"]["h"], "unused": 3}
    return {**data, **prose, "sizes": sizes, "nodes": nodes, "output": new[data["output"]]}


@settings(max_examples=100, deadline=None)
@given(blueprints(), st.randoms(use_true_random=False))
def test_names_and_order_do_not_count(case: Case, order: random.Random) -> None:
    blueprint, _ = case
    other = parse_blueprint(renamed(data_of(blueprint), order))
    assert other.graph_id == blueprint.graph_id
    assert other.blueprint_id != blueprint.blueprint_id


@settings(max_examples=100, deadline=None)
@given(blueprints(), st.data())
def test_another_op_counts(case: Case, data: st.DataObject) -> None:
    blueprint, _ = case
    changed = data_of(blueprint)
    node = data.draw(st.sampled_from(changed["nodes"]))
    others = [
        name
        for name, op in OPS.items()
        if name != node["op"]
        and op.inputs == OPS[node["op"]].inputs
        and set(blueprint.layouts) <= {*op.layouts}
    ]
    assume(others)
    node["op"] = data.draw(st.sampled_from(others))
    wanted = OPS[node["op"]].parameters
    node["params"] = {name: 3 for name, parameter in wanted.items() if parameter.default is None}
    assert parse_blueprint(changed).graph_id != blueprint.graph_id


@settings(max_examples=100, deadline=None)
@given(blueprints(), st.data())
def test_another_parameter_counts(case: Case, data: st.DataObject) -> None:
    blueprint, _ = case
    changed = data_of(blueprint)
    node = data.draw(st.sampled_from([node for node in changed["nodes"] if node["params"]]))
    name = data.draw(st.sampled_from(sorted(node["params"])))
    parameter, value = OPS[node["op"]].parameters[name], node["params"][name]
    if isinstance(parameter, Flag):
        node["params"][name] = not value
    elif isinstance(parameter, Real):
        node["params"][name] = parameter.low if value != parameter.low else parameter.high
    else:
        node["params"][name] = "in+7" if value != "in+7" else 7
    assert parse_blueprint(changed).graph_id != blueprint.graph_id


@settings(max_examples=30, deadline=None)
@given(blueprints())
def test_another_edge_counts(case: Case) -> None:
    blueprint, _ = case
    names = ["x", *(node.id for node in blueprint.nodes)]
    for place, node in enumerate(blueprint.nodes):
        for at in range(len(node.inputs)):
            for source in names:
                changed = data_of(blueprint)
                changed["nodes"][place]["inputs"][at] = source
                with suppress(BlueprintError):  # a cycle, or a node that nothing uses any more
                    graph = parse_blueprint(changed).graph_id
                    assert (graph == blueprint.graph_id) == (source == node.inputs[at])


@settings(max_examples=50, deadline=None)
@given(blueprints())
def test_another_size_counts(case: Case) -> None:
    changed = data_of(case[0])
    changed["sizes"]["h"] = "in+17"
    assert parse_blueprint(changed).graph_id != case[0].graph_id
