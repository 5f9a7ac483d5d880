"""Graphs drawn as text and as pictures: everything is there, nothing overlaps, and it fits."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from esper.blueprint import Blueprint, load_blueprints, parse_blueprint, plan
from esper.blueprint.drawing import draw
from esper.blueprint.layers import place
from esper.blueprint.picture import picture
from esper.messages import Slot

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [b for file in sorted((ROOT / "blueprints").glob("*.yaml")) for b in load_blueprints(file)]
SVG = "{http://www.w3.org/2000/svg}"


def graph(nodes: list[dict[str, Any]], output: str, **more: Any) -> Blueprint:
    return parse_blueprint(
        {"version": 1, "name": "graph", "layouts": ["features"], "nodes": nodes, "output": output, **more}
    )


def tangle(seed: int, count: int = 30) -> Blueprint:
    """A random graph of ``count`` nodes."""
    order = random.Random(seed)
    names, nodes = ["x"], []
    for index in range(count - 1):
        op, inputs = order.choice([("linear", 1), ("relu", 1), ("add", 2), ("mul", 3)])
        node = {"id": f"node{index}", "op": op, "inputs": [order.choice(names[-6:]) for _ in range(inputs)]}
        nodes.append({**node, "params": {"out": 8}} if op == "linear" else node)
        names.append(f"node{index}")
    loose = [name for name in names[1:] if not any(name in node["inputs"] for node in nodes)]
    while len(loose) > 8:
        nodes.append({"id": f"sum{len(nodes)}", "op": "add", "inputs": loose[:8]})
        loose = [*loose[8:], nodes[-1]["id"]]
    nodes.append({"id": "last", "op": "concat", "inputs": loose if len(loose) > 1 else loose * 2})
    return graph(nodes, "last")


def wide() -> Blueprint:
    """Forty values at once, long names, and nodes with eight long inputs."""
    long = "a_name_of_thirty_two_letters_"
    nodes: list[dict[str, Any]] = [
        {"id": f"{long}{i:02}", "op": "linear", "inputs": ["x"], "params": {"out": 8}} for i in range(40)
    ]
    sums = [
        {"id": f"s{j}", "op": "add", "inputs": [f"{long}{i:02}" for i in range(8 * j, 8 * j + 8)]}
        for j in range(5)
    ]
    last = {"id": "o", "op": "concat", "inputs": [f"s{j}" for j in range(5)]}
    return graph([*nodes, *sums, last], "o")


GRAPHS = [*SHIPPED, *map(tangle, range(5)), wide()]


def test_a_gate_is_drawn_beside_what_it_gates() -> None:
    (blueprint,) = [b for b in SHIPPED if b.name == "squeeze_excite"]
    assert draw(blueprint) == [
        "○    x",
        "●    spatial   conv2d(x) out=out gain=0.1 stride=stride",
        "├─╮",
        "│ ●  squeezed  global_pool(spatial)",
        "│ ●  down      linear(squeezed) out=h",
        "│ ●  bend      gelu(down)",
        "│ ●  up        linear(bend) out=out",
        "│ ●  gate      sigmoid(up)",
        "├─╯",
        "◉    gated     mul(spatial, gate)",
        "h = max(4,ceil(out/4))",
    ]


def test_rails_that_are_crossed_go_on() -> None:
    nodes = [
        {"id": "a", "op": "relu", "inputs": ["x"]},
        {"id": "b", "op": "gelu", "inputs": ["x"]},
        {"id": "c", "op": "add", "inputs": ["a", "x"]},
        {"id": "d", "op": "add", "inputs": ["c", "b", "x"]},
    ]
    assert draw(graph(nodes, "d")) == [
        "○      x",
        "├─╮",
        "│ ●    a  relu(x)",
        "├─┤",
        "│ ●    c  add(a, x)",
        "├─│─╮",
        "│ │ ●  b  gelu(x)",
        "├─┴─╯",
        "◉      d  add(c, b, x)",
    ]


def test_ascii_says_the_same_and_a_plan_adds_numbers() -> None:
    (blueprint,) = [b for b in SHIPPED if b.name == "ghost"]
    lines = draw(blueprint, plan(blueprint, Slot("channels", 16, 8, 2)), unicode=False)
    assert "\n".join(lines).isascii()
    assert lines[1] == "*    primary  conv2d(x) out=h bias=false stride=stride -> 4, 1/2 of space"
    assert lines[4:7] == ["+-+", "| *  derived  conv2d(bend) out=h groups=h -> 4, 1/2 of space", "+-+"]
    assert lines[-1] == "h = ceil(out/2) = 4"


@pytest.mark.parametrize("blueprint", GRAPHS, ids=lambda b: b.name)
@pytest.mark.parametrize("width", [80, 120])
def test_every_node_has_a_line_within_the_width(blueprint: Blueprint, width: int) -> None:
    lines = draw(blueprint, width=width)
    assert max(map(len, lines)) <= width
    marked = [line for line in lines if set("●◉") & set(line)]
    assert len(marked) == len(blueprint.nodes)
    for node in blueprint.nodes:
        assert sum(node.id in line and bool(set("●◉") & set(line.split(node.id)[0])) for line in marked) >= 1


@pytest.mark.parametrize("blueprint", GRAPHS, ids=lambda b: b.name)
def test_no_boxes_of_a_picture_overlap_and_all_are_on_the_page(blueprint: Blueprint) -> None:
    root = ET.fromstring(picture(blueprint))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [
        tuple(float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        for box in root.iter(f"{SVG}rect")
        if box.attrib["class"] != "page"
    ]
    assert len(boxes) == len(blueprint.nodes) + 1
    for index, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        for other_x, other_y, other_w, other_h in boxes[:index]:
            apart_x = x >= other_x + other_w or other_x >= x + w
            assert apart_x or y >= other_y + other_h or other_y >= y + h
    edges = [path for path in root.iter(f"{SVG}path") if path.attrib["class"] == "edge"]
    assert len(edges) == sum(len(node.inputs) for node in blueprint.nodes)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {node.id for node in blueprint.nodes} <= {*texts}


def test_edges_run_down_between_boxes() -> None:
    """An edge that skips a layer keeps a place of its own there."""
    inputs = {"x": [], "a": ["x"], "b": ["a"], "c": ["b", "x"]}
    placed = place(inputs, dict.fromkeys(inputs, 40.0), 10.0)
    path = placed.edges["c", 1]
    assert [point.layer for point in path] == [0, 1, 2, 3]
    for bend, name in zip(path[1:3], ("a", "b"), strict=True):
        assert abs(bend.x - placed.nodes[name].x) >= 20 + 10 - 1e-6
    for upper, lower in pairwise(path):
        assert upper.layer + 1 == lower.layer


def test_a_title_cannot_break_out_of_a_picture() -> None:
    node = {"id": "a", "op": "relu", "inputs": ["x"]}
    text = picture(graph([node], "a", title="</title><script>alert(1)</script> & more"))
    root = ET.fromstring(text)
    assert root.find(f"{SVG}title").text == "</title><script>alert(1)</script> & more"  # type: ignore[union-attr]
    assert "<script" not in text


def test_a_picture_has_colours_for_dark_pages() -> None:
    text = picture(SHIPPED[0])
    light, _, dark = text.partition("@media (prefers-color-scheme: dark)")
    for part in (".page", ".box", ".end", ".edge", ".head", ".id", ".op"):
        assert f"{part} {{" in light
        assert f"{part} {{" in dark
