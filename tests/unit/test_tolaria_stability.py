"""What counts as unstable, each detector alone, and what of it a checkpoint keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from esper.errors import ConfigError
from esper.messages import Emergency, EpochRecord, Symptom
from esper.tamiyo.emergency import EmergencyPolicy
from esper.tolaria.progress import Adapted, Easing, Progress, Rollback
from esper.tolaria.stability import (
    Limits,
    Past,
    StepWatch,
    divergence,
    first_non_finite,
    has_collapsed,
    is_spike,
    judge_step,
)

LIMITS = Limits(chance=math.log(10), window=32)
NOISY = [0.5 + 0.1 * math.sin(3 * n) for n in range(32)]


def past(losses: list[float], norm: float = 1.0) -> Past:
    found = Past()
    for loss in losses:
        found.add(loss, norm, LIMITS)
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen_from_the_first_step_on(value: float) -> None:
    assert judge_step(value, 1.0, Past(), LIMITS)[0] == "non-finite loss"
    assert judge_step(1.0, value, Past(), LIMITS)[0] == "non-finite gradient"


def test_a_spike_stands_out_and_is_far_worse_than_a_guess() -> None:
    assert is_spike(50.0, NOISY, LIMITS)
    assert not is_spike(4.0, NOISY, LIMITS)  # 40 deviations, and yet less than twice the loss of a guess
    assert not is_spike(50.0, NOISY[:7], LIMITS)  # too little to compare with
    wild = [10.0 * (n % 7) for n in range(32)]
    assert not is_spike(50.0, wild, LIMITS)  # as the others were


def test_a_gradient_explodes_beyond_all_before() -> None:
    assert judge_step(0.5, 99.0, past(NOISY), LIMITS) is None
    assert judge_step(0.5, 101.0, past(NOISY), LIMITS)[0] == "gradient explosion"
    assert judge_step(0.5, 101.0, past(NOISY[:7]), LIMITS) is None


def test_training_collapses_from_learning_back_to_a_guess() -> None:
    chance = LIMITS.chance
    learned = past(NOISY).best
    assert learned == pytest.approx(0.5, abs=0.05)
    assert has_collapsed([chance] * 32, learned, LIMITS)
    assert not has_collapsed([chance] * 31, learned, LIMITS)
    assert not has_collapsed([chance] * 32, 2.0, LIMITS)  # it had never learned much
    assert not has_collapsed([0.9 * chance] * 32, learned, LIMITS)
    fallen = past([*NOISY, *[chance + 0.01] * 20])
    seen = [judge_step(chance + 0.01, 1.0, fallen, LIMITS)]
    assert seen[0] is not None
    assert seen[0][0] == "collapse"


def test_divergence_is_blamed_on_the_newest_adaptation_before_it() -> None:
    history = [EpochRecord(n, 0.5, 0.5, 0.8) for n in range(6)] + [EpochRecord(6, 0.5, 2.0, 0.3)]
    assert divergence(history, [(3, "a#0"), (5, "b#1"), (6, "c#2")], LIMITS)[0] == "b#1"
    assert divergence(history, [(1, "a#0")], LIMITS) is None  # too long ago
    assert divergence(history[:-1], [(3, "a#0")], LIMITS) is None


@pytest.mark.parametrize("place", ["weight", "running_mean"])
def test_a_value_that_is_not_finite_is_named(place: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert first_non_finite(model) is None
    with torch.no_grad():
        model.state_dict()[f"1.{place}"][1] = float("nan")
    assert first_non_finite(model) == f"1.{place}"


def test_a_watch_says_which_step_it_was_and_goes_on_from_what_it_kept() -> None:
    weight = nn.Parameter(torch.ones(3))

    def note(watch: StepWatch, step: int, loss: float, slope: float = 1.0) -> None:
        weight.grad = torch.full((3,), slope)
        watch.note((2, step, 70 + step), torch.tensor(loss), [weight])

    first, second = (StepWatch(LIMITS, torch.device("cpu")) for _ in range(2))
    for step, loss in enumerate(NOISY):
        note(first, step, loss)
    assert first.full
    assert first.look() is None
    second.restore(first.state())
    for watch in (first, second):
        note(watch, 32, 0.5)
        note(watch, 33, 0.5, slope=float("nan"))
        note(watch, 34, float("nan"))
        found = watch.look()
        assert found == Symptom("non-finite gradient", 2, 33, 103, "the norm of the gradient is nan")
    assert first.state() == second.state()
    assert first.past.highest_norm == pytest.approx(3**0.5)


def test_a_cause_that_stays_ends_the_run() -> None:
    symptom = Symptom("loss spike", 3, 7, 37, "")
    policy = EmergencyPolicy(rollbacks=3, rate=0.5)
    decisions = [policy.decide(Emergency(symptom, "batch", "", earlier)) for earlier in range(4)]
    assert [decision is None for decision in decisions] == [False, False, False, True]
    assert decisions[0].parameters["skip"] == (3, 7)
    assert policy.decide(Emergency(symptom, "adaptation", "a#0", 0)).parameters["skip"] is None
    assert policy.decide(Emergency(symptom, "training", "", 0)).parameters["lasting"]


def test_rollbacks_are_counted_by_their_cause() -> None:
    done = Progress(
        rollbacks=(
            Rollback("adaptation", "a#0", 1, 12, 10),
            Rollback("batch", "", 2, 25, 20),
            Rollback("batch", "", 5, 55, 50),
        )
    )
    assert done.earlier_rollbacks("batch", "", 5) == 1
    assert done.earlier_rollbacks("batch", "", 7) == 0  # there was a good epoch since
    assert done.earlier_rollbacks("adaptation", "a#0", 9) == 1
    assert done.earlier_rollbacks("adaptation", "b#0", 9) == 0


def test_the_rate_comes_back_step_by_step() -> None:
    done = Progress(global_step=100, rate=0.5, easing=Easing(0.5, 100, 120))
    factors = []
    for step in (100, 110, 120, 130):
        done.global_step = step
        factors.append(done.rate_factor)
    assert factors == [0.25, 0.375, 0.5, 0.5]
    assert Progress().rate_factor == 1


def test_what_a_rollback_noted_outlives_the_next_one() -> None:
    first, second = Rollback("batch", "", 2, 25, 20), Rollback("training", "", 4, 45, 10)
    noted = {"skipped": ((2, 5),), "left_out": (7,), "rate": 0.5, "embargoed": (("widen host", 4),)}
    spent = {"samples": 900, "flops": 5e6, "seconds": 3.0, "easing": Easing(0.5, 20, 30)}
    left = Progress(global_step=45, rollbacks=(first,), **noted, **spent)
    back = Progress(global_step=10, samples=200, flops=1e6, seconds=1.0)
    back.carry_on_from(left, second)
    assert back == Progress(global_step=10, rollbacks=(first, second), **noted, **spent)


def test_all_that_a_rollback_noted_is_in_a_checkpoint() -> None:
    from dataclasses import asdict

    from esper.tolaria.checkpoints.tree import join, split

    done = Progress(
        adapted=(Adapted(1, "a#0", 10),),
        rollbacks=(Rollback("batch", "", 2, 25, 20),),
        skipped=((2, 5),),
        rate=0.5,
        easing=Easing(0.5, 100, 120),
        embargoed=(("widen host", 4),),
    )
    assert Progress.from_state(join(*split(asdict(done)))) == done


@pytest.mark.parametrize(
    "wrong", [{"window": 7}, {"spike": 0.0}, {"gradient": float("nan")}, {"adaptation_epochs": -1}]
)
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"tolaria\.recovery\.{name} must be"):
        Limits(chance=1.0, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tolaria\.recovery\.rate must be"):
        EmergencyPolicy(rate=0.0)
