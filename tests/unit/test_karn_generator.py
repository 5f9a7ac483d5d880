"""Inventions follow from the past and the seed; what is chosen, and why, is as the docstrings say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from esper.blueprint import Blueprint, fits
from esper.karn.catalogue import load_catalogue
from esper.karn.features import features
from esper.karn.generator import Generator
from esper.karn.invention import Invention, Past, Place
from esper.karn.proxies import proxies
from esper.karn.retirement import Retirement
from esper.karn.surrogate import Prediction, Surrogate, Trial, rank_correlation
from esper.messages import FieldReport, Slot
from esper.tezzeret.builder import build

torch.set_num_threads(1)
SLOT = Slot("features", 8, 8)
PLACE = Place(SLOT, "linear")
SHIPPED = load_catalogue([Path(__file__).resolve().parents[2] / "blueprints"]).blueprints
FITTING = [one for one in SHIPPED if fits(one, SLOT)]
GENERATOR = Generator(build, pool=16, sample=6, explore=0.0, blind=0.0, refine=0.0)


def report(blueprint: Blueprint, gain: float = 0.1, **changes: object) -> FieldReport:
    fields: dict[str, object] = {
        "layer": "first", "layer_kind": "linear", "seed_idx": 0, "slot": SLOT, "site": "parallel",
        "kernel_id": "kernel", "blueprint_id": blueprint.blueprint_id, "started_epoch": 1, "ended_epoch": 2,
        "verdict": "kept" if gain > 0 else "culled", "reason": "", "expected_impact": 0.0, "gain": gain,
        "gain_error": 0.01, "threshold": 0.0, "loss_before": 1.0, "loss_after": 1.0, "accuracy_before": 0.5,
        "accuracy_after": 0.5, "parameters": 10,
    }  # fmt: skip
    return FieldReport(**{**fields, **changes})  # type: ignore[arg-type]


def past(gains: dict[str, float]) -> Past:
    """All that fits was compiled, and tried as ``gains`` says: by name, 0 for what is not in it."""
    reports = [report(one, gains.get(one.name, 0.0) + 0.001 * i) for i, one in enumerate(FITTING)] * 2
    return Past(reports, SHIPPED, {(one.graph_id, SLOT) for one in SHIPPED})


def told(inventions: list[Invention]) -> list[tuple[str, str, float | None]]:
    return [(one.blueprint.canonical_json(), one.reason, one.predicted_impact) for one in inventions]


def test_the_same_past_and_seed_give_the_same_inventions() -> None:
    given = past({"swiglu": 0.5})
    first, again = (GENERATOR.propose(given, [PLACE], 3) for _ in range(2))
    assert told(first) == told(again)
    other = Generator(build, seed=1, pool=16, sample=6).propose(given, [PLACE], 3)
    assert told(other) != told(first)


def test_nothing_known_is_proposed_nor_anything_twice() -> None:
    given = past({})
    made = GENERATOR.propose(given, [PLACE], 6)
    graphs = [one.blueprint.graph_id for one in made]
    assert len(set(graphs)) == len(graphs) == 6
    assert not {(graph, SLOT) for graph in graphs} & set(given.known)
    more = Past(given.reports, given.blueprints, {*given.known, *((graph, SLOT) for graph in graphs)})
    assert not {one.blueprint.graph_id for one in GENERATOR.propose(more, [PLACE], 6)} & set(graphs)


def test_with_trials_the_children_of_what_gained_are_chosen_and_predicted() -> None:
    made = GENERATOR.propose(past({"swiglu": 0.5}), [PLACE], 4)
    (winner,) = (one.blueprint_id for one in FITTING if one.name == "swiglu")
    assert sum(winner in one.parents for one in made) >= 3
    for one in made:
        assert one.origin in ("mutation", "crossover")
        assert len(one.parents) == (1 if one.origin == "mutation" else 2)
        assert one.predicted_impact is not None
        assert one.uncertainty is not None
        assert one.uncertainty > 0
        assert "expected to improve on" in one.reason
        assert "\n" not in one.reason


def test_with_few_trials_zero_cost_scores_choose_and_the_reason_says_so() -> None:
    few = Past([report(FITTING[0])] * 7, SHIPPED, ())
    made = GENERATOR.propose(few, [PLACE], 2)
    assert all("fewer than 8 trials to learn from, so by zero-cost scores" in one.reason for one in made)
    assert all(one.predicted_impact is None and one.uncertainty is None for one in made)
    assert Generator(build, least=7, pool=8).propose(few, [PLACE], 1)[0].predicted_impact is not None


def test_exploration_takes_what_is_least_like_what_is_known() -> None:
    made = Generator(build, pool=16, explore=1.0).propose(past({"swiglu": 0.5}), [PLACE], 2)
    assert all("explored for its graph" in one.reason for one in made)


def test_blind_choices_descend_from_what_was_not_invented_whatever_is_predicted() -> None:
    invented = [each.blueprint for each in GENERATOR.propose(past({}), [PLACE], 4)]
    given = past({})
    given = Past(
        [*given.reports, *[report(one, 5.0) for one in invented]], [*given.blueprints, *invented], given.known
    )
    made = replace(GENERATOR, blind=1.0).propose(given, [PLACE], 6)
    assert all("explored blindly" in one.reason for one in made)
    assert {one.parents[0] for one in made} <= {one.blueprint_id for one in FITTING}
    assert len({one.parents[0] for one in made}) > 2
    means = [one.predicted_impact or 0.0 for one in made]
    assert means != sorted(means, reverse=True)


def test_refined_are_children_of_one_change_of_the_two_best_measured_in_the_place() -> None:
    gains = {"swiglu": 0.5, "highway": 0.4}
    best = {one.blueprint_id for one in FITTING if one.name in gains}
    assert len(best) == 2
    elsewhere = [report(one, 9.0, layer_kind="conv") for one in FITTING]
    given = past(gains)
    given = Past([*given.reports, *elsewhere], given.blueprints, given.known)
    made = replace(GENERATOR, refine=1.0).propose(given, [PLACE], 8)
    assert {parent for one in made for parent in one.parents} == best
    for one in made:
        assert one.origin == "mutation"
        assert one.reason.endswith(": one change of one of the best measured")
        assert ";" not in one.reason


def test_the_shares_of_the_choices_are_as_set() -> None:
    generator = replace(GENERATOR, explore=0.2, blind=0.2, refine=0.3)
    reasons = [one.reason for one in generator.propose(past({"swiglu": 0.5}), [PLACE], 50)]
    for share, word in ((0.2, "its graph"), (0.2, "blindly"), (0.3, "one change"), (0.3, "expected to")):
        assert sum(word in one for one in reasons) == pytest.approx(50 * share, abs=9), word


def test_places_take_turns_and_each_invention_fits_its_own() -> None:
    places = [PLACE, Place(Slot("channels", 4, 6, 2), "conv")]
    made = GENERATOR.propose(past({}), places, 5)
    assert [one.place for one in made] == [places[0], places[1], places[0], places[1], places[0]]
    assert all(fits(one.blueprint, one.place.slot) for one in made)
    assert GENERATOR.propose(Past(), places, 5) == []


def test_four_losses_retire_and_the_user_or_time_brings_back() -> None:
    loser, winner, other = FITTING[:3]
    reports = [report(loser, -0.1)] * 3
    key = (loser.blueprint_id, "linear")
    assert not Retirement().retired(reports)
    lost = [*reports, report(loser, 0.0, verdict="failed"), *[report(winner)] * 4]
    assert list(Retirement().retired(lost)) == [key]
    assert not Retirement().retired([*lost, report(loser, 0.2)])
    assert not Retirement(revived=frozenset({loser.blueprint_id})).retired(lost)
    rested = [*lost, *[report(other)] * 36]
    assert not Retirement().retired(rested)
    assert list(Retirement().retired([*rested, report(loser, -0.1)])) == [key]


def test_what_is_retired_has_no_children_and_is_not_proposed() -> None:
    parents = FITTING[:2]
    reports = [report(parents[0], -0.1)] * 4 + [report(parents[1], 0.1)] * 8
    made = GENERATOR.propose(Past(reports, parents, ()), [PLACE], 6)
    assert made
    assert all(parents[0].blueprint_id not in one.parents for one in made)
    assert parents[0] not in [one.blueprint for one in made]


def surrogate(noise: float) -> tuple[Surrogate, list[float]]:
    """Of 40 trials whose gain is the share of gated blueprints' own, plus ``noise``."""
    rng = Random(0)
    gains = {one.blueprint_id: 0.1 * index for index, one in enumerate(FITTING)}
    trials = [
        Trial(features(one, PLACE), gains[one.blueprint_id] + rng.gauss(0, noise)) for one in FITTING * 6
    ]
    return Surrogate(trials), list(gains.values())


def test_the_surrogate_learns_gains_and_how_sure_it_may_be() -> None:
    model, gains = surrogate(0.02)
    predictions = model.predict([features(one, PLACE) for one in FITTING])
    for prediction, gain in zip(predictions, gains, strict=True):
        assert prediction.mean == pytest.approx(gain, abs=0.05)
        assert 0 <= prediction.deviation <= prediction.spread
    assert model.rank > 0.9
    between = [
        (a + b) / 2
        for a, b in zip(
            *([features(one, PLACE) for one in FITTING[i : -1 + i or None]] for i in (0, 1)), strict=True
        )
    ]
    unsure = sum(one.deviation for one in model.predict(between)) / len(between)
    assert unsure > 2 * sum(one.deviation for one in predictions) / len(predictions)


def test_spreads_are_calibrated_on_what_was_left_out() -> None:
    model, gains = surrogate(0.2)
    predictions = model.predict([features(one, PLACE) for one in FITTING])
    rng = Random(1)
    inside = [
        abs(gain + rng.gauss(0, 0.2) - prediction.mean) < 1.645 * prediction.spread
        for prediction, gain in zip(predictions, gains, strict=True)
        for _ in range(50)
    ]
    assert 0.8 < sum(inside) / len(inside) < 0.98


def test_what_is_believed_is_less_uncertain() -> None:
    model, _ = surrogate(0.02)
    between = (features(FITTING[0], PLACE) + features(FITTING[-1], PLACE)) / 2
    (before,) = model.predict([between])
    for _ in range(3):
        model.believing(between)
    (after,) = model.predict([between])
    assert after.deviation < 0.7 * before.deviation


def test_expected_improvement_by_sampling() -> None:
    prediction = Prediction(0.4, 0.3, 0.5)
    rng = Random(0)
    sampled = sum(max(0.0, rng.gauss(0.4, 0.3) - 0.6) for _ in range(200_000)) / 200_000
    assert prediction.improvement(0.6) == pytest.approx(sampled, rel=0.02)
    assert Prediction(0.4, 0.0, 0.0).improvement(0.1) == pytest.approx(0.3)


def test_proxies_of_every_shipped_blueprint_are_numbers_and_leave_it_alone() -> None:
    for blueprint in SHIPPED:
        slot = Slot(blueprint.layouts[0], 8, 8)
        kernel = build(blueprint, slot)
        before = {name: value.clone() for name, value in kernel.state_dict().items()}
        found = proxies(kernel, slot)
        assert all(abs(value) < 1e6 for value in found.values()), (blueprint.name, found)
        assert found == proxies(kernel, slot)
        assert all(torch.equal(before[name], value) for name, value in kernel.state_dict().items())
        assert all(parameter.grad is None for parameter in kernel.parameters())
        assert kernel.training


def test_proxies_by_hand() -> None:
    linear = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        linear[0].weight.copy_(torch.tensor([[-3.0, 4.0]]))
    found = proxies(linear, Slot("features", 2, 1))
    assert found["synflow"] == pytest.approx(torch.tensor(7.0).log().item())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 2, generator=generator)
    error = x @ torch.tensor([-3.0, 4.0]) - torch.randn(32, 1, generator=generator)[:, 0]
    by_hand = (2 * error[:, None] * x).mean(0).norm().log().item()
    assert found["gradient_norm"] == pytest.approx(by_hand, rel=1e-4)
    assert found["naswot"] < proxies(build(FITTING[0], SLOT), SLOT)["naswot"]


def test_rank_correlation_with_ties() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 2, 3], [4, 3, 3, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1], [1, 2]) == 0
