"""Which widths a network has, what is tied to them, and what refuses to grow."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kasmina_support import grow
from torch import Tensor, nn
from torch.nn.modules import module

from esper.errors import GraftError
from esper.kasmina import drain, observe, seeded_layers, wrap
from esper.kasmina.operators import find_widths, replay, try_widths, widen
from esper.models import MLP, PatchTransformer, ResNet

torch.set_num_threads(1)


def seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], str, dict[str, bool]]:
    state = {name: t.clone() for name, t in model.state_dict().items()}
    return state, repr(model), {name: m.training for name, m in model.named_modules()}


def assert_untouched(model: nn.Module, before: tuple[dict[str, Tensor], str, dict[str, bool]]) -> None:
    state, text, modes = snapshot(model)
    assert text == before[1]
    assert modes == before[2]
    assert state.keys() == before[0].keys()
    assert all(torch.equal(state[name], before[0][name]) for name in state)


def test_a_residual_stream_is_one_width_with_all_that_is_tied_to_it() -> None:
    seeded()
    widths = find_widths(ResNet(4), torch.randn(2, 1, 8, 8))
    assert [(w.name, w.size) for w in widths.values() if w.growable] == [
        ("stem.conv", 4),
        ("stage1.0.conv1", 4),
        ("stage2.0.conv1", 8),
        ("stage2.0.conv2", 8),
        ("stage3.0.conv1", 16),
        ("stage3.0.conv2", 16),
    ]
    assert set(widths["stem.conv"].members) == {
        ("stem.conv.weight", 0, "writer"),
        *((f"stem.bn.{leaf}", 0, "norm") for leaf in ("weight", "bias", "running_mean", "running_var")),
        ("stage1.0.conv1.weight", 1, "reader"),
        ("stage1.0.conv2.weight", 0, "writer"),
        *((f"stage1.0.bn2.{x}", 0, "norm") for x in ("weight", "bias", "running_mean", "running_var")),
        ("stage2.0.conv1.weight", 1, "reader"),
        ("stage2.0.shortcut.conv.weight", 1, "reader"),
    }
    head = widths["head"]
    assert not head.growable
    assert head.reason == "it is an output of the network"


@pytest.mark.parametrize("name", ["stem.conv", "stage2.0.conv2"])
def test_parameters_per_unit_are_those_that_growth_adds(name: str) -> None:
    seeded()
    model, x = ResNet(4), torch.randn(2, 1, 8, 8)
    width = find_widths(model, x)[name]
    before = sum(p.numel() for p in model.parameters())
    growth = widen(model, {name: width.size + 1}, example=x)
    assert sum(p.numel() for p in model.parameters()) - before == width.parameters_per_unit
    assert growth.parameters_added == width.parameters_per_unit


def test_a_widened_network_is_as_large_as_one_built_so() -> None:
    seeded()
    model, x = ResNet(4), torch.randn(2, 1, 8, 8)
    sizes = {"stem.conv": 6, "stage1.0.conv1": 6, "stage2.0.conv1": 12, "stage2.0.conv2": 12}
    widen(model, sizes | {"stage3.0.conv1": 24, "stage3.0.conv2": 24}, example=x)
    built = ResNet(6)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in built.state_dict().items()
    }
    assert repr(model) == repr(built)


def test_heads_ff_and_stream_of_a_transformer_grow_and_their_attributes_follow() -> None:
    seeded()
    model, x = PatchTransformer(), torch.randn(2, 1, 8, 8)
    sizes = {"embed": 40, "blocks.0.attention.qkv:heads": 5, "blocks.1.attention.qkv:heads": 5}
    sizes |= {"blocks.0.ff1": 160, "blocks.1.ff1": 160}
    before = model.eval()(x)
    widen(model, sizes, example=x)
    built = PatchTransformer(dim=40, heads=5)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in built.state_dict().items()
    }
    assert model.blocks[0].attention.heads == 5
    assert model.blocks[0].norm1.normalized_shape == (40,)
    assert model.blocks[0].norm1.eps == pytest.approx(1e-5 * 32 / 40)
    assert torch.allclose(model(x), before, atol=1e-5)


def test_the_example_leaves_no_trace() -> None:
    seeded()
    model = ResNet(4).train()
    model.stage2.eval()
    x = torch.randn(2, 1, 8, 8)
    before, rng = snapshot(model), torch.get_rng_state()
    kept = x.clone()
    find_widths(model, x)
    try_widths(model, x)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, kept)
    assert_untouched(model, before)


class Joined(nn.Module):
    """Projections whose head size is worked out from the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.embed = nn.Embedding(9, 8)
        self.norm = nn.RMSNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)

    def forward(self, index: Tensor) -> Tensor:
        x = self.embed(index)
        n, t, c = x.shape
        q, k, v = (
            layer(self.norm(x)).view(n, t, self.heads, c // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))
        return F.linear(x, self.embed.weight)


def test_what_must_grow_together_says_so_and_then_does() -> None:
    seeded()
    model, x = Joined().double(), torch.randint(0, 9, (2, 5))
    before, output = snapshot(model), model(x)
    with pytest.raises(GraftError, match="grow it together with q"):
        widen(model, {"embed": 12}, example=x)
    assert_untouched(model, before)
    assert not try_widths(model, x)["embed"].growable
    growth = widen(model, {"embed": 12, "q": 12}, example=x)
    assert model.heads == 3
    assert torch.allclose(model(x), output, rtol=1e-12, atol=1e-12)
    growth.undo()
    assert model.heads == 2
    assert_untouched(model, before)


class Refusing(nn.Module):
    """Between two linear layers, something that does not let a width grow."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(3, 4), nn.Linear(4, 2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def sorts(x: Tensor) -> Tensor:
    return x.sort(-1).values


def writes_into(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def reads_values(x: Tensor) -> Tensor:
    return x * (2 if x.sum().item() > 0 else 3)


def takes_apart(x: Tensor) -> Tensor:
    return torch.stack(x.unbind(-1), -1)


def normalises_by_hand(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def leaves_torch(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() * 2)


REFUSING: dict[str, tuple[Any, str]] = {
    "softmax": (nn.Softmax(-1), "softmax in between mixes it"),
    "sort": (sorts, "sort in the network, which has no rule"),
    "setitem": (writes_into, "setitem in the network, which has no rule"),
    "item": (reads_values, "sum in the network reduces it"),
    "unbind": (takes_apart, "takes its positions apart"),
    "hand-made norm": (normalises_by_hand, "mean in the network reduces it"),
    "numpy": (leaves_torch, "which has no rule|no torch function made"),
    "recurrent": (nn.Sequential(nn.Flatten(), nn.RNNCell(4, 4)), "rnn_tanh_cell"),
    "no weight": (nn.LayerNorm(4, elementwise_affine=False), "has no weight and eps"),
}


@pytest.mark.parametrize("kind", REFUSING)
def test_what_cannot_be_followed_is_not_growable_and_says_why(kind: str) -> None:
    between, reason = REFUSING[kind]
    seeded()
    model, x = Refusing(between), torch.randn(3, 3)
    width = find_widths(model, x)["first"]
    assert not width.growable
    before = snapshot(model)
    with pytest.raises(GraftError, match=reason):
        widen(model, {"first": 6}, example=x)
    assert_untouched(model, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_cannot_be_looked_into() -> None:
    model = Refusing(torch.jit.script(nn.Linear(4, 4)))
    assert "cannot be looked into" in find_widths(model, torch.randn(3, 3))["first"].reason


def test_a_post_norm_stream_cannot_grow_but_its_feed_forward_can() -> None:
    seeded()
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2))
    widths = find_widths(model, torch.randn(2, 5, 3))
    assert "no plain sum of layers" in widths["0"].reason
    assert widths["1.layers.0.linear1"].growable


class Patched(nn.Module):
    """A view whose literal size stands in attributes that cannot be told apart, or can."""

    def __init__(self, twin: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
        self.parts, self.unrelated = 3, 3
        self.twin = twin

    def forward(self, x: Tensor) -> Tensor:
        parts = max(self.parts, self.unrelated) if self.twin else self.parts
        return self.b(self.a(x).view(-1, parts, 2).relu().flatten(1))


def test_the_attribute_behind_a_literal_size_is_found_by_what_it_does() -> None:
    model, x = Patched(twin=False), torch.randn(2, 3)
    growth = widen(model, {"a:0": 5}, example=x)
    assert (model.parts, model.unrelated) == (5, 3)
    growth.undo()
    assert model.parts == 3


def test_an_attribute_that_cannot_be_told_is_refused() -> None:
    model, x = Patched(twin=True), torch.randn(2, 3)
    before = snapshot(model)
    with pytest.raises(GraftError, match="cannot be told which attribute"):
        widen(model, {"a:0": 5}, example=x)
    assert_untouched(model, before)
    assert (model.parts, model.unrelated) == (3, 3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"nothing": 9}, "no width 'nothing'"),
        ({"hidden.0": 6}, "cannot go from 6 to 6"),
        ({"hidden.0": 5}, "cannot go from 6 to 5"),
        ({"head": 11}, "it is an output of the network"),
        ({}, "no width to widen"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    model, x = MLP(4, (6, 7)), torch.randn(2, 4)
    before = snapshot(model)
    with pytest.raises(GraftError, match=message):
        widen(model, sizes, example=x)
    assert_untouched(model, before)


def test_heads_grow_in_whole_ones_only() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
    model, x = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)), torch.randn(2, 5, 3)
    assert find_widths(model, x)["0"].granularity == 4
    with pytest.raises(GraftError, match="in steps of 4"):
        widen(model, {"0": 10}, example=x)
    widen(model, {"0": 16}, example=x)
    assert (layer.self_attn.num_heads, layer.self_attn.embed_dim, layer.self_attn.head_dim) == (4, 16, 4)


def test_an_example_that_does_not_run_says_so() -> None:
    model = ResNet(4)
    with pytest.raises(GraftError, match="does not run through the network in eval mode"):
        find_widths(model, torch.randn(2, 3, 8, 8))
    with pytest.raises(GraftError, match="in train mode"):
        widen(
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
            {"0": 6},
            example=torch.randn(1, 3),
        )


def test_wrapped_layers_keep_their_names_and_follow() -> None:
    seeded()
    model, x = ResNet(4).eval(), torch.randn(2, 1, 8, 8)
    plain = list(find_widths(model, x))
    wrap(model, x, include=("*conv*",), seeds=2)
    assert list(find_widths(model, x)) == plain
    before = snapshot(model)
    sizes = {n: (la.geometry, la.out_sizes, la.in_sizes) for n, la in seeded_layers(model).items()}
    output = model(x)
    observe(model, True)
    model(x)
    growth = widen(model, {"stem.conv": 7}, example=x)
    layer = seeded_layers(model)["stem.conv"]
    assert (layer.geometry.out_features, layer.out_sizes) == (7, [4, 3])
    assert seeded_layers(model)["stage1.0.conv1"].in_sizes == [4, 3]
    assert torch.allclose(model(x), output, atol=1e-6)
    drain(model)
    observe(model, False)
    growth.undo()
    assert sizes == {n: (la.geometry, la.out_sizes, la.in_sizes) for n, la in seeded_layers(model).items()}
    assert_untouched(model, before)
    widen(model, {"stem.conv": 8}, example=x)
    grow(seeded_layers(model)["stem.conv"], 1, site="series")
    model(x)


def test_a_width_that_touches_a_layer_with_a_kernel_cannot_grow() -> None:
    seeded()
    model, x = ResNet(4), torch.randn(2, 1, 8, 8)
    wrap(model, x, include=("*conv*",), seeds=2)
    grow(seeded_layers(model)["stage2.0.conv1"], 1)
    widths = find_widths(model, x)
    for name in ("stem.conv", "stage2.0.conv1"):
        assert widths[name].reason == "seed 1 of stage2.0.conv1 holds a kernel"
    assert widths["stage3.0.conv1"].growable


def test_a_recorded_growth_is_made_again() -> None:
    seeded()
    model, x = PatchTransformer(), torch.randn(2, 1, 8, 8)
    first = widen(model, {"embed": 40, "blocks.0.ff1": 130}, example=x)
    second = widen(model, {"blocks.0.ff1": 140}, example=x)
    fresh = PatchTransformer()
    for record in (first.record, second.record):
        replay(fresh, copy.deepcopy(record), example=x)
    fresh.load_state_dict(model.state_dict())
    assert repr(fresh) == repr(model)
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    with pytest.raises(GraftError, match="no growth operator 'shrink'"):
        replay(fresh, {"operator": "shrink"}, example=x)


def test_the_same_generator_gives_the_same_network() -> None:
    x = torch.randn(2, 4)
    seeded(1)
    models = [MLP(4, (6, 7))]
    models.append(copy.deepcopy(models[0]))
    for model in models:
        widen(model, {"hidden.0": 9}, example=x, generator=torch.Generator().manual_seed(3))
        torch.randn(5)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_tracing_leaves_no_hook_behind() -> None:
    before = {name: dict(value) for name, value in vars(module).items() if name.startswith("_global_forward")}
    find_widths(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.ones(2, 3))
    assert before == {name: vars(module)[name] for name in before}
