"""A blueprint to begin from."""

from __future__ import annotations

from esper.blueprint.reading import parse_blueprint
from esper.messages import Layout

_HEAD = """\
# A blueprint: a small graph that is built for every slot that it fits. docs/blueprints.md tells all of it.
version: 1
name: {name}
title: A new block
when: "When does it help? One line for whoever looks through the library."
paper: "Where is it from? Authors, year, title."
tags: [{layout}]

# What it runs on. features: the last axis; tokens: a sequence; channels: images.
layouts: [{layout}]

# Sizes by name, worked out for each slot from in, out and stride. Numbers, + - * / //, ceil, floor, min, max.
sizes:
  h: ceil(max(in, out) / 2)

# Each node applies an op to x (the input) or to other nodes, in any order.
nodes:
"""
_NODES = {
    "features": """\
  - {id: down, op: linear, inputs: [x], params: {out: h}}
  - {id: bend, op: gelu, inputs: [down]}
""",
    "tokens": """\
  - {id: down, op: linear, inputs: [x], params: {out: h}}
  - {id: mixed, op: conv1d, inputs: [down], params: {out: h, kernel: 3, groups: h}}
  - {id: bend, op: gelu, inputs: [mixed]}
""",
    "channels": """\
  # Somewhere on the way, space must shrink by the slot's stride.
  - {id: spatial, op: conv2d, inputs: [x], params: {out: h, kernel: 3, stride: stride, bias: false}}
  - {id: normed, op: batch_norm, inputs: [spatial]}
  - {id: bend, op: gelu, inputs: [normed]}
""",
}
_TAIL = """\
  # The last map makes what the slot wants; a small gain lets the kernel begin close to zero.
  - {id: up, op: linear, inputs: [bend], params: {out: out, gain: 0.1}}
output: up
"""


def template(name: str, layout: Layout) -> str:
    """YAML, with comments, of a valid blueprint; raises ``BlueprintError`` for a ``name`` that is none."""
    parse_blueprint({"version": 1, "name": name, "layouts": [layout], "output": "up",
                     "nodes": [{"id": "up", "op": "relu", "inputs": ["x"]}]})  # fmt: skip
    return _HEAD.format(name=name, layout=layout) + _NODES[layout] + _TAIL
