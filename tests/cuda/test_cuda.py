"""What must hold on a GPU too. Not part of the test command: run it where there is one, with
``pytest tests/cuda``; it fails where there is none.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina import graft, pop_faults, seeded_layers, wrap
from esper.messages import SeedState
from esper.models.resnet import ResNet

DEVICE = "cuda"


def step(model: nn.Module, x: Tensor, y: Tensor, *, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
        output = model(x)
        loss = F.cross_entropy(output, y)
    loss.backward()
    gradients = {n.replace(".host", ""): p.grad for n, p in model.named_parameters() if p.grad is not None}
    buffers = {n.replace(".host", ""): b for n, b in model.named_buffers()}
    return output.detach(), {**gradients, **buffers}


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    torch.backends.cudnn.deterministic = True
    bare = ResNet(width=8).to(DEVICE)
    wrapped = copy.deepcopy(bare)
    x, y = torch.randn(16, 1, 28, 28, device=DEVICE), torch.randint(10, (16,), device=DEVICE)
    wrap(wrapped, x[:2])
    return bare, wrapped, x, y


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_dormant_is_bit_identical(
    networks: tuple[nn.Module, nn.Module, Tensor, Tensor], train: bool, autocast: bool
):
    bare, wrapped, x, y = networks
    expected = step(bare.train(train), x, y, autocast=autocast)
    found = step(wrapped.train(train), x, y, autocast=autocast)
    assert torch.equal(expected[0], found[0])
    assert expected[1].keys() == found[1].keys()
    assert all(torch.equal(expected[1][name], found[1][name]) for name in expected[1])


def test_birth_changes_nothing(networks: tuple[nn.Module, nn.Module, Tensor, Tensor]):
    bare, wrapped, x, _ = networks
    layer = seeded_layers(wrapped)["stage1.0.conv1"]
    graft(layer, 0, nn.Conv2d(2, 2, 3, padding=1), kernel_id="k", site="parallel", blend="residual")
    layer.seed(0).restore(SeedState.BLENDING)
    assert torch.equal(bare.eval()(x), wrapped.eval()(x))


def test_a_non_finite_kernel_is_contained_without_a_synchronisation(
    networks: tuple[nn.Module, nn.Module, Tensor, Tensor],
):
    _, wrapped, x, y = networks
    layer = seeded_layers(wrapped)["stage1.0.conv1"]
    kernel = nn.Conv2d(2, 2, 3, padding=1)
    graft(layer, 0, kernel, kernel_id="k", site="parallel", blend="residual")
    layer.seed(0).restore(SeedState.BLENDING)
    with torch.no_grad():
        kernel.weight.fill_(float("nan"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = F.cross_entropy(wrapped(x), y)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [fault.kind for fault in pop_faults(wrapped)] == ["non-finite"]
    assert all(
        torch.isfinite(p.grad).all()
        for p in wrapped.parameters()
        if p.grad is not None and p is not kernel.weight
    )
