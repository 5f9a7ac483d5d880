from __future__ import annotations

import itertools
import re

import pytest
import torch
from kasmina_support import grow, kernel_for, to_blending, to_training
from torch import nn

import esper.kasmina.seed as seed_module
from esper.errors import GraftError
from esper.kasmina import TRANSITIONS, SeededLayer, graft, seed_off, seeded_layers, wrap
from esper.kasmina.seed import WITH_KERNEL
from esper.messages import SeedState as S


@pytest.fixture
def layer() -> SeededLayer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    wrap(model, torch.zeros(2, 8))
    return seeded_layers(model)["0"]


def germinated(layer: SeededLayer, index: int = 0):
    kernel = kernel_for(layer.slot("parallel", index))
    return graft(layer, index, kernel, kernel_id="k", site="parallel", blend="residual")


def test_the_table_is_the_drawing() -> None:
    drawing = (seed_module.__doc__ or "").split("::")[1]
    road = [S(word) for word in re.findall(r"[A-Z_]{5,}", drawing.splitlines()[2])]
    expected = set(itertools.pairwise(road))
    expected |= {(state, S.CULLED) for state in road[1:-1]}
    expected |= {(S.CULLED, S.EMBARGOED), (S.EMBARGOED, S.DORMANT), (S.ERROR_RECOVERY, S.DORMANT)}
    expected |= {(state, S.ERROR_RECOVERY) for state in WITH_KERNEL}
    expected |= {(S.FOSSILIZED, S.DORMANT)}  # once folded
    assert set(TRANSITIONS) == expected


def test_the_whole_road_to_fossilized(layer: SeededLayer) -> None:
    seed = germinated(layer)
    to_blending(seed, 0.5)
    with pytest.raises(GraftError, match="does not hold"):
        seed.transition(S.HOLDING, {"alpha_target": 1.0})
    seed.set_alpha(1.0)
    seed.transition(S.HOLDING, {"alpha_target": 1.0})
    kept = {"gain_lower": 0.02, "threshold": 0.01, "split": "held_out"}
    for worse in ({"gain_lower": 0.01}, {"split": "test"}, {"gain_lower": float("nan")}):
        with pytest.raises(GraftError, match="HOLDING -> FOSSILIZED does not hold"):
            seed.transition(S.FOSSILIZED, {**kept, **worse})
    seed.transition(S.FOSSILIZED, kept)
    assert seed.state is S.FOSSILIZED
    assert layer.running == [0]


def test_the_road_out_and_back(layer: SeededLayer) -> None:
    seed = grow(layer, 1)
    with pytest.raises(GraftError, match="in use"):
        seed.remove_kernel()
    seed.transition(S.CULLED, {"reason": "no gain"})
    with pytest.raises(GraftError, match="remove the kernel first"):
        seed.transition(S.EMBARGOED, {"until_epoch": 5})
    kernel = seed.remove_kernel()
    assert isinstance(kernel, nn.Module)
    seed.transition(S.EMBARGOED, {"until_epoch": 5})
    with pytest.raises(GraftError, match="wait until the embargo is over"):
        seed.transition(S.DORMANT, {"epoch": 4})
    seed.transition(S.DORMANT, {"epoch": 5})
    assert seed.kernel is None
    assert seed.kernel_id is None
    assert list(layer.state_dict()) == ["host.weight", "host.bias"]


def test_a_transition_that_is_not_drawn_names_those_that_are(layer: SeededLayer) -> None:
    with pytest.raises(GraftError, match=r"cannot go from DORMANT to BLENDING.*GERMINATED"):
        layer.seed(0).transition(S.BLENDING, {})


def test_missing_evidence_is_named(layer: SeededLayer) -> None:
    with pytest.raises(GraftError, match="needs evidence: optimizer_parameters"):
        germinated(layer).transition(S.TRAINING, {})


def test_training_starts_only_when_the_optimizer_has_every_parameter(layer: SeededLayer) -> None:
    seed = germinated(layer)
    with pytest.raises(GraftError, match="does not hold"):
        seed.transition(S.TRAINING, {"optimizer_parameters": seed.trainable_parameters - 1})
    with pytest.raises(GraftError, match="must be a number"):
        seed.transition(S.TRAINING, {"optimizer_parameters": "all"})


def test_alpha_moves_only_while_blending_and_within_bounds(layer: SeededLayer) -> None:
    seed = germinated(layer)
    with pytest.raises(GraftError, match="fixed while a seed is GERMINATED"):
        seed.set_alpha(0.5)
    to_blending(seed, 0.5)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(GraftError, match="not between"):
            seed.set_alpha(alpha)
    assert float(seed.alpha) == 0.5


def test_seed_off_gives_the_host_and_comes_back(layer: SeededLayer) -> None:
    first, second = grow(layer, 0), grow(layer, 2)
    x = torch.randn(4, 8)
    on = layer(x)
    with pytest.raises(KeyError), seed_off(first):  # noqa: PT012 - it must come back after an error as well
        assert layer.running == [2]
        assert torch.equal(layer(x)[:, :2], layer.host(x)[:, :2])
        with seed_off(second):
            assert torch.equal(layer(x), layer.host(x))
        raise KeyError
    assert torch.equal(layer(x), on)
    assert not torch.equal(on, layer.host(x))


def test_training_in_eval_mode_does_not_run_the_kernel(layer: SeededLayer) -> None:
    seed = to_training(germinated(layer))
    calls = []
    seed.kernel.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(4, 8)
    layer.eval()
    layer(x)
    layer.train()
    with torch.no_grad():
        layer(x)
    assert not calls
    layer(x)
    assert calls


def test_no_such_seed(layer: SeededLayer) -> None:
    with pytest.raises(GraftError, match=r"0 has no seed 4.*0 to 3 exist"):
        layer.slot("series", 4)
