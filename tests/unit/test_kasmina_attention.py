"""Attention and transformer layers: axis order, fused inference paths, and children that are never called."""

from __future__ import annotations

import copy

import pytest
import torch
from kasmina_support import grow, to_training
from torch import nn

from esper.errors import GraftError
from esper.kasmina import graft, seeded_layers, wrap


class MixesTime(nn.Module):
    """A kernel on (batch, T, F) whose output depends on the whole sequence of its own sample."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)


class Attends(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, weights = self.attention(x, x, value=x, need_weights=True)
        assert weights is not None
        return y


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_is_wrapped_as_tokens_in_either_axis_order(batch_first: bool) -> None:
    torch.manual_seed(0)
    model = Attends(batch_first)
    x = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    assert wrap(model, x, batch_axis=0 if batch_first else 1) == ["attention"]
    layer = seeded_layers(model)["attention"]
    assert (layer.kind, layer.layout) == ("attention", "tokens")
    bare = model(x)
    grow(layer, 1, 1.0, kernel=MixesTime())
    grow(layer, 2, 1.0, kernel=MixesTime(), site="series")
    grown = model(x)
    time = 1 if batch_first else 0
    assert torch.equal(grown[..., 2:4], bare[..., 2:4] + x[..., 2:4].cumsum(time))
    assert torch.allclose(grown[..., 4:6], bare[..., 4:6] + bare[..., 4:6].cumsum(time))
    assert torch.equal(grown[..., [0, 1, 6, 7]], bare[..., [0, 1, 6, 7]])
    assert not layer.pending_faults


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (4, 4)])
def test_a_kernel_never_mixes_samples_in_a_linear_layer(batch_first: bool, shape: tuple[int, int]) -> None:
    """Which axis is the batch shows in the probing, even where both are as long."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    x = torch.randn(*shape, 8)
    batch_axis = 0 if batch_first else 1
    wrap(model, x, types=("linear",), batch_axis=batch_axis)
    feed = seeded_layers(model)["layers.0.linear1"]
    grow(feed, 0, 1.0, kernel=MixesTime())
    changed = x.clone()
    changed.select(batch_axis, 0).add_(1)
    others = torch.arange(1, x.shape[batch_axis])
    before, after = (model(value).index_select(batch_axis, others) for value in (x, changed))
    assert torch.allclose(before, after, atol=1e-6)
    assert feed.geometry.time_first is not batch_first


def test_a_time_first_example_must_be_declared() -> None:
    with pytest.raises(GraftError, match=r"has samples along axis 1.*batch_axis=1"):
        wrap(Attends(batch_first=False), torch.randn(5, 3, 8))


class Windows(nn.Module):
    """Cuts (batch, 6, 8) into windows of 3; with ``fixed``, mixes samples in a view of fixed size."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.linear, self.fixed = nn.Linear(8, 8), fixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(3, -1, 8) if self.fixed else x.reshape(-1, 3, 8))


class Rigid(Windows):
    """Runs with a batch of four only."""

    def __init__(self) -> None:
        super().__init__(fixed=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.view(4, 6, 8))


def test_windows_are_tokens_and_an_unknown_batch_axis_leaves_plain_features() -> None:
    windows, fixed, rigid = Windows(fixed=False), Windows(fixed=True), Rigid()
    for model in (windows, fixed, rigid):
        wrap(model, torch.randn(4, 6, 8))
    geometries = [seeded_layers(model)["linear"].geometry for model in (windows, fixed, rigid)]
    assert [g.layout for g in geometries] == ["tokens", "features", "features"]
    assert not geometries[0].time_first


def encoder(**arguments) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, **arguments)


@pytest.mark.parametrize("name", ["layers.0.linear1", "layers.0.self_attn", "layers.1", "layers.1.norm2"])
def test_the_fused_inference_path_does_not_bypass_a_running_seed(name: str) -> None:
    model, x = encoder(enable_nested_tensor=False).eval(), torch.randn(3, 5, 8)
    bare = copy.deepcopy(model)
    wrap(model, x, include=(name,))
    with torch.no_grad():
        fused = bare(x)
        assert torch.equal(model(x), fused)
        seed = grow(seeded_layers(model)[name], 0, 1.0, site="series")
        assert not torch.allclose(model(x), fused, atol=1e-3)
        seed.enabled = False
        assert torch.equal(model(x), fused)


def test_growing_inside_an_encoder_ends_nested_tensors() -> None:
    model, x = encoder().eval(), torch.randn(3, 5, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    bare = copy.deepcopy(model)
    wrap(model, x)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="nested tensors"):
            expected = bare(x, src_key_padding_mask=padding)
        assert torch.equal(model(x, src_key_padding_mask=padding), expected)
        grow(seeded_layers(model)["layers.0.linear1"], 0, 1.0)
        grown = model(x, src_key_padding_mask=padding)
    assert grown.shape == x.shape
    assert not model.use_nested_tensor


def test_children_of_attention_are_left_alone_and_refused_by_name() -> None:
    model, x = encoder(enable_nested_tensor=False), torch.randn(3, 5, 8)
    names = wrap(copy.deepcopy(model), x)
    assert names == [f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn", "linear1", "linear2")]
    with pytest.raises(GraftError, match=r"layers.0.self_attn.out_proj is never called"):
        wrap(model, x, include=("layers.0.self_attn.out_proj",))


def test_an_input_of_other_axes_than_the_example_is_refused_once_a_seed_runs() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    wrap(model, torch.randn(2, 4, 8, 8))
    unbatched = torch.randn(4, 8, 8)
    assert model(unbatched).shape == (4, 8, 8)
    seed = graft(seeded_layers(model)["0"], 0, nn.Conv2d(1, 1, 1), kernel_id="k", site="series", blend="lerp")
    assert model(unbatched).shape == (4, 8, 8)
    to_training(seed)
    with pytest.raises(GraftError, match="0: the layer gave 3 axes, its seeds know channels of 4 axes"):
        model(unbatched)
