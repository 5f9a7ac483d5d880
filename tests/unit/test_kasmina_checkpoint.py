"""State, copies and restored seeds of a grown network, and kernels that are TorchScript."""

from __future__ import annotations

import copy
import io
import json
import warnings
from dataclasses import asdict

import pytest
import torch
from kasmina_support import grow, kernel_for, to_blending
from torch import nn

from esper.errors import GraftError
from esper.kasmina import SeedRecord, graft, pop_faults, restore_seeds, seed_records, seeded_layers, wrap
from esper.messages import SeedState
from esper.models.resnet import ResNet

X = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
LAYERS = ("stage1.0.conv1", "stage2.0.conv1", "head")


def build() -> nn.Module:
    torch.manual_seed(0)
    model = ResNet(width=4)
    wrap(model, X, include=LAYERS)
    return model


def grown() -> tuple[nn.Module, dict[str, nn.Module]]:
    """A network with seeds in several states, and fresh modules of their kernels by id."""
    model = build()
    kernels = {}
    for index, (name, layer) in enumerate(seeded_layers(model).items()):
        kernel = kernel_for(layer.slot("parallel", index))
        kernels[f"k-{name}"] = copy.deepcopy(kernel)
        nn.init.normal_(kernel[0].weight)
        seed = graft(layer, index, kernel, kernel_id=f"k-{name}", site="parallel", blend="residual")
        if index:
            to_blending(seed, 0.25 * index)
    layer.seed(0).restore(SeedState.EMBARGOED, embargoed_until=7.0)
    return model, kernels


def script(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(module)


def test_a_dormant_network_keeps_no_state_of_its_own() -> None:
    model = build()
    assert {k.replace(".host", "") for k in model.state_dict()} == set(ResNet(width=4).state_dict())


def test_records_and_state_restore_a_grown_network() -> None:
    model, kernels = grown()
    records = [SeedRecord(**json.loads(json.dumps(asdict(r)))) for r in seed_records(model)]
    records = [SeedRecord(**{**asdict(r), "state": SeedState(r.state)}) for r in records]
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build()
    grow(seeded_layers(other)["head"], 3)  # it is not in the records and must go
    restore_seeds(other, records, kernels.__getitem__)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert seed_records(other) == seed_records(model)
    assert torch.equal(other(X), model(X))
    assert not torch.equal(other(X), build()(X))
    embargoed = seeded_layers(other)["head"].seed(0)
    with pytest.raises(GraftError, match="does not hold"):
        embargoed.transition(SeedState.DORMANT, {"epoch": 6})
    assert seeded_layers(other)["head"].running == [2]


def test_restoring_into_another_network_says_which_layer_is_missing() -> None:
    records = seed_records(grown()[0])
    other = ResNet(width=4)
    wrap(other, X, include=("stage1.0.conv2",))
    with pytest.raises(GraftError, match=r"no wrapped layer 'stage1.0.conv1'.*stage1.0.conv2"):
        restore_seeds(other, records, lambda _: nn.Identity())
    with pytest.raises(GraftError, match="cannot be HOLDING without a kernel"):
        seeded_layers(other)["stage1.0.conv2"].seed(0).restore(SeedState.HOLDING)


def test_a_deep_copy_is_independent_and_contains_faults_too() -> None:
    model, _ = grown()
    expected = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), expected)
    name = "stage2.0.conv1"
    ours, theirs = seeded_layers(model)[name].seed(1), seeded_layers(twin)[name].seed(1)
    theirs.set_alpha(1.0)
    nn.init.constant_(theirs.kernel[0].weight, float("inf"))
    assert torch.equal(model(X), expected)
    twin(X)
    assert [fault.layer for fault in pop_faults(twin)] == [name]
    assert theirs.state is SeedState.ERROR_RECOVERY
    assert ours.state is SeedState.BLENDING
    assert seeded_layers(model)[name].running == [1]
    assert seeded_layers(twin)[name].running == []


@pytest.mark.parametrize("name", LAYERS)
def test_scripted_kernels_train_and_copy_like_eager_ones(name: str) -> None:
    eager, scripted = build(), build()
    kernel = kernel_for(seeded_layers(eager)[name].slot("parallel", 1))
    grow(seeded_layers(eager)[name], 1, kernel=copy.deepcopy(kernel))
    grow(seeded_layers(scripted)[name], 1, kernel=script(kernel))
    outputs = []
    for model in (eager, copy.deepcopy(scripted), scripted):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            assert not pop_faults(model)
            optimizer.step()
        outputs.append(model(X))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert torch.allclose(outputs[0], outputs[2], atol=1e-4)


def test_a_scripted_kernel_that_raises_is_reported_in_one_line() -> None:
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.size(0) > 2:
                raise ValueError("too many samples")
            return x

    model = build()
    grow(seeded_layers(model)["head"], 0, kernel=script(Picky()), site="series")
    model(X.repeat(2, 1, 1, 1))
    (fault,) = pop_faults(model)
    assert fault.kind == "raised"
    assert "too many samples" in fault.message
    assert "\n" not in fault.message
