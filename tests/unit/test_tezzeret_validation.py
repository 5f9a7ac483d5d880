"""Validation refuses every kind of program that is not what its blueprint says."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from esper.messages import Slot
from esper.tezzeret.examples import Teacher, default_transform, example
from esper.tezzeret.scoring import performance_score
from esper.tezzeret.validation import ValidationFailure, measure_latency, validate

torch.set_num_threads(1)
SLOT = Slot("features", 4, 4)
IMAGES = Slot("channels", 4, 4, 2)


class Wrong(nn.Module):
    """The network that ``change`` is applied to, under the same weight names."""

    def __init__(self, network: nn.Sequential, change: Callable[[Tensor, Wrong], Tensor]) -> None:
        super().__init__()
        for name, child in network.named_children():
            self.add_module(name, child)
        self.change = change
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = x
        for child in self.children():
            y = child(y)
        return self.change(y, self)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, m: y[..., :3], r"input 2x8x4 gave \(2, 8, 3\)"),
        (lambda y, m: y[:, :4], r"input 2x8x4 gave \(2, 4, 4\)"),
        (lambda y, m: y.double(), r"input of torch.float32 gave torch.float64"),
        (lambda y, m: y / 0, "the output for input 2x8x4 is not finite|output for input 2x8x4 is not finite"),
        (lambda y, m: y * 1.001, "output for input 2x8x4 differs from eager by"),
        (lambda y, m: y * 0, "output for input 2x8x4 is zero everywhere"),
        (lambda y, m: y.detach() + 0 * m.get_parameter("2.bias"), "the input gets no gradient"),
        (lambda y, m: y + 2e-6 * m.calls, "two runs on one input 2x8x4 differ"),
        (lambda y, m: y.detach() + 1e-9 * y, "the gradient of the input for input 2x8x4 differs from eager"),
        (lambda y, m: y if m.training is False else y * 2, "output for input 2x8x4 differs"),
        (lambda y, m: y if y.shape[0] == 2 else y * 2, "output for input 3x5x4 differs"),
        (lambda y, m: y if m.calls < 4 else y * 2, "output for input 2x8x4 differs"),
    ],
)
def test_wrong_programs_are_refused(change: Callable[[Tensor, Wrong], Tensor], message: str) -> None:
    with pytest.raises(ValidationFailure, match=message):
        validate(Wrong(network(), change), network(), SLOT)


def test_a_right_program_passes_and_keeps_its_state() -> None:
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 1))
    program = deepcopy(eager)
    before = deepcopy(eager.state_dict())
    random_state = torch.get_rng_state()
    validate(program, eager, IMAGES)
    for module in (program, eager):
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_random_outputs_are_not_compared() -> None:
    class Drawing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(1)  # so that what is drawn later is another
            output: Tensor = super().forward(x)
            return output

    torch.manual_seed(0)
    eager = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 4))
    validate(Drawing(*deepcopy(eager)), eager, SLOT)


def test_other_weights_are_refused() -> None:
    program = network()
    with torch.no_grad():
        program[2].bias += 1e-6
    with pytest.raises(ValidationFailure, match=r"the weight 2.bias did not survive"):
        validate(program, network(), SLOT)
    with pytest.raises(ValidationFailure, match="other names"):
        validate(nn.Linear(4, 4), network(), SLOT)


def test_a_parameter_without_use_is_refused() -> None:
    eager = network()
    eager.register_parameter("spare", nn.Parameter(torch.ones(1)))
    with pytest.raises(ValidationFailure, match="spare gets no gradient"):
        validate(deepcopy(eager), eager, SLOT)


def test_latency_is_against_the_default_transform() -> None:
    class Slow(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(200):
                super().forward(x)
            return super().forward(x)

    assert measure_latency(Slow(4, 4), SLOT).ratio > 10
    fast = measure_latency(default_transform(SLOT), SLOT)
    assert 0.2 < fast.ratio < 5
    assert fast.milliseconds > 0


@pytest.mark.parametrize("slot", [SLOT, Slot("tokens", 6, 3), IMAGES], ids=str)
def test_teacher_is_fixed_normalised_and_nonlinear(slot: Slot) -> None:
    x = example(slot, 64, 8, generator=torch.Generator().manual_seed(1))
    y = Teacher(slot, torch.Generator().manual_seed(0))(x)
    assert torch.equal(y, Teacher(slot, torch.Generator().manual_seed(0))(x))
    assert y.shape == default_transform(slot)(x).shape
    axes = (0, 2, 3) if slot.layout == "channels" else (0, 1)
    torch.testing.assert_close(y.var(axes), torch.ones(slot.out_features), rtol=1e-3, atol=1e-3)
    half = Teacher(slot, torch.Generator().manual_seed(0))(x / 2)
    assert not torch.allclose(y, half, atol=0.05)  # a linear map, normalised, would not change


def test_score_is_the_share_explained() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4))
    narrow = nn.Sequential(nn.Linear(4, 1), nn.GELU(), nn.Linear(1, 4))
    scores = [performance_score(deepcopy(module), SLOT) for module in (wide, wide, narrow)]
    assert scores[0] == scores[1]
    assert 0.0 <= scores[2] < scores[0] <= 1.0
    assert scores[0] > 0.5


def test_a_kernel_that_explains_nothing_scores_zero() -> None:
    class Huge(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 1e6 * super().forward(x)

    assert performance_score(Huge(4, 4), SLOT) == 0.0
    assert performance_score(nn.Identity(), SLOT) >= 0.0
