"""A kept kernel that is affine folds into its host, and comes out again."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esper.errors import GraftError
from esper.kasmina import SeededLayer, graft, seeded_layers, wrap
from esper.kasmina.operators.fold import fold
from esper.messages import SeedState

torch.set_num_threads(1)


def kept(layer: SeededLayer, kernel: nn.Module, site: str, blend: str, alpha: float, idx: int) -> None:
    """Graft ``kernel`` and lead it to FOSSILIZED."""
    seed = graft(layer, idx, kernel, kernel_id="k", site=site, blend=blend)
    seed.transition(SeedState.TRAINING, {"optimizer_parameters": seed.trainable_parameters})
    seed.transition(SeedState.BLENDING, {"steps": 1})
    seed.set_alpha(alpha)
    seed.transition(SeedState.HOLDING, {"alpha_target": alpha})
    evidence = {"gain_lower": 1.0, "threshold": 0.0, "gain": 1.0, "gain_error": 0.0, "split": "held_out"}
    seed.transition(SeedState.FOSSILIZED, evidence)


def seeded(host: nn.Module, x: torch.Tensor, seeds: int) -> SeededLayer:
    model = nn.Sequential(host)
    wrap(model, x, include=("0",), seeds=seeds)
    return seeded_layers(model)["0"]


@st.composite
def kept_layers(draw: st.DrawFn) -> tuple[SeededLayer, int, torch.Tensor]:
    """A layer with one kept affine kernel, its seed, and an input."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layout = draw(st.sampled_from(["features", "tokens", "channels"]))
    seeds = draw(st.integers(1, 3))
    i, o = draw(st.integers(seeds, 8)), draw(st.integers(seeds, 8))
    site = draw(st.sampled_from(["parallel", "series"]))
    stride = draw(st.sampled_from([1, 2]))
    host: nn.Module
    if layout == "channels":
        host = nn.Conv2d(i, o, draw(st.sampled_from([3, 5])), stride, padding=1)
        if host.kernel_size == (5, 5):
            host = nn.Conv2d(i, o, 5, stride, padding=2)
        x = torch.randn(2, i, 9, 11)
    else:
        host = nn.Linear(i, o)
        x = torch.randn(3, i) if layout == "features" else torch.randn(2, 3, i)
    layer = seeded(host, x, seeds)
    idx = draw(st.integers(0, seeds - 1))
    slot = layer.slot(site, idx)
    hidden = draw(st.integers(1, 4))
    if layout != "channels":
        kernel = nn.Sequential(nn.Linear(slot.in_features, hidden), nn.Linear(hidden, slot.out_features))
    elif site == "series":
        kernel = nn.Sequential(
            nn.Conv2d(slot.in_features, hidden, 1), nn.Conv2d(hidden, slot.out_features, 1)
        )
    else:
        first = nn.Conv2d(slot.in_features, hidden, 3, slot.stride, 1)
        kernel = nn.Sequential(first, nn.Conv2d(hidden, slot.out_features, 1))
    kept(
        layer,
        kernel,
        site,
        draw(st.sampled_from(["residual", "lerp"])),
        draw(st.sampled_from([0.3, 1.0])),
        idx,
    )
    return layer, idx, x


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@given(kept_layers())
@settings(max_examples=200, deadline=None)
def test_a_folded_kernel_leaves_the_function_and_comes_out_bit_for_bit(case):
    layer, idx, x = case
    before = copy.deepcopy(layer.state_dict())
    expected = {mode: layer.train(mode)(x).detach() for mode in (False, True)}
    growth = fold(layer, idx)
    assert layer.seed(idx).state is SeedState.DORMANT
    assert layer.seed(idx).kernel is None
    assert layer.running == []
    for mode, output in expected.items():
        torch.testing.assert_close(layer.train(mode)(x).detach(), output, rtol=1e-4, atol=1e-5)
    growth.undo()
    assert same(layer.state_dict(), before)
    assert torch.equal(layer.train(False)(x), expected[False])
    with pytest.raises(GraftError, match="undone before"):
        growth.undo()


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh(), nn.Dropout(0.5), nn.LayerNorm(4)])
def test_what_is_not_affine_is_refused_and_nothing_changes(act):
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    layer = seeded(nn.Linear(6, 6), x, 2)
    kept(layer, nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 3)), "parallel", "residual", 1.0, 1)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(GraftError, match="not affine"):
        fold(layer, 1)
    assert same(layer.state_dict(), before)
    assert layer.seed(1).state is SeedState.FOSSILIZED


def test_a_window_that_is_larger_than_the_hosts_is_refused():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    layer = seeded(nn.Conv2d(4, 4, 1), x, 2)
    kept(layer, nn.Conv2d(2, 2, 3, padding=1), "parallel", "residual", 1.0, 0)
    with pytest.raises(GraftError, match="beyond the host's window"):
        fold(layer, 0)


def test_a_bias_needs_a_host_with_one():
    x = torch.randn(2, 4)
    layer = seeded(nn.Linear(4, 4, bias=False), x, 2)
    kept(layer, nn.Linear(2, 2), "parallel", "residual", 1.0, 0)
    with pytest.raises(GraftError, match="no bias"):
        fold(layer, 0)


def test_after_training_the_kernel_comes_out_of_the_host_as_trained():
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    layer = seeded(nn.Linear(6, 6), x, 2)
    kept(layer, nn.Linear(3, 3), "parallel", "residual", 0.5, 1)
    growth = fold(layer, 1)
    with torch.no_grad():
        layer.host.weight += 0.1
    trained = layer(x).detach()
    growth.undo()
    assert layer.seed(1).state is SeedState.FOSSILIZED
    torch.testing.assert_close(layer(x).detach(), trained)


def test_only_a_kept_kernel_is_folded():
    layer = seeded(nn.Linear(4, 4), torch.randn(2, 4), 2)
    with pytest.raises(GraftError, match="only a kept kernel"):
        fold(layer, 0)
