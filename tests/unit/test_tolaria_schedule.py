"""The learning-rate schedule is a pure function of progress."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tolaria.schedule import HoldThenCosine


def test_it_warms_up_holds_and_cools_to_the_end() -> None:
    schedule = HoldThenCosine(warmup=0.1, hold_until=0.6, final=0.1)
    assert schedule.factor(0.05) == pytest.approx(0.5)
    assert schedule.factor(0.1) == schedule.factor(0.59) == 1.0
    assert schedule.factor(0.8) == pytest.approx(0.55)
    assert schedule.factor(1.0) == pytest.approx(0.1)


@given(st.floats(0, 1))
def test_the_rate_is_never_zero_before_the_end_nor_above_the_peak(progress: float) -> None:
    factor = HoldThenCosine(warmup=0.2, hold_until=0.5).factor(progress)
    assert 0 <= factor <= 1
    assert factor > 0 or progress > 0.999999


def test_each_group_follows_its_own_peak() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "peak_lr": peak} for peak in (0.1, 0.02)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    HoldThenCosine(warmup=0.1, hold_until=0.5).apply(optimizer, 0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])


def test_shares_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        HoldThenCosine(warmup=0.7, hold_until=0.6)
    with pytest.raises(ValueError, match="does not hold"):
        HoldThenCosine(hold_until=1.2)


def test_a_rate_that_is_held_to_the_end_is_at_its_peak_there():
    assert HoldThenCosine(hold_until=1.0).factor(1.0) == 1.0
    assert HoldThenCosine(hold_until=0.5, final=0.25).factor(1.0) == 0.25


def test_growth_in_the_tail_brings_the_rate_back_and_it_cools_again() -> None:
    schedule = HoldThenCosine(hold_until=0.5, rewarm=0.8)
    cold = schedule.factor(0.9)
    assert cold < 0.1
    assert schedule.factor(0.9, 0.9) == cold
    assert schedule.factor(0.905, 0.9) == pytest.approx((cold + 0.8) / 2)
    assert schedule.factor(0.91, 0.9) == pytest.approx(0.8)
    assert schedule.factor(0.955, 0.9) == pytest.approx(0.4)
    assert schedule.factor(1.0, 0.9) == pytest.approx(0.0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_growth_while_the_rate_is_warm_changes_nothing(progress: float, grown_at: float) -> None:
    plain, rewarmed = HoldThenCosine(hold_until=0.5), HoldThenCosine(hold_until=0.5, rewarm=0.8)
    assert plain.factor(progress, grown_at) == plain.factor(progress)
    if 0.05 <= grown_at <= 0.5:
        assert rewarmed.factor(progress, grown_at) == plain.factor(progress)


def test_a_share_above_one_to_come_back_to_is_refused() -> None:
    with pytest.raises(ValueError, match="rewarm must be"):
        HoldThenCosine(rewarm=1.1)
