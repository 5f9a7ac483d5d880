"""Policies by schedule, by chance and by bandit: pure, explained, and bounded."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.messages import (
    EpochRecord,
    FieldReport,
    GrowthReport,
    HealthSignal,
    LayerMetrics,
    Refusal,
    SeedState,
    Slot,
    SystemStatePacket,
)
from esper.tamiyo.bandit import ThompsonBandit
from esper.tamiyo.deepen_on_schedule import DeepenOnSchedule
from esper.tamiyo.grow_on_plateau import GrowOnPlateau
from esper.tamiyo.grow_on_schedule import GrowOnSchedule
from esper.tamiyo.plateau import PlateauDetector
from esper.tamiyo.policy import Policy
from esper.tamiyo.random_growth import RandomGrowth
from esper.tamiyo.strategy import SeedStrategy

SLOT = Slot("features", 4, 4)
FAMILIES = ["mlp", "norm", "gated"]


def layer(gradients: list[float], states: list[SeedState] | None = None, slot: Slot = SLOT) -> LayerMetrics:
    return LayerMetrics(
        gradient_norm=sum(gradients),
        activation_variance=1.0,
        seed_health=(1.0,) * len(gradients),
        kind="linear",
        seed_states=tuple(states or [SeedState.DORMANT] * len(gradients)),
        parallel_slots=(slot,) * len(gradients),
        series_slots=(slot,) * len(gradients),
        signals=tuple(HealthSignal(0, 1, g, 0, 0, 1) for g in gradients),
    )


def packet(epoch: int = 9, total: int = 20, **layers: LayerMetrics) -> SystemStatePacket:
    return SystemStatePacket(
        epoch=epoch,
        global_step=10 * epoch,
        loss=0.5,
        accuracy=0.8,
        layer_metrics=layers or {"a": layer([1.0, 2.0]), "b": layer([3.0, 1.0])},
        held_out_loss=0.5,
        total_epochs=total,
        history=tuple(EpochRecord(i, 0.5, 0.5 + 0.001 * (i % 2), 0.8) for i in range(epoch + 1)),
        progress=(epoch + 1) / total,
    )


def trial(verdict: str, *tags: str, layer: str = "a", gain: float = 0.0) -> FieldReport:
    return FieldReport(
        layer=layer,
        layer_kind="linear",
        seed_idx=0,
        slot=SLOT,
        site="parallel",
        kernel_id="kernel_a",
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
        tags=tags,
    )


def schedule(*at: float) -> GrowOnSchedule:
    return GrowOnSchedule(SeedStrategy(), at or (0.2, 0.5))


def chance(*at: float, seed: int = 0) -> RandomGrowth:
    return RandomGrowth(SeedStrategy(tags={"linear": ["mlp"]}), at or (0.2, 0.5), seed=seed)


def plateau() -> GrowOnPlateau:
    return GrowOnPlateau(PlateauDetector(), SeedStrategy())


def bandit(seed: int = 0) -> ThompsonBandit:
    return ThompsonBandit(plateau(), {"features": FAMILIES}, seed=seed)


EVERY: list[Callable[[], Policy]] = [schedule, chance, plateau, bandit]


@pytest.mark.parametrize("make", EVERY)
@given(epoch=st.integers(3, 13), gradients=st.lists(st.floats(0, 10), min_size=1, max_size=4))
def test_equal_packets_give_equal_decisions(
    make: Callable[[], Policy], epoch: int, gradients: list[float]
) -> None:
    one, other = (packet(epoch, a=layer(gradients), b=layer([1.0])) for _ in range(2))
    policy = make()
    decision = policy.decide(one)
    assert decision == policy.decide(one) == make().decide(other)
    if decision is not None:
        assert 0 <= decision.confidence <= 1
        assert decision.reason
        assert decision.evidence


@pytest.mark.parametrize("make", EVERY)
def test_every_decision_is_explained(make: Callable[[], Policy]) -> None:
    decision = make().decide(packet())
    assert decision is not None
    assert decision.reason
    assert decision.evidence
    assert decision.alternatives
    assert all("score" in other for other in decision.alternatives)
    assert decision.expected_impact == pytest.approx(0.01)
    assert decision.confidence == pytest.approx(0.5)


@pytest.mark.parametrize("make", EVERY)
def test_no_history_and_no_free_seed_give_no_decision(make: Callable[[], Policy]) -> None:
    policy = make()
    assert policy.needs_kernels
    assert policy.decide(replace(packet(), history=())) is None
    assert policy.decide(packet(a=layer([1.0], [SeedState.EMBARGOED]))) is None


@pytest.mark.parametrize("make", [schedule, chance])
def test_one_decision_at_each_share(make: Callable[..., Policy]) -> None:
    """Lived through as a run would: each decision becomes a seed on trial, then a report."""
    policy, states, trials, decided = make(0.2, 0.5, 0.5), [SeedState.DORMANT] * 6, (), []
    for epoch in range(20):
        state = replace(packet(epoch, a=layer([1.0] * 6, states)), trials=trials)
        decision = policy.decide(state)
        if decision is not None:
            decided.append(epoch)
            states[decision.parameters["seed_idx"]] = SeedState.TRAINING
        elif SeedState.TRAINING in states and epoch % 3 == 0:
            states[states.index(SeedState.TRAINING)] = SeedState.FOSSILIZED
            trials += (trial("kept"),)
    assert decided == [3, 9, 10]


def test_a_refused_decision_is_not_repeated_before_the_next_share() -> None:
    refused = (Refusal(3, "a", 1, "no kernel"),)
    assert schedule().decide(replace(packet(4), refusals=refused)) is None
    assert schedule().decide(replace(packet(9), refusals=refused)) is not None


def test_the_schedule_says_when_and_where() -> None:
    decision = schedule().decide(packet(3))
    assert decision is not None
    assert (decision.target_component, decision.parameters["seed_idx"]) == ("b", 0)
    assert decision.evidence["due_at"] == 0.2
    assert decision.evidence["gradient_share"] == pytest.approx(9 / 15)
    assert "20% of the run" in decision.reason


def test_chance_takes_every_free_seed_equally_often() -> None:
    states = [SeedState.DORMANT, SeedState.FOSSILIZED]
    state = packet(a=layer([9.0, 9.0]), b=layer([0.1, 0.1], states), c=layer([0.0]))
    places: Counter[tuple[str, int]] = Counter()
    for seed in range(2000):
        decision = chance(seed=seed).decide(state)
        assert decision is not None
        places[decision.target_component, decision.parameters["seed_idx"]] += 1
    assert set(places) == {("a", 0), ("a", 1), ("b", 0), ("c", 0)}
    assert all(abs(number - 500) < 100 for number in places.values())  # five standard deviations


def test_chance_asks_for_any_kernel_in_an_order_of_its_own() -> None:
    decisions = [chance().decide(packet(epoch)) for epoch in (3, 4)]
    seeds = [decision.parameters["choice_seed"] for decision in decisions if decision is not None]
    assert len(set(seeds)) == 2
    assert decisions[0] is not None
    assert decisions[0].parameters["choice"] == "random"
    assert decisions[0].parameters["tags"] == []


def test_the_bandit_counts_what_was_kept_of_each_family() -> None:
    trials = (
        trial("kept", "mlp", "linear", gain=0.1),
        trial("culled", "norm"),
        trial("failed", "norm", "mlp"),
    )
    state = replace(packet(), trials=trials)
    decision = bandit().decide(state)
    assert decision is not None
    means = {other["family"]: other["posterior_mean"] for other in decision.alternatives}
    chosen = decision.parameters["tags"][0]
    means[chosen] = decision.evidence["family_mean"]
    assert means == {"mlp": 2 / 4, "norm": 1 / 4, "gated": 1 / 2}
    scores = [other["score"] for other in decision.alternatives]
    assert scores == sorted(scores, reverse=True)
    assert decision.evidence["family_draw"] >= scores[0]
    assert decision.confidence == pytest.approx(decision.evidence["plateau"] * means[chosen])


def test_the_bandit_comes_to_prefer_what_is_kept_and_still_tries_the_rest() -> None:
    trials = (trial("kept", "gated"),) * 3 + (trial("culled", "mlp"),) * 3 + (trial("culled", "norm"),) * 3
    state = replace(packet(), trials=trials)
    chosen: Counter[str] = Counter()
    for seed in range(400):
        decision = bandit(seed).decide(state)
        assert decision is not None
        chosen[decision.parameters["tags"][0]] += 1
    assert chosen["gated"] > 300
    assert chosen["mlp"] > 0


def test_the_bandit_leaves_a_layout_without_families_to_its_policy() -> None:
    state = packet(a=layer([1.0, 2.0], slot=Slot("channels", 4, 4)))
    assert bandit().decide(state) == plateau().decide(state)


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (schedule, [1.0], "at must be shares"),
        (schedule, [-0.1], "at must be shares"),
        (chance, [0.5, 2.0], "at must be shares"),
        (chance, [float("nan")], "at must be shares"),
    ],
)
def test_a_share_out_of_bounds_is_refused(make: Any, settings: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(*settings)


def test_other_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at must be shares"):
        GrowOnSchedule(SeedStrategy(), [])
    with pytest.raises(ValueError, match="prior_weight"):
        GrowOnSchedule(SeedStrategy(), [0.5], prior_weight=-1)
    with pytest.raises(ValueError, match="prior_impact"):
        RandomGrowth(SeedStrategy(), [0.5], prior_impact=float("inf"))
    with pytest.raises(ValueError, match="seed must be"):
        chance(seed=-1)
    with pytest.raises(ValueError, match="seed must be"):
        bandit(-1)


@pytest.mark.parametrize(
    ("families", "said"),
    [
        ({}, "families must name"),
        ({"images": ["mlp"]}, "a layout is one of"),
        ({"features": []}, "features needs tags"),
        ({"features": ["mlp", "mlp"]}, "each once"),
    ],
)
def test_families_that_cannot_compete_are_refused(families: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ThompsonBandit(plateau(), families)


def block(epoch: int, target: str) -> GrowthReport:
    return GrowthReport(epoch, "deepen", target, {}, 10, 0.5, 0.5, 0.8, 0.8, "residual", 4)


def lived(policy: DeepenOnSchedule, refused: tuple[str, ...] = (), epochs: int = 20) -> list[tuple[int, str]]:
    """Epochs and targets of the decisions of a run in which blocks after ``refused`` are refused."""
    growths: tuple[GrowthReport, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    decided = []
    for epoch in range(epochs):
        decision = policy.decide(replace(packet(epoch, epochs), growths=growths, refusals=refusals))
        if decision is None:
            continue
        target = decision.target_component
        assert decision.adaptation_type == "modify_architecture"
        assert decision.parameters["target"] == target
        decided.append((epoch, target))
        if target in refused:
            refusals += (Refusal(epoch, target, -1, "no"),)
        else:
            growths += (block(epoch, target),)
    return decided


def test_a_block_at_each_share_after_each_target_in_turn() -> None:
    policy = DeepenOnSchedule([0.5, 0.2, 0.5], ["x", "y"])
    assert lived(policy) == [(3, "x"), (9, "y"), (10, "x")]
    assert lived(policy, refused=("x",)) == [(3, "x"), (9, "y"), (10, "x")]  # a refusal is a turn, too


def test_without_targets_the_wrapped_layers_have_their_turns() -> None:
    policy = DeepenOnSchedule([0.2, 0.5, 0.7])
    assert lived(policy) == [(3, "a"), (9, "b"), (13, "a")]
    assert policy.decide(replace(packet(), layer_metrics={})) is None


def test_a_decision_to_deepen_is_pure_and_says_what_and_why() -> None:
    policy = DeepenOnSchedule([0.2], ["x"], hidden=4)
    decision = policy.decide(packet())
    assert decision == policy.decide(packet()) == DeepenOnSchedule([0.2], ["x"], hidden=4).decide(packet())
    assert decision is not None
    assert decision.parameters == {"operator": "deepen", "target": "x", "like": "residual", "hidden": 4}
    assert "residual block after x at 20% of the run" in decision.reason
    assert decision.evidence["due_at"] == 0.2
    assert not policy.needs_kernels
    assert not policy.needs_widths


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"at": [1.0]}, "at must be shares"),
        ({"at": []}, "at must be shares"),
        ({"targets": "blocks"}, "targets must be a list of names"),
        ({"targets": [""]}, "targets must be a list of names"),
        ({"targets": [1]}, "targets must be a list of names"),
        ({"like": "mirror"}, "like is one of residual, copy, not 'mirror'"),
        ({"hidden": 0}, "hidden is a number of at least 1"),
        ({"hidden": 4, "like": "copy"}, "of like=residual only"),
    ],
)
def test_settings_that_no_block_can_be_made_of_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DeepenOnSchedule(**{"at": [0.5], **settings})


def test_a_packet_has_no_field_of_the_test_split() -> None:
    names = [
        field.name for record in (SystemStatePacket, EpochRecord) for field in dataclasses.fields(record)
    ]
    assert not [name for name in names if "test" in name]
