"""Trying inventions: the policy has the first word, then a kernel nobody has tried, in its place and time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_tamiyo_policies import layer, packet, schedule, trial

from esper.messages import SeedState, Slot, SystemStatePacket
from esper.tamiyo.never import NeverGrow
from esper.tamiyo.strategy import SeedStrategy
from esper.tamiyo.try_inventions import TryInventions

SLOT, OTHER = Slot("features", 4, 4), Slot("features", 4, 8)
HERE = packet(9, a=layer([1.0, 2.0]), b=layer([9.0, 9.0], slot=OTHER))


def policy(**settings: float) -> TryInventions:
    return TryInventions(NeverGrow(), SeedStrategy(), **{"after": 0.5, **settings})


def offered(at: SystemStatePacket = HERE, **changes: object) -> SystemStatePacket:
    return replace(at, inventions=(SLOT,), **changes)


def test_an_invented_kernel_is_asked_for_where_one_fits_and_nothing_else_is_wanted() -> None:
    decision = policy().decide(offered())
    assert decision is not None
    assert decision.target_component == "a"  # though the gradient is larger in b, which nothing fits
    assert (decision.parameters["seed_idx"], decision.parameters["tags"]) == (1, ["invented"])
    assert policy().decide(HERE) is None
    wanted = TryInventions(schedule(0.1), SeedStrategy()).decide(offered())
    assert wanted == schedule(0.1).decide(offered())


def test_what_the_run_has_tried_is_avoided_and_counts_for_the_confidence() -> None:
    tried = (trial("culled", "invented", layer="b"), trial("kept", layer="b"))
    decision = policy().decide(offered(trials=tried))
    assert decision is not None
    assert decision.parameters["avoid"] == ["kernel_a"]
    assert decision.confidence == pytest.approx(1 / 3)


def test_it_waits_for_the_policy_that_shapes_the_host_and_leaves_the_end_alone() -> None:
    assert policy(after=0.51).decide(offered()) is None
    assert policy(quiet_tail=0.5).decide(offered()) is None
    assert policy(quiet_tail=0.49).decide(offered()) is not None
    assert policy().decide(offered(rate_share=0.1)) is None
    early = TryInventions(schedule(0.9), SeedStrategy(), after=0.9)  # it needs kernels, and shapes nothing
    assert early.decide(offered()) is not None


def test_one_kernel_at_a_time() -> None:
    busy = packet(9, a=layer([1.0, 2.0]), b=layer([1.0], [SeedState.BLENDING]))
    assert policy().decide(offered(busy)) is None
    assert policy(max_trials_at_once=2).decide(offered(busy)) is not None


@pytest.mark.parametrize("setting", [{"after": 1.1}, {"quiet_tail": -0.1}, {"max_trials_at_once": 0}])
def test_settings_out_of_bounds_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        policy(**setting)
