"""What builds each op of the blueprint language: a torch.nn module, or a function of tensors.

One entry an op, under the same word as in ``esper.blueprint.ops`` (a test holds the two tables together).
Nothing is looked up by name in torch: what is not in this table cannot be built.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.blueprint import PlannedNode
from esper.messages import Layout
from esper.tezzeret import modules
from esper.tezzeret.modules import feature_axis, position_axes

Layer = Callable[..., Tensor]
Constructor = Callable[[PlannedNode, Layout], Layer]


def _features(node: PlannedNode) -> int:
    return node.input_shapes[0].features


def _linear(node: PlannedNode, layout: Layout) -> nn.Module:
    out, bias = int(node.parameters["out"]), bool(node.parameters["bias"])
    if layout == "channels":
        return nn.Conv2d(_features(node), out, 1, bias=bias)
    return nn.Linear(_features(node), out, bias=bias)


def _conv(node: PlannedNode, layout: Layout) -> nn.Module:
    kernel, dilation = int(node.parameters["kernel"]), int(node.parameters["dilation"])
    cls = nn.Conv2d if layout == "channels" else modules.TimeConv
    return cls(
        _features(node),
        int(node.parameters["out"]),
        kernel,
        stride=int(node.parameters.get("stride", 1)),
        padding=dilation * (kernel - 1) // 2,
        dilation=dilation,
        groups=int(node.parameters["groups"]),
        bias=bool(node.parameters["bias"]),
    )


def _layer_norm(node: PlannedNode, layout: Layout) -> nn.Module:
    cls = modules.ChannelLayerNorm if layout == "channels" else nn.LayerNorm
    return cls(_features(node))


def _sin(node: PlannedNode, _: Layout) -> Layer:
    frequency = float(node.parameters["frequency"])
    return lambda x: torch.sin(x * frequency)


def _slice(node: PlannedNode, layout: Layout) -> Layer:
    start, size = int(node.parameters["start"]), int(node.parameters["size"])
    return lambda x: x.narrow(feature_axis(layout), start, size)


def _shuffle(node: PlannedNode, layout: Layout) -> Layer:
    groups = int(node.parameters["groups"])
    if layout == "channels":
        return lambda x: torch.unflatten(x, 1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return lambda x: torch.unflatten(x, -1, (groups, -1)).transpose(-2, -1).flatten(-2)


def _pool(node: PlannedNode, _: Layout) -> Layer:
    stride = int(node.parameters["stride"])
    if stride == 1:
        return lambda x: x
    # ceil_mode gives ceil(H / stride), as a padded convolution of that stride does.
    return nn.AvgPool2d(stride, stride, ceil_mode=True)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Constructor:
    def apply(*inputs: Tensor) -> Tensor:
        total = inputs[0]
        for each in inputs[1:]:
            total = function(total, each)
        return total

    return lambda _node, _layout: apply


def _function(function: Layer) -> Constructor:
    return lambda _node, _layout: function


CONSTRUCTORS: dict[str, Constructor] = {
    "linear": _linear,
    "conv2d": _conv,
    "conv1d": _conv,
    "layer_norm": _layer_norm,
    "rms_norm": lambda node, layout: modules.RMSNorm(_features(node), layout),
    "group_norm": lambda node, _layout: nn.GroupNorm(int(node.parameters["groups"]), _features(node)),
    "batch_norm": lambda node, _layout: nn.BatchNorm2d(_features(node)),
    "relu": _function(F.relu),
    "gelu": _function(F.gelu),
    "silu": _function(F.silu),
    "tanh": _function(torch.tanh),
    "sigmoid": _function(torch.sigmoid),
    "sin": _sin,
    "add": _fold(torch.add),
    "mul": _fold(torch.mul),
    "concat": lambda _node, layout: lambda *inputs: torch.cat(inputs, dim=feature_axis(layout)),
    "slice": _slice,
    "shuffle": _shuffle,
    "scale": lambda node, layout: modules.FeatureWeight(
        _features(node), float(node.parameters["init"]), layout
    ),
    "dropout": lambda node, _layout: nn.Dropout(float(node.parameters["p"])),
    "pool": _pool,
    "global_pool": lambda _node, layout: lambda x: x.mean(position_axes(layout), keepdim=True),
    "attention": lambda node, layout: modules.Attention(int(node.parameters["heads"]), layout),
    "attention_pool": lambda _node, layout: modules.AttentionPool(layout),
    "fourier": lambda _node, layout: modules.Fourier(layout),
}
