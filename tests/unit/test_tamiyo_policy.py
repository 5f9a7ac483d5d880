"""The growth policy: pure, explained, and quiet when it should be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from esper.messages import (
    EpochRecord,
    FieldReport,
    HealthSignal,
    LayerMetrics,
    Refusal,
    SeedState,
    Slot,
    SystemStatePacket,
)
from esper.tamiyo.grow_on_plateau import GrowOnPlateau
from esper.tamiyo.never import NeverGrow
from esper.tamiyo.plateau import PlateauDetector
from esper.tamiyo.strategy import SeedStrategy

SLOT = Slot("features", 4, 4)


def layer(
    gradients: list[float], states: list[SeedState] | None = None, *, parallel: bool = True
) -> LayerMetrics:
    states = states or [SeedState.DORMANT] * len(gradients)
    return LayerMetrics(
        gradient_norm=sum(gradients),
        activation_variance=1.0,
        seed_health=(1.0,) * len(gradients),
        kind="linear",
        seed_states=tuple(states),
        parallel_slots=(SLOT,) * len(gradients) if parallel else (),
        series_slots=(SLOT,) * len(gradients),
        signals=tuple(HealthSignal(0, 1, g, 0, 0, 1) for g in gradients),
    )


def packet(epoch: int = 9, **layers: LayerMetrics) -> SystemStatePacket:
    history = tuple(EpochRecord(i, 0.5, 0.5 + 0.001 * (i % 2), 0.8) for i in range(epoch + 1))
    return SystemStatePacket(
        epoch=epoch,
        global_step=10,
        loss=0.5,
        accuracy=0.8,
        layer_metrics=layers,
        held_out_loss=0.5,
        total_epochs=20,
        history=history,
    )


def trial(name: str, verdict: str, gain: float = 0.0, kernel_id: str = "kernel_a") -> FieldReport:
    return FieldReport(
        layer=name,
        layer_kind="linear",
        seed_idx=0,
        slot=SLOT,
        site="parallel",
        kernel_id=kernel_id,
        blueprint_id="blueprint_a",
        started_epoch=1,
        ended_epoch=3,
        verdict=verdict,
        reason="",
        expected_impact=0.01,
        gain=gain,
        gain_error=0.001,
        threshold=0.0,
        loss_before=0.5,
        loss_after=0.5,
        accuracy_before=0.8,
        accuracy_after=0.8,
        parameters=10,
    )


@pytest.fixture
def policy() -> GrowOnPlateau:
    return GrowOnPlateau(PlateauDetector(), SeedStrategy(tags={"linear": ["linear"]}))


def test_a_plateau_grows_the_seed_with_the_largest_gradient(policy: GrowOnPlateau) -> None:
    decision = policy.decide(packet(a=layer([1.0, 1.0]), b=layer([1.0, 3.0])))
    assert decision is not None
    assert decision.adaptation_type == "add_seed"
    assert decision.target_component == "b"
    assert decision.parameters["seed_idx"] == 1
    assert decision.parameters["tags"] == ["linear"]
    assert decision.evidence["plateau"] > 0.9
    assert decision.confidence == pytest.approx(decision.evidence["plateau"] / 2)  # no trial yet: one half
    assert decision.evidence["gradient_share"] == pytest.approx(9 / 12)
    assert "b seed 1" in decision.reason
    assert [a["target_component"] for a in decision.alternatives] == ["a", "a", "b"]


def test_the_same_packet_gives_the_same_decision(policy: GrowOnPlateau) -> None:
    state = packet(a=layer([1.0, 1.0]), b=layer([1.0, 1.0]))
    assert policy.decide(state) == policy.decide(state)


def test_progress_gives_no_decision(policy: GrowOnPlateau) -> None:
    state = packet(a=layer([1.0]))
    falling = tuple(EpochRecord(i, 1, 0.9**i, 1 - 0.5 * 0.9**i) for i in range(10))
    assert policy.decide(replace(state, history=falling)) is None


@pytest.mark.parametrize("state", [SeedState.TRAINING, SeedState.BLENDING, SeedState.HOLDING])
def test_one_trial_at_a_time(policy: GrowOnPlateau, state: SeedState) -> None:
    assert policy.decide(packet(a=layer([1.0, 1.0], [state, SeedState.DORMANT]))) is None


@pytest.mark.parametrize("epoch", [2, 14, 19])
def test_neither_too_early_nor_in_the_quiet_tail(policy: GrowOnPlateau, epoch: int) -> None:
    assert policy.decide(packet(epoch, a=layer([1.0]))) is None


def test_no_dormant_seed_gives_no_decision(policy: GrowOnPlateau) -> None:
    kept = [SeedState.FOSSILIZED, SeedState.EMBARGOED]
    assert policy.decide(packet(a=layer([1.0, 1.0], kept))) is None


def test_a_layer_that_no_parallel_kernel_fits_is_asked_for_in_series(policy: GrowOnPlateau) -> None:
    decision = policy.decide(packet(a=layer([1.0], parallel=False)))
    assert decision is not None
    assert decision.parameters["site"] == "series"


def test_a_layer_that_was_not_observed_has_no_gradient(policy: GrowOnPlateau) -> None:
    unseen = replace(layer([1.0, 1.0]), signals=(), seed_health=())
    decision = policy.decide(packet(a=unseen, b=layer([0.1])))
    assert decision is not None
    assert (decision.target_component, decision.evidence["gradient_share"]) == ("b", 1.0)
    alone = policy.decide(packet(a=unseen))
    assert alone is not None
    assert alone.evidence["gradient_share"] == 0.0


@pytest.mark.parametrize(
    "settings",
    [
        {"site": "sideways"},
        {"blend": "mix"},
        {"alpha_blend": 0.0},
        {"alpha_blend": 1.5},
        {"score": "luck"},
        {"refusal_rest": -1},
    ],
)
def test_what_no_seed_can_follow_is_refused_before_the_run(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SeedStrategy(**settings)


def test_confidence_is_the_chance_of_a_plateau_times_that_of_being_kept(policy: GrowOnPlateau) -> None:
    trials = (trial("a", "kept", gain=0.1), trial("a", "culled"), trial("a", "failed"))
    decision = policy.decide(replace(packet(a=layer([1.0, 1.0])), trials=trials))
    assert decision is not None
    assert decision.confidence == pytest.approx(decision.evidence["plateau"] * 2 / 5)


def test_nothing_grows_while_the_rate_is_cooled_down(policy: GrowOnPlateau) -> None:
    state = packet(a=layer([1.0]))
    assert policy.decide(replace(state, rate_share=0.5)) is not None
    assert policy.decide(replace(state, rate_share=0.49)) is None


def test_patience_follows_the_schedule() -> None:
    detector = PlateauDetector(window_share=0.5)
    state = packet(epoch=8, a=layer([1.0]))
    growing = GrowOnPlateau(detector, SeedStrategy())
    assert growing.decide(state) is None  # 9 epochs seen, and the window is 10 of 20
    decision = growing.decide(replace(state, total_epochs=18))
    assert decision is not None
    assert "over 9 epochs" in decision.reason
    assert detector.window_of(2) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"min_confidence": 1.5},
        {"quiet_tail": -0.1},
        {"min_rate_share": 1.1},
        {"max_trials_at_once": 0},
        {"first_epoch": -1},
        {"prior_weight": 0.0},
    ],
)
def test_a_setting_out_of_bounds_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        GrowOnPlateau(PlateauDetector(), SeedStrategy(), **settings)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_window_share_out_of_bounds_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="window_share"):
        PlateauDetector(window_share=share)


@pytest.mark.parametrize(("epoch", "asked"), [(4, "b"), (5, "a"), (9, "a"), (10, "b")])
def test_a_refused_seed_rests(epoch: int, asked: str) -> None:
    growing = GrowOnPlateau(PlateauDetector(), SeedStrategy(refusal_rest=5))
    refusals = (Refusal(4, "b", 0, "no kernel"),) if epoch > 4 else ()
    state = replace(packet(epoch, a=layer([1.0]), b=layer([3.0])), refusals=refusals)
    decision = growing.decide(state)
    assert decision is not None
    assert decision.target_component == asked


def test_a_seed_refused_twice_is_never_asked_for_again() -> None:
    strategy = SeedStrategy(refusal_rest=0)
    state = packet(12, a=layer([1.0]), b=layer([3.0]))
    once, again = Refusal(3, "b", 0, "no kernel"), Refusal(5, "b", 0, "no kernel")
    assert [c.layer for c in strategy.candidates(replace(state, refusals=(once,)))] == ["b", "a"]
    assert [c.layer for c in strategy.candidates(replace(state, refusals=(once, again)))] == ["a"]
    other = replace(again, seed_idx=1)
    assert len(strategy.candidates(replace(state, refusals=(once, other)))) == 2


def test_fisher_weighs_the_gradient_by_the_variance() -> None:
    wide = replace(layer([1.0]), signals=(HealthSignal(0, 9, 1.0, 0, 0, 1),))
    state = packet(a=wide, b=layer([2.0]))
    by_gradient = SeedStrategy().candidates(state)
    by_fisher = SeedStrategy(score="fisher").candidates(state)
    assert [(c.layer, c.share) for c in by_gradient] == [("b", 4 / 5), ("a", 1 / 5)]
    assert [(c.layer, c.share) for c in by_fisher] == [("a", 9 / 13), ("b", 4 / 13)]
    decision = GrowOnPlateau(PlateauDetector(), SeedStrategy(score="fisher")).decide(state)
    assert decision is not None
    assert decision.evidence["fisher_share"] == pytest.approx(9 / 13)
    assert "of the Fisher score" in decision.reason


def test_the_gradient_alone_forgets_what_was_culled() -> None:
    state = replace(packet(a=layer([1.0]), b=layer([1.1])), trials=(trial("b", "culled"),))
    assert SeedStrategy().candidates(state)[0].layer == "a"
    assert SeedStrategy(use_record=False).candidates(state)[0].layer == "b"


def test_failed_kernels_are_avoided_and_their_layer_counts_less(policy: GrowOnPlateau) -> None:
    state = replace(
        packet(a=layer([1.0]), b=layer([1.1])), trials=(trial("b", "culled", kernel_id="kernel_x"),)
    )
    decision = policy.decide(state)
    assert decision is not None
    assert decision.target_component == "a"
    alone = policy.decide(replace(packet(b=layer([1.0])), trials=state.trials))
    assert alone is not None
    assert alone.parameters["avoid"] == ["kernel_x"]


def test_expected_impact_moves_from_the_prior_to_what_was_seen(policy: GrowOnPlateau) -> None:
    before = policy.decide(packet(a=layer([1.0])))
    after = policy.decide(replace(packet(a=layer([1.0])), trials=(trial("a", "kept", gain=0.1),)))
    assert before is not None
    assert after is not None
    assert before.expected_impact == pytest.approx(0.01)
    assert after.expected_impact == pytest.approx((0.02 + 0.2) / 3)


def test_the_control_never_grows() -> None:
    assert NeverGrow().decide(packet(a=layer([9.0]))) is None
