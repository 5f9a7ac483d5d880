"""From a blueprint to an eager network: built on the meta device, weighed, given weights, traced."""

from __future__ import annotations

import keyword
import math

import torch
from torch import Tensor, fx, nn

from esper.blueprint import INPUT, Blueprint, Plan, plan
from esper.messages import Slot
from esper.tezzeret.budget import Budget, Cost, count_parameters, measure
from esper.tezzeret.examples import input_shape
from esper.tezzeret.modules import FeatureWeight
from esper.tezzeret.ops import CONSTRUCTORS, Layer

_PLAN = "esper_plan"


def build(blueprint: Blueprint, slot: Slot, *, seed: int = 0, budget: Budget | None = None) -> fx.GraphModule:
    """``blueprint`` for ``slot`` as an eager float32 network on the CPU, in training mode.

    The network is a graph of torch.nn modules and torch functions. Its weights depend on the plan and on
    ``seed`` alone, and no global random state is touched. Raises ``BlueprintError`` where the blueprint does
    not fit the slot or would exceed ``budget``.
    """
    return build_plan(plan(blueprint, slot), seed=seed, budget=budget)


def build_plan(plan: Plan, *, seed: int = 0, budget: Budget | None = None) -> fx.GraphModule:
    """The network of ``plan``; see ``build``."""
    with torch.device("meta"):
        network = _Network(plan)
        _weigh(network, torch.empty(input_shape(plan.slot)), budget or Budget())
    network.to_empty(device="cpu")
    _initialise(network, seed)
    return _traced(network)


def unweighted(plan: Plan) -> fx.GraphModule:
    """The network of ``plan`` on the meta device, of any size; weights are to be assigned."""
    with torch.device("meta"):
        return _traced(_Network(plan))


def plan_of(network: nn.Module) -> Plan:
    """What ``network`` was built from; raises ``RuntimeError`` if it was not built here."""
    plan = getattr(network, "meta", {}).get(_PLAN)
    if not isinstance(plan, Plan):
        raise RuntimeError(f"a {type(network).__name__} was not built from a blueprint")
    return plan


def cost(plan: Plan) -> Cost:
    """What the network of ``plan`` costs, counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        network, given = _Network(plan), torch.empty(input_shape(plan.slot))
        return measure(network, lambda: network.values(given).values())


def _traced(network: _Network) -> fx.GraphModule:
    graph = fx.Tracer().trace(network)
    for node in graph.nodes:
        node.type = None  # fx keeps annotations as text, which TorchScript cannot read; none means Tensor
    traced = fx.GraphModule(network, graph, class_name="Kernel")
    traced.meta[_PLAN] = network.plan
    return traced


class _Network(nn.Module):
    """Runs the nodes of a plan in order; tracing unrolls the loop."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.layers: dict[str, Layer] = {}
        for node in plan.nodes:
            layer = CONSTRUCTORS[node.op](node, plan.slot.layout)
            self.layers[node.id] = layer
            if isinstance(layer, nn.Module):
                self.add_module(_attribute(node.id), layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.values(x)[self.plan.blueprint.output]

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """What each node makes of ``x``."""
        values = {INPUT: x}
        for node in self.plan.nodes:
            values[node.id] = self.layers[node.id](*(values[source] for source in node.inputs))
        return values


def _attribute(node_id: str) -> str:
    """The attribute that holds a node's module: its id, unless that name has a meaning in the module."""
    taken = keyword.iskeyword(node_id) or hasattr(fx.GraphModule, node_id) or node_id in ("self", "training")
    return f"{node_id}_" if taken else node_id


def _weigh(network: _Network, given: Tensor, budget: Budget) -> None:
    """Raises ``BlueprintError`` unless ``network`` is within ``budget``; both are on the meta device."""
    plan = network.plan
    budget.check("parameters", count_parameters(network), f"{plan.blueprint.where()} for {plan.slot}")
    cost = measure(network, lambda: network.values(given).values())
    for name in ("flops", "bytes"):
        budget.check(name, getattr(cost, name), f"{plan.blueprint.where()} for {plan.slot}")


def _initialise(network: _Network, seed: int) -> None:
    """Weights of mean 0 and variance ``gain**2 / fan_in`` (LeCun et al. 1998), biases 0, norms 1.

    A last layer of small ``gain`` makes a kernel that starts near zero, as residual branches should
    (Zhang et al. 2019, Fixup, arXiv:1901.09321), and still gets a gradient in every layer.
    """
    generator = torch.Generator().manual_seed(seed)
    gains = {node.id: float(node.parameters.get("gain", 1.0)) for node in network.plan.nodes}
    for node_id, layer in network.layers.items():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            deviation = gains[node_id] / math.sqrt(layer.weight[0].numel())
            nn.init.normal_(layer.weight, std=deviation, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d | FeatureWeight):
            layer.reset_parameters()
        elif isinstance(layer, nn.Module) and next(layer.parameters(), None) is not None:
            raise TypeError(f"no initial weights are defined for {type(layer).__name__}")
