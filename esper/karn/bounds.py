"""What an invention may not exceed: its size, its cost, and how loud it is at birth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esper.blueprint import INPUT, Blueprint, Plan, PlannedNode, plan
from esper.messages import Slot

QUIET = (0.005, 0.2)
"""Least and most output of a new kernel, as the root mean square for standard normal input, by rule of thumb.

A kernel is blended in from a weight of zero, so the network is the same at birth whatever it gives. It must
be small all the same, as the blueprints that ship do (a last layer of gain 0.1), so that what training sees
when it is blended in is the host with little added (Zhang et al. 2019, Fixup, arXiv:1901.09321)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most nodes, nodes in a row, and trainable numbers of an invention; each inclusive."""

    nodes: int = 24
    depth: int = 16
    parameters: int = 1_000_000

    def allow(self, blueprint: Blueprint, slot: Slot) -> bool:
        """Whether ``blueprint``, which fits ``slot``, is within bounds and starts quiet."""
        if len(blueprint.nodes) > self.nodes or depth(blueprint) > self.depth:
            return False
        low, high = QUIET
        planned = plan(blueprint, slot)
        return parameters(planned) <= self.parameters and low <= loudness(planned) <= high


def depth(blueprint: Blueprint) -> int:
    """Nodes on the longest way from the input to the output."""
    longest = {INPUT: 0}
    for node in blueprint.nodes:
        longest[node.id] = 1 + max(longest[source] for source in node.inputs)
    return longest[blueprint.output]


def parameters(planned: Plan) -> int:
    """The trainable numbers of the network of ``planned``, without building it."""
    return sum(_parameters(node, planned.slot.layout == "channels") for node in planned.nodes)


def _parameters(node: PlannedNode, plane: bool) -> int:
    given = node.input_shapes[0].features
    if node.op in ("linear", "conv1d", "conv2d"):
        span = int(node.parameters.get("kernel", 1)) ** (2 if plane else 1)
        inputs = given // int(node.parameters.get("groups", 1)) * span
        return int(node.parameters["out"]) * (inputs + int(node.parameters["bias"]))
    return given * {"layer_norm": 2, "group_norm": 2, "batch_norm": 2, "rms_norm": 1, "scale": 1}.get(
        node.op, 0
    )


def loudness(planned: Plan) -> float:
    """Roughly the root mean square of the output at birth, for standard normal input.

    Every value is taken as independent and of mean 0: linear maps pass on their gain, norms give 1, sums add
    squares, products multiply, the mean over 5 x 5 positions leaves a fifth.
    """
    loud = {INPUT: 1.0}
    for node in planned.nodes:
        loud[node.id] = _loudness(node, [loud[source] for source in node.inputs])
    return loud[planned.blueprint.output]


_BY_OP: dict[str, Callable[[Sequence[float]], float]] = {
    "layer_norm": lambda _: 1.0,
    "rms_norm": lambda _: 1.0,
    "group_norm": lambda _: 1.0,
    "batch_norm": lambda _: 1.0,
    "sigmoid": lambda _: 0.5,
    "tanh": lambda given: min(1.0, given[0]),
    "sin": lambda given: min(1.0, given[0]),
    "relu": lambda given: 0.7 * given[0],
    "gelu": lambda given: 0.6 * given[0],
    "silu": lambda given: 0.6 * given[0],
    "global_pool": lambda given: 0.2 * given[0],
    "add": lambda given: math.hypot(*given),
    "mul": math.prod,
    "concat": max,
    "attention": lambda given: given[2],
}


def _loudness(node: PlannedNode, given: Sequence[float]) -> float:
    factor = float(
        node.parameters.get("gain", node.parameters.get("init", node.parameters.get("frequency", 1.0)))
    )
    rule = _BY_OP.get(node.op)
    return rule([abs(factor) * one for one in given]) if rule else abs(factor) * given[0]
