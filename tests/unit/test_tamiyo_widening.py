"""Policies that widen the host: when, by how much, and that they leave it alone otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.messages import EpochRecord, GrowthReport, Refusal, SystemStatePacket, WidthMetrics
from esper.tamiyo.widen_on_pace import WidenOnPace
from esper.tamiyo.widen_on_schedule import WidenOnSchedule
from esper.tamiyo.widening import Widening

WIDTHS = {"stage": WidthMetrics(8, 1, 100), "heads": WidthMetrics(16, 4, 50)}


def packet(losses: list[float], total: int, **more) -> SystemStatePacket:
    return SystemStatePacket(
        epoch=len(losses) - 1,
        global_step=len(losses),
        loss=losses[-1],
        accuracy=0.5,
        layer_metrics={},
        held_out_loss=losses[-1],
        total_epochs=total,
        history=tuple(EpochRecord(i, loss, loss, 0.5) for i, loss in enumerate(losses)),
        widths=WIDTHS,
        **{"progress": len(losses) / total, **more},
    )


def growth(epoch: int) -> GrowthReport:
    return GrowthReport(epoch, "widen", "host", {"stage": (4, 8)}, 100, 1.0, 1.0, 0.5, 0.5)


def power_law(epochs: int, exponent: float = 0.25) -> list[float]:
    return [(i + 1) ** -exponent for i in range(epochs)]


def first_growth(policy: WidenOnPace, curve: list[float], total: int) -> int | None:
    return next((n for n in range(1, total + 1) if policy.decide(packet(curve[:n], total))), None)


def test_sizes_are_multiples_and_the_cost_counts_steps() -> None:
    widening = Widening(1.4)
    assert widening.parameters(packet([1.0], 10))["sizes"] == {"stage": 12, "heads": 24}
    assert widening.cost(packet([1.0], 10)) == 4 * 100 + 2 * 50


@given(total=st.integers(40, 400))
def test_a_power_law_grows_at_the_same_share_of_short_and_long_runs(total: int) -> None:
    policy = WidenOnPace(Widening(2), min_pace=1.0)
    grown = first_growth(policy, power_law(total), total)
    assert grown is not None
    assert 0.2 < grown / total < 0.36


def test_a_network_that_has_converged_grows_sooner_and_one_that_learns_later() -> None:
    policy, total = WidenOnPace(Widening(2)), 100
    stalled = first_growth(policy, [1.0 - 0.1 * min(n, 8) for n in range(total)], total)
    slow = first_growth(policy, power_law(total), total)
    assert stalled is not None
    assert slow is not None
    assert stalled < 16 < slow
    assert first_growth(policy, [0.97**n for n in range(total)], total) is None


def test_what_has_solved_its_training_data_is_large_enough() -> None:
    policy = WidenOnPace(Widening(2), solved=0.1)
    assert policy.decide(packet([0.1] * 20, 60)) is not None
    assert policy.decide(packet([0.099] * 20, 60)) is None


def test_nothing_grows_late_cold_too_often_or_right_after_a_growth() -> None:
    flat, policy = [0.5] * 20, WidenOnPace(Widening(2), max_growths=2)
    assert policy.decide(packet(flat, 60)) is not None
    assert policy.decide(packet(flat, 60, progress=0.6)) is None
    assert policy.decide(packet(flat, 60, rate_share=0.5)) is None
    assert policy.decide(packet(flat, 60, growths=(growth(3), growth(8)))) is None
    assert policy.decide(packet(flat, 60, growths=(growth(16),))) is None  # two epochs to judge by
    assert policy.decide(packet(flat, 60, growths=(growth(15),))) is not None
    assert policy.decide(packet(flat, 60, refusals=(Refusal(18, "host", -1, "no"),))) is None
    assert policy.decide(replace(packet(flat, 60), widths={})) is None
    assert policy.decide(packet(flat, 20)) is None


def test_a_decision_says_why_and_how() -> None:
    policy = WidenOnPace(Widening(2, start="pairs", moments="reset", rates="matched"))
    decision = policy.decide(packet([0.5] * 20, 60))
    assert decision is not None
    assert decision.confidence == decision.evidence["slow"] == 1.0
    assert decision.evidence["pace"] == pytest.approx(0)
    assert decision.parameters["sizes"] == {"stage": 16, "heads": 32}
    wanted = {"operator": "widen", "start": "pairs", "moments": "reset", "rates": "matched"}
    assert {key: decision.parameters[key] for key in wanted} == wanted
    assert "less than 1 has p=1.00" in decision.reason
    assert decision.alternatives


def test_the_schedule_widens_once_a_share() -> None:
    policy = WidenOnSchedule([0.25, 0.5], Widening(2))
    assert policy.decide(packet([1.0] * 4, 20)) is None
    assert policy.decide(packet([1.0] * 5, 20)) is not None
    assert policy.decide(packet([1.0] * 6, 20, growths=(growth(4),))) is None
    assert policy.decide(packet([1.0] * 10, 20, growths=(growth(4),))) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Widening(1.0),
        lambda: Widening(2, start="copies"),
        lambda: Widening(2, moments="lose"),
        lambda: Widening(2, rates="fast"),
        lambda: WidenOnPace(Widening(2), min_pace=0),
        lambda: WidenOnPace(Widening(2), latest=1.5),
        lambda: WidenOnPace(Widening(2), max_growths=-1),
        lambda: WidenOnSchedule([1.5], Widening(2)),
    ],
)
def test_settings_out_of_bounds_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"must be|is one of"):
        wrong()
