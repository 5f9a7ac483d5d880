"""A new block changes no bit of a network's output and gradients, learns at once, and comes out again."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esper.errors import GraftError
from esper.kasmina import seeded_layers, wrap
from esper.kasmina.operators.deepen import deepen
from esper.kasmina.operators.identity import residual_block
from esper.kasmina.operators.moments import carry, uncarry
from esper.kasmina.operators.replay import replay
from esper.models import MLP, PatchTransformer, ResNet
from esper.tolaria.export import export_network

torch.set_num_threads(1)

Case = tuple[nn.Module, torch.Tensor, list[str]]


def _convolutions(width: int, depth: int) -> Case:
    stages = [nn.Sequential(nn.Conv2d(2, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))]
    stages += [nn.Sequential(nn.Conv2d(width, width, 1), nn.Dropout(0.3)) for _ in range(depth)]
    model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    return model, torch.randn(3, 2, 6, 7), ["0", "0.0", "0.2", "1", str(depth + 2), str(depth + 3)]


def _residual(width: int, depth: int) -> Case:
    model = ResNet(width, (1, depth, 1))
    targets = ["stem", "stem.conv", "stage1", "stage2.0", "stage2", "stage3.0.conv1", "head"]
    return model, torch.randn(3, 1, 8, 9), targets


def _perceptron(width: int, depth: int) -> Case:
    return MLP(5, [width] * depth), torch.randn(3, 5), ["hidden.0", f"hidden.{depth - 1}", "head"]


def _transformer(width: int, depth: int) -> Case:
    model = PatchTransformer(dim=2 * width, heads=2, depth=depth)
    targets = ["embed", "blocks", "blocks.0", "blocks.0.ff1", "blocks.0.attention", "head"]
    return model, torch.randn(3, 1, 8, 8), targets


HOSTS = {f.__name__: f for f in (_convolutions, _residual, _perceptron, _transformer)}


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Module, nn.Module, torch.Tensor, str]:
    """A network, a fresh one of the same kind, an example and the name of a module."""
    kind, width, depth = (
        draw(st.sampled_from(sorted(HOSTS))),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 3)),
    )
    seed, wrapped = draw(st.integers(0, 2**16)), draw(st.booleans())
    made = []
    for offset in (0, 1):
        torch.manual_seed(seed + offset)
        model, x, targets = HOSTS[kind](width, depth)
        if wrapped:
            wrap(model, x, seeds=1)
        made.append(model.train(draw(st.booleans())))
    return made[0], made[1], x, draw(st.sampled_from(targets))


def passes(model: nn.Module, x: torch.Tensor, old: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """By mode: the output, then the gradients or, of buffers, the new values of the tensors ``old``."""
    found = {}
    names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
    for training in (False, True):
        twin = copy.deepcopy(model).train(training)
        own = dict((*twin.named_parameters(), *twin.named_buffers()))
        tensors = [own[names[id(t)]] for t in old]
        torch.manual_seed(1)
        y = twin(x)
        gradients = iter(torch.autograd.grad(y.square().sum(), [t for t in tensors if t.requires_grad]))
        values = [next(gradients) if t.requires_grad else t for t in tensors]
        found["train" if training else "eval"] = [y.detach(), *values]
    return found


def bits(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor.clone()) for name, tensor in model.state_dict().items()]


def same(a: list[tuple[str, torch.Tensor]], b: list[tuple[str, torch.Tensor]]) -> bool:
    return [n for n, _ in a] == [n for n, _ in b] and all(
        torch.equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True)
    )


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 2**16))
def test_a_block_changes_no_bit_and_comes_out_without_a_trace(case, seed) -> None:
    model, fresh, x, target = case
    old = [*model.parameters(), *model.buffers()]
    size = sum(p.numel() for p in model.parameters())
    before, held, tree = passes(model, x, old), bits(model), list(model.modules())
    modes, layers = [m.training for m in tree], list(seeded_layers(model))
    state = torch.random.get_rng_state()
    growth = deepen(model, target, example=x, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert growth.parameters_added == sum(p.numel() for p in model.parameters()) - size > 0
    assert list(seeded_layers(model)) == layers
    after = passes(model, x, old)
    for mode, tensors in before.items():
        assert all(map(torch.equal, tensors, after[mode])), mode

    replay(fresh, json.loads(json.dumps(growth.record)), example=x)
    assert {n: t.shape for n, t in fresh.state_dict().items()} == {n: t.shape for n, t in bits(model)}
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), before["eval"][0])

    growth.undo()
    assert same(bits(model), held)
    assert [id(m) for m in model.modules()] == [id(m) for m in tree]
    assert [m.training for m in model.modules()] == modes


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["channels", "features", "tokens"]),
    st.integers(2, 6),
    st.integers(1, 6),
    st.integers(0, 2**16),
)
def test_a_block_learns_from_the_first_step_on_with_units_that_differ(layout, features, hidden, seed) -> None:
    torch.manual_seed(seed)
    space = {"channels": (4, 5), "features": (), "tokens": ()}[layout]
    x = torch.randn(4, *((3,) if layout == "tokens" else ()), features, *space)
    block = residual_block(layout, features, hidden, x, torch.Generator().manual_seed(seed))
    assert torch.equal(block(x), x)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    target = torch.randn_like(x)
    for _ in range(2):
        optimizer.zero_grad()
        (block(x) - target).square().sum().backward()
        optimizer.step()
    first, last = block.branch.expand.weight.grad.flatten(1), block.branch.project.weight.grad
    assert last.any()
    assert first.any()
    live = first[first.any(1)]
    assert len(live) == len(torch.unique(live, dim=0))


@settings(max_examples=80, deadline=None)
@given(cases())
def test_an_optimizer_follows_a_block_and_forgets_it(case) -> None:
    model, _, x, target = case
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()(x).square().sum().backward()
    optimizer.step()
    held, state = bits(model), copy.deepcopy(optimizer.state_dict())
    growth = deepen(model, target, example=x)
    carry(optimizer, growth)
    ours = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert ours == {id(p) for p in model.parameters()}
    uncarry(optimizer, growth)
    growth.undo()
    assert same(bits(model), held)
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    assert after["state"].keys() == state["state"].keys()
    for key, values in state["state"].items():
        assert all(torch.equal(values[name], after["state"][key][name]) for name in values)


def _blocks(kind: str) -> Case:
    if kind == "resnet":
        return ResNet(4, (1, 2, 1)), torch.rand(3, 1, 8, 8), ["stage1", "stage2.1"]
    if kind == "transformer":
        return PatchTransformer(dim=8, heads=2), torch.randn(3, 1, 8, 8), ["blocks", "blocks.0"]
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Linear(8, 2)), torch.randn(3, 5, 8), ["0.layers.1"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["resnet", "transformer", "encoder"]), st.booleans(), st.integers(0, 2**16), st.data())
def test_a_copied_block_changes_no_bit_either(kind, wrapped, seed, data) -> None:
    torch.manual_seed(seed)
    model, x, targets = _blocks(kind)
    if wrapped:
        wrap(model, x, seeds=2)
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    old = [*model.parameters(), *model.buffers()]
    before, held = passes(model, x, old), bits(model)
    growth = deepen(model, data.draw(st.sampled_from(targets)), example=x, like="copy")
    after = passes(model, x, old)
    for mode, tensors in before.items():
        assert all(map(torch.equal, tensors, after[mode])), mode
    model.train()(x).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in growth.added)
    replay(fresh, growth.record, example=x)
    fresh.load_state_dict(model.state_dict())
    growth.undo()
    assert [n for n, _ in bits(model)] == [n for n, _ in held]
    assert all(torch.equal(a, b) for (n, a), (_, b) in zip(bits(model), held, strict=True) if "bn" not in n)


def test_what_no_block_fits_is_refused_and_nothing_changes() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), encoder, nn.Conv1d(5, 5, 1), nn.Flatten(0))
    x, held, tree = torch.randn(3, 5, 8), bits(model), list(model.modules())
    for target, message in {
        "1.linear1": "no block can follow it",  # the encoder reads its weight
        "1.self_attn": "gives a tuple",
        "1.self_attn.out_proj": "never called",
        "2": "no block is made for that",
        "3": "no block is made for that",
        "4": "no module is named",
        "": "no module is named",
    }.items():
        with pytest.raises(GraftError, match=message):
            deepen(model, target, example=x)
    with pytest.raises(GraftError, match="a copy of this Linear is never the identity"):
        deepen(model, "0", example=x, like="copy")
    with pytest.raises(GraftError, match="0 hidden features"):
        deepen(model, "0", example=x, hidden=0)
    assert same(bits(model), held)
    assert list(model.modules()) == tree


def test_several_blocks_are_replayed_in_order_and_undone_in_reverse() -> None:
    torch.manual_seed(0)
    model, x = ResNet(4), torch.randn(3, 1, 8, 8)
    fresh, y = copy.deepcopy(model), model.eval()(x)
    growths = [deepen(model, t, example=x) for t in ("head", "stage1", "head", "stage1.1", "head.grown")]
    assert torch.equal(model(x), y)
    names = list(model.state_dict())
    assert {n.split(".")[1] for n in names if n.startswith("head")} == {"host", "grown", "grown2"}
    assert {n.split(".")[1] for n in names if n.startswith("stage1")} == {"0", "1", "2"}
    for growth in growths:
        replay(fresh, growth.record, example=x)
    fresh.load_state_dict(model.state_dict())
    with pytest.raises(GraftError, match="undo the later growth first"):
        growths[1].undo()
    for growth in reversed(growths):
        growth.undo()
    assert list(model.state_dict()) == list(ResNet(4).state_dict())
    with pytest.raises(GraftError, match="no place for a block"):
        replay(model, growths[1].record | {"key": "7"}, example=x)


def test_a_deepened_network_is_exported_as_plain_source(tmp_path) -> None:
    torch.manual_seed(0)
    model, x = ResNet(4), torch.randn(3, 1, 8, 8)
    wrap(model, x, include=("stem.conv",))
    for target, like in (("stage1", "copy"), ("stage2", "residual"), ("stem.conv", "residual")):
        deepen(model, target, example=x, like=like)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    report = export_network(model, {}, x, tmp_path)
    assert report.max_difference == 0.0
    assert "import esper" not in (tmp_path / "model.py").read_text()
