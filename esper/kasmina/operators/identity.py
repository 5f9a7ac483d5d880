"""Blocks that start as the identity: a fresh residual one, and the copy of one that is there.

A residual block is the identity when the last layer of its branch is zero (Goyal et al. 2017, arXiv
1706.02677, section 5.1; Zhang et al. 2019, arXiv 1901.09321). Its first layers are not zero, so that layer
gets a gradient from the first step on, and the units of the block differ.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from itertools import combinations

import torch
from torch import Tensor, nn

from esper.kasmina.layer import SeededLayer
from esper.kasmina.operators.running import undisturbed
from esper.messages import Layout

MOST_EXITS = 16
"""How many layers of a block, counted from its last, are tried as ends of its branches."""


class Residual(nn.Module):
    """``x + branch(x)``; shapes are those of ``x``."""

    def __init__(self, branch: nn.Sequential) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """A tensor of the shape of ``x``."""
        y: Tensor = x + self.branch(x)
        return y


def residual_block(
    layout: Layout, features: int, hidden: int, like: Tensor, generator: torch.Generator | None = None
) -> Residual:
    """A residual block of zero effect, of the device and dtype of ``like``; no other randomness is drawn on.

    ``channels``: 3x3 convolution, batch norm, ReLU, 3x3 convolution (He et al. 2016, arXiv 1512.03385).
    ``features``, ``tokens``: layer norm (not of a single feature), linear, GELU, linear, at each position.
    Weights have mean 0 and variance 2 / fan-in (He et al. 2015, arXiv 1502.01852), the last layer is zero.
    """
    branch: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.device("meta"):
        if layout == "channels":
            branch["expand"] = nn.Conv2d(features, hidden, 3, padding=1, bias=False)
            branch["norm"] = nn.BatchNorm2d(hidden)
            branch["act"] = nn.ReLU()
            branch["project"] = nn.Conv2d(hidden, features, 3, padding=1)
        else:
            if features > 1:
                branch["norm"] = nn.LayerNorm(features)
            branch["expand"] = nn.Linear(features, hidden)
            branch["act"] = nn.GELU()
            branch["project"] = nn.Linear(hidden, features)
    block = Residual(nn.Sequential(branch)).to(like.dtype).to_empty(device=like.device)
    _initialise(branch, generator)
    if like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        block = block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
    return block


@torch.no_grad()
def _initialise(branch: OrderedDict[str, nn.Module], generator: torch.Generator | None) -> None:
    expand, project = branch["expand"], branch["project"]
    assert isinstance(expand, nn.Linear | nn.Conv2d)
    assert isinstance(project, nn.Linear | nn.Conv2d)
    fan_in = expand.weight[0].numel()
    # Drawn on the CPU in float32, whatever the block's device and dtype: the same everywhere.
    expand.weight.copy_(torch.randn(expand.weight.shape, generator=generator) * math.sqrt(2.0 / fan_in))
    if expand.bias is not None:
        expand.bias.copy_((torch.rand(expand.bias.shape, generator=generator) * 2 - 1) / math.sqrt(fan_in))
    project.weight.zero_()
    assert project.bias is not None
    project.bias.zero_()
    norm = branch.get("norm")
    if isinstance(norm, nn.BatchNorm2d | nn.LayerNorm):
        norm.reset_parameters()


def bare_copy(block: nn.Module) -> nn.Module:
    """A deep copy of ``block`` without the wrapping of its layers and what their seeds hold."""
    with torch.no_grad():
        twin = copy.deepcopy(block)
    while isinstance(twin, SeededLayer):
        twin = twin.host
    for parent in list(twin.modules()):
        for key, child in list(parent._modules.items()):
            while isinstance(child, SeededLayer):
                child = child.host
                parent._modules[key] = child
    return twin


def identity_copy(block: nn.Module, inputs: list[Tensor]) -> nn.Module | None:
    """A copy of ``block`` that gives each of ``inputs`` unchanged in eval and train mode, or None.

    One, two or three layers of the copy are set to zero, the fewest that do it and of those the latest: the
    last norm of a block of convolutions, the output projections of a transformer's. Where the output of the
    block goes through a ReLU, only inputs that are not negative can come out unchanged.
    """
    try:
        exits = _exits(bare_copy(block), inputs[0])
    except (RuntimeError, ValueError, TypeError, AssertionError):
        return None  # it does not take in what it gives
    for count in (1, 2, 3):
        for chosen in combinations(exits, count):
            twin = bare_copy(block)
            for name in chosen:
                _zero(twin.get_submodule(name))
            if _is_identity(twin, inputs):
                return twin
    return None


def _exits(block: nn.Module, x: Tensor) -> list[str]:
    """Names of layers with weights whose output has the block's shape, those called last first."""
    called: list[str] = []
    handles = []
    for name, module in block.named_modules():

        def note(_: nn.Module, __: object, output: object, name: str = name) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.shape == x.shape:
                called.append(name)

        if (
            isinstance(module, nn.MultiheadAttention)
            or next(module.parameters(recurse=False), None) is not None
        ):
            handles.append(module.register_forward_hook(note))
    try:
        with undisturbed(block, training=False):
            block(x)
    finally:
        for handle in handles:
            handle.remove()
    latest_first = list(dict.fromkeys(reversed(called)))
    return latest_first[:MOST_EXITS]


def _zero(module: nn.Module) -> None:
    """Set the weights of one layer to zero: of attention those of its output projection."""
    layer = module.out_proj if isinstance(module, nn.MultiheadAttention) else module
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter.zero_()


def _is_identity(block: nn.Module, inputs: list[Tensor]) -> bool:
    for training in (False, True):
        for x in inputs:
            with undisturbed(block, training=training):
                y = block(x)
            if not isinstance(y, Tensor) or not torch.equal(y, x):
                return False
    return True
