"""Every op: in both tables, of the shape its rule says, scriptable, traceable, and doing what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from esper.blueprint import OPS, Blueprint, parse_blueprint
from esper.messages import Layout, Slot
from esper.tezzeret.builder import build
from esper.tezzeret.examples import example
from esper.tezzeret.ops import CONSTRUCTORS
from esper.tezzeret.torchscript import TorchScriptTarget

torch.set_num_threads(1)

PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"out": 6},
    "conv2d": {"out": 6, "kernel": 5, "dilation": 2, "groups": 2},
    "conv1d": {"out": 6, "kernel": 5, "dilation": 2, "groups": 2},
    "group_norm": {"groups": 2},
    "slice": {"start": 1, "size": 2},
    "shuffle": {"groups": 2},
    "attention": {"heads": 2},
    "sin": {"frequency": 3.0},
    "dropout": {"p": 0.5},
}
CASES = [(name, layout) for name, op in OPS.items() for layout in op.layouts]


def one_op(name: str, layout: Layout, **params: Any) -> Blueprint:
    """A linear map of each input, op ``name`` on them, and a linear map to the output."""
    count = OPS[name].inputs[0]
    widths = [4, 1] if name == "attention_pool" else [4] * count
    nodes = [
        {"id": f"in{i}", "op": "linear", "inputs": ["x"], "params": {"out": width}}
        for i, width in enumerate(widths)
    ]
    chosen = {**PARAMETERS.get(name, {}), **params}
    nodes.append({"id": "it", "op": name, "inputs": [f"in{i}" for i in range(count)], "params": chosen})
    nodes.append({"id": "whole", "op": "linear", "inputs": ["x"], "params": {"out": 4}})
    nodes.append({"id": "last", "op": "linear", "inputs": ["it"], "params": {"out": "out"}})
    nodes.append({"id": "wide", "op": "linear", "inputs": ["whole"], "params": {"out": "out"}})
    nodes.append({"id": "sum", "op": "add", "inputs": ["wide", "last"]})  # a pooled op broadcasts here
    data = {"version": 1, "name": "one", "layouts": [layout], "nodes": nodes, "output": "sum"}
    return parse_blueprint(data)


def test_both_tables_hold_the_same_words() -> None:
    assert CONSTRUCTORS.keys() == OPS.keys()


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_op_scripts_traces_and_is_agnostic_to_size(name: str, layout: Layout) -> None:
    slot = Slot(layout, 5, 3)
    network = build(one_op(name, layout), slot).eval()
    program = TorchScriptTarget().compile(network)
    for batch, extent in ((2, 8), (3, 5), (1, 4)):
        x = example(slot, batch, extent)
        made = network(x)
        assert made.shape == (*x.shape[:-1], 3) if layout != "channels" else (batch, 3, extent, extent)
        torch.testing.assert_close(program(x), made)
        torch.testing.assert_close(fx.symbolic_trace(network)(x), made)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_network_is_plain_torch(name: str, layout: Layout) -> None:
    network = build(one_op(name, layout), Slot(layout, 5, 3))
    for module in list(network.modules())[1:]:
        assert type(module).__module__.startswith("torch.nn")
    for node in network.graph.nodes:
        if node.op == "call_function":
            assert "esper" not in str(getattr(node.target, "__module__", ""))


def alone(name: str, layout: Layout, features: int = 4, **params: Any) -> Any:
    """Op ``name`` by itself, as a function of its input."""
    count = OPS[name].inputs[0]
    node = {"id": "it", "op": name, "inputs": ["x"] * count, "params": params}
    data = {"version": 1, "name": "one", "layouts": [layout], "nodes": [node], "output": "it"}
    return build(parse_blueprint(data), Slot(layout, features, features, params.get("stride", 1))).eval()


def test_layer_norm_of_channels_is_per_position() -> None:
    x = torch.randn(2, 4, 3, 5)
    wanted = F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(alone("layer_norm", "channels")(x), wanted)


def test_rms_norm_has_unit_root_mean_square() -> None:
    for layout, x, axis in (("features", torch.randn(6, 4), -1), ("channels", torch.randn(2, 4, 3, 3), 1)):
        made = alone("rms_norm", layout)(x)
        torch.testing.assert_close(
            made.square().mean(axis), torch.ones_like(made.mean(axis)), rtol=1e-4, atol=1e-4
        )


def test_attention_over_space_is_that_over_tokens() -> None:
    x = torch.randn(2, 4, 3, 5)
    over_space = alone("attention", "channels", heads=2)(x)
    over_tokens = alone("attention", "tokens", heads=2)(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(over_space.flatten(2).transpose(1, 2), over_tokens)
    single = F.scaled_dot_product_attention(*[x.flatten(2).transpose(1, 2)] * 3)
    torch.testing.assert_close(alone("attention", "tokens")(x.flatten(2).transpose(1, 2)), single)


def test_attention_pool_is_a_weighted_mean() -> None:
    x = torch.randn(2, 7, 1)
    data = {
        "version": 1,
        "name": "pool",
        "layouts": ["tokens"],
        "nodes": [
            {"id": "mean", "op": "attention_pool", "inputs": ["x", "x"]},
            {"id": "sum", "op": "add", "inputs": ["x", "mean"]},
        ],
        "output": "sum",
    }
    made = build(parse_blueprint(data), Slot("tokens", 1, 1))(x) - x
    torch.testing.assert_close(made, ((x * x.softmax(1)).sum(1, keepdim=True)).expand_as(x))


def test_fourier_is_the_real_unitary_transform() -> None:
    x = torch.randn(2, 6, 4)
    made = alone("fourier", "tokens")(x)
    torch.testing.assert_close(made, torch.fft.fft2(x, norm="ortho").real)
    half = x.to(torch.bfloat16)
    assert alone("fourier", "tokens")(half).dtype == torch.bfloat16


def test_shuffle_interleaves_groups() -> None:
    x = torch.arange(6.0).reshape(1, 6)
    assert alone("shuffle", "features", 6, groups=2)(x).tolist() == [[0, 3, 1, 4, 2, 5]]
    image = x.reshape(1, 6, 1, 1)
    assert alone("shuffle", "channels", 6, groups=2)(image).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("extent", [1, 2, 5, 7, 8, 9])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_strided_ops_round_up_as_a_padded_convolution_does(extent: int, stride: int) -> None:
    x = torch.randn(2, 4, extent, extent)
    wanted = torch.nn.Conv2d(4, 4, 3, stride=stride, padding=1)(x).shape
    assert alone("pool", "channels", stride=stride)(x).shape == wanted
    for kernel in (1, 3, 7):
        assert alone("conv2d", "channels", out=4, kernel=kernel, stride=stride)(x).shape == wanted


def test_conv1d_is_over_time() -> None:
    network = alone("conv1d", "tokens", kernel=3, groups=4, out=4)
    x = torch.zeros(1, 9, 4)
    x[0, 4, 2] = 1.0
    touched: Tensor = network(x)[0].abs() > 0
    assert touched.nonzero().tolist() == [[3, 2], [4, 2], [5, 2]]
