"""Random valid graphs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from esper.blueprint import OPS, Blueprint, parse_blueprint
from esper.messages import Layout, Slot

PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"out": "h"},
    "conv2d": {"out": "h", "kernel": 3},
    "conv1d": {"out": "h", "kernel": 3},
    "slice": {"start": 0, "size": "h"},
}
REGULAR = [name for name in sorted(OPS) if name not in ("pool", "global_pool", "attention_pool")]
"""Ops that keep positions and, with the parameters above, ``h`` features (concat aside)."""


@st.composite
def blueprints(draw: st.DrawFn) -> tuple[Blueprint, Slot]:
    """A graph whose inner nodes all have ``h`` features, for a random slot."""
    layout: Layout = draw(st.sampled_from(["features", "tokens", "channels"]))
    slot = Slot(layout, draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 3])))
    if layout != "channels":
        slot = Slot(layout, slot.in_features, slot.out_features)
    nodes = [
        {"id": "start", "op": "pool", "inputs": ["x"], "params": {"stride": "stride"}},
        {"id": "n0", "op": "linear", "inputs": ["start"], "params": {"out": "h"}},
    ]
    words = [name for name in REGULAR if layout in OPS[name].layouts and name != "concat"]
    for index in range(1, draw(st.integers(1, 6))):
        op = draw(st.sampled_from(words))
        before = [f"n{i}" for i in range(index)]
        inputs = [draw(st.sampled_from(before)) for _ in range(OPS[op].inputs[0])]
        nodes.append({"id": f"n{index}", "op": op, "inputs": inputs, "params": PARAMETERS.get(op, {})})
    used = {source for node in nodes for source in node["inputs"]}
    loose = [node["id"] for node in nodes if node["id"] not in used]
    source = loose[0]
    if len(loose) > 1:
        nodes.append({"id": "all", "op": "concat", "inputs": loose})
        source = "all"
    nodes.append({"id": "end", "op": "linear", "inputs": [source], "params": {"out": "out"}})
    data = {
        "version": 1,
        "name": "random",
        "layouts": [layout],
        "sizes": {"h": draw(st.sampled_from(["1 + ceil(in / 2)", "in + out", "max(2, out - 1)", "3"]))},
        "nodes": nodes,
        "output": "end",
    }
    return parse_blueprint(data), slot
