"""Steps on what growth added are scaled block by block; old entries move as they would without."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.errors import GraftError
from esper.kasmina.operators.moments import carry
from esper.kasmina.operators.operator import Growth, resize
from esper.kasmina.operators.rates import HIGHEST, LOWEST, BlockRates

torch.set_num_threads(1)

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw-foreach": (torch.optim.AdamW, {"foreach": True}),
}


class Grown:
    """A weight, its optimizer and its blocks; the gradient of step t is the same whatever the weight is."""

    def __init__(self, kind: str = "sgd", lr: float = 0.01) -> None:
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.full((2, 3), 0.5))
        make, options = OPTIMIZERS[kind]
        self.optimizer = make([self.weight], lr=lr, **options)
        self.rates = BlockRates(self.optimizer)
        self.steps = 0

    def grow(self, old: Sequence[int], columns: int, value: float, *, matched: bool = True) -> None:
        """``columns`` columns in all: the old ones at ``old``, new ones ``value``."""
        wide = torch.full((2, columns), value)
        wide[:, list(old)] = self.weight.detach()
        change = resize(self.weight, wide, (None, tuple(old)))
        growth = Growth("test", "0", undo=lambda: None, record={}, resized=[change])
        carry(self.optimizer, growth)
        self.rates.follow(growth, matched=matched)

    def step(self, times: int = 1) -> Tensor:
        """The change of the weight."""
        before = self.weight.detach().clone()
        for _ in range(times):
            noise = torch.randn(2, 16, generator=torch.Generator().manual_seed(self.steps))
            self.weight.grad = noise[:, : self.weight.shape[1]].contiguous()
            self.optimizer.step()
            self.steps += 1
        return self.weight.detach() - before


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_old_entries_move_as_without_and_new_ones_as_with_another_rate(kind: str) -> None:
    equal, matched, slow = Grown(kind), Grown(kind), Grown(kind)
    for network, on in ((equal, False), (matched, True), (slow, False)):
        network.step(3)
        network.grow((0, 2, 4), 5, 0.25, matched=on)
    (_, factor) = matched.rates.factors(matched.weight)
    assert 0.4 < factor < 0.6
    for group in slow.optimizer.param_groups:
        group["lr"] *= factor
    for network in (equal, matched, slow):
        network.step(4)
    old, new = [0, 2, 4], [1, 3]
    assert torch.equal(matched.weight[:, old], equal.weight[:, old])
    torch.testing.assert_close(matched.weight[:, new], slow.weight[:, new], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(matched.weight[:, new], equal.weight[:, new])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_one_step_on_a_new_block_is_scaled_by_its_factor(kind: str) -> None:
    equal, matched = Grown(kind), Grown(kind)
    for network, on in ((equal, False), (matched, True)):
        network.grow((0, 1, 2), 5, 1.0, matched=on)
    assert matched.rates.factors(matched.weight) == (1.0, 2.0)
    expected, moved = equal.step(), matched.step()
    torch.testing.assert_close(moved[:, 3:], 2 * expected[:, 3:])
    assert torch.equal(moved[:, :3], expected[:, :3])


def test_old_entries_are_not_rounded_anew() -> None:
    equal, matched = Grown(lr=0.3), Grown(lr=0.3)
    for network, on in ((equal, False), (matched, True)):
        network.grow((0, 1, 2), 5, 1.0, matched=on)
    for _ in range(
        20
    ):  # by steps larger than the weights, after which before + (after - before) is not after
        equal.step()
        matched.step()
        assert torch.equal(matched.weight[:, :3], equal.weight[:, :3])


def test_each_growth_of_a_weight_has_its_own_factor_wherever_its_entries_move() -> None:
    equal, matched = Grown(), Grown()
    for network, on in ((equal, False), (matched, True)):
        network.grow((0, 1, 3), 4, 0.25, matched=on)  # column 2 is new
        network.grow((0, 2, 3, 4), 6, 1.0, matched=on)  # now column 3; columns 1 and 5 are new
    assert matched.rates.factors(matched.weight) == (1.0, 0.5, 2.0)
    scale = torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0, 2.0])
    torch.testing.assert_close(matched.step(), scale * equal.step())


def test_entries_of_a_growth_with_equal_rates_count_as_old() -> None:
    network = Grown()
    network.grow((0, 1, 2), 4, 1.0)
    network.grow((0, 1, 2, 3), 7, 1.5, matched=False)
    # The first block: six entries of 0.5 and six of 1.5.
    assert network.rates.factors(network.weight) == (1.0, pytest.approx(1 / 1.25**0.5))
    network.grow(range(7), 8, 1.25**0.5)
    assert network.rates.factors(network.weight)[2] == pytest.approx(1)


def test_factors_change_only_when_they_are_measured_again() -> None:
    network = Grown()
    network.grow((0, 1, 2), 5, 1.0)
    with torch.no_grad():
        network.weight[:, 3:] = 0.75
    assert network.rates.factors(network.weight) == (1.0, 2.0)
    network.rates.measure()
    assert network.rates.factors(network.weight) == (1.0, 1.5)


@pytest.mark.parametrize(
    ("value", "factor"), [(0.0, 1.0), (1e-6, LOWEST), (100.0, HIGHEST), (float("nan"), 1.0)]
)
def test_factors_are_clamped_and_a_block_without_a_norm_has_the_old_rate(value: float, factor: float) -> None:
    network = Grown()
    network.grow((0, 1, 2), 5, value)
    assert network.rates.factors(network.weight) == (1.0, factor)


def test_a_block_born_zero_learns_at_the_old_rate_until_it_is_measured() -> None:
    equal, matched = Grown(), Grown()
    for network, on in ((equal, False), (matched, True)):
        network.grow((0, 1, 2), 5, 0.0, matched=on)
    assert torch.equal(matched.step(), equal.step())
    matched.rates.measure()
    assert matched.rates.factors(matched.weight) == (1.0, LOWEST)


def test_nothing_is_hooked_in_before_a_growth_is_matched() -> None:
    network = Grown()
    network.grow((0, 1, 2), 5, 1.0, matched=False)
    network.rates.measure()
    assert not network.optimizer._optimizer_step_pre_hooks
    assert not network.optimizer._optimizer_step_post_hooks
    assert network.rates.factors(network.weight) == (1.0,)
    network.grow(range(5), 6, 1.0)
    network.grow(range(6), 7, 1.0)
    assert len(network.optimizer._optimizer_step_pre_hooks) == 1


def test_vectors_keep_their_rate_and_a_growth_of_nothing_else_cannot_be_matched() -> None:
    bias = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([bias], lr=0.1)
    rates = BlockRates(optimizer)
    change = resize(bias, torch.tensor([1.0, 1.0, 5.0]), ((0, 1),))
    growth = Growth("test", "layer", undo=lambda: None, record={}, resized=[change])
    with pytest.raises(GraftError, match="test of layer makes no weight larger"):
        rates.follow(growth, matched=True)
    assert not optimizer._optimizer_step_pre_hooks
    rates.follow(growth, matched=False)
    assert rates.factors(bias) == (1.0,)


def test_channels_last_weights_and_a_copied_optimizer() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(convolution.parameters(), lr=0.1)
    rates = BlockRates(optimizer)
    wide = torch.full((6, 3, 3, 3), 0.01)
    wide[:4] = convolution.weight.detach()
    change = resize(convolution.weight, wide, ((0, 1, 2, 3), None, None, None))
    growth = Growth("test", "0", undo=lambda: None, record={}, resized=[change])
    rates.follow(growth, matched=True)
    assert rates.factors(convolution.weight) == (1.0, LOWEST)
    convolution.weight.grad = torch.ones_like(convolution.weight)
    before = convolution.weight.detach().clone()
    optimizer.step()
    moved = convolution.weight.detach() - before
    torch.testing.assert_close(moved[4:], torch.full((2, 3, 3, 3), -0.1 * LOWEST))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert copy.deepcopy(optimizer).state_dict().keys() == optimizer.state_dict().keys()
