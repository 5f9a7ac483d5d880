"""The task with a planted block, cut down: what its proof counts is what it says it counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from esper.assembly.proving import planted_search
from esper.assembly.proving.planted import BREEDING, SLOT, Planted, draw, fitting
from esper.assembly.proving.planted_search import BATCH, BUDGET, by_chance, by_inventing, summary, taken
from esper.blueprint import Blueprint
from esper.karn.catalogue import load_catalogue
from esper.karn.features import kernel_key
from esper.karn.generator import Generator
from esper.karn.invention import Invention, Past, Place
from esper.tezzeret.builder import build

CATALOGUE = fitting(load_catalogue([Path(__file__).resolve().parents[2] / "blueprints"]).blueprints)
(SWIGLU,) = (one for one in CATALOGUE if one.name == "swiglu")
GENERATOR = Generator(build, least=4, pool=12, sample=6, breeding=BREEDING)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(planted_search, "BUDGET", 8)
    return 8


@pytest.fixture(scope="module")
def task() -> Planted:
    return Planted(SWIGLU, seed=0)


def test_the_planted_block_itself_leaves_no_error(task: Planted) -> None:
    x, target = task.held_out
    with torch.no_grad():
        whole = torch.cat([task.train[0], x])
        made = build(SWIGLU, SLOT, seed=1_000_000).eval()(whole)
        made = (made - made.mean(0)) / (made.std(0) + 1e-6)
        error = task._errors(task.held_out, made[len(task.train[0]) :])
    assert float(error.max()) < 1e-8
    assert task.most == pytest.approx(
        float((target - task._network(x, torch.zeros(1)) / task.scale).square().mean())
    )


def test_a_trial_follows_from_blueprint_and_seed_and_gains_less_than_there_is(task: Planted) -> None:
    first = task.trial(SWIGLU, 3)
    assert first == task.trial(SWIGLU, 3)
    assert 0.3 * task.most < first.gain < task.most
    assert 0 < first.error < first.gain


def test_both_searches_spend_the_budget_and_try_no_kernel_twice(task: Planted, short: int) -> None:
    unreachable = Planted(SWIGLU, seed=0)
    unreachable.most = 10.0
    chance = by_chance(CATALOGUE, unreachable, seed=0)
    assert len(chance) == short == len({kernel_key(block, SLOT) for block, _ in chance})
    gains = by_inventing(CATALOGUE, unreachable, GENERATOR)
    assert len(gains) == short
    assert gains == by_inventing(CATALOGUE, unreachable, GENERATOR)


def test_the_catalogue_is_known_to_both_and_counts_for_neither(task: Planted, short: int) -> None:
    told: list[Past] = []

    class Recording:
        def propose(self, past: Past, places: Sequence[Place], count: int) -> list[Invention]:
            told.append(Past(list(past.reports), list(past.blueprints), set(past.known)))
            return GENERATOR.propose(past, places, count)

    unreachable = Planted(SWIGLU, seed=0)
    unreachable.most = 10.0
    assert len(by_inventing(CATALOGUE, unreachable, Recording())) == short
    ids = [one.blueprint_id for one in CATALOGUE]
    assert [one.blueprint_id for one in told[0].reports] == ids
    assert told[0].known == {(one.graph_id, SLOT) for one in CATALOGUE}
    assert len(told[1].reports) == len(ids) + BATCH
    shipped = {kernel_key(one, SLOT) for one in CATALOGUE}
    drawn = {kernel_key(one, SLOT) for one, _ in by_chance(CATALOGUE, unreachable, seed=0)}
    assert not shipped & drawn


def test_a_search_ends_at_the_first_block_near_the_best(short: int) -> None:
    easy = Planted(SWIGLU, seed=0)
    easy.most = 0.05
    for gains in (
        by_inventing(CATALOGUE, easy, GENERATOR),
        [gain for _, gain in by_chance(CATALOGUE, easy, 0)],
    ):
        assert len(gains) == taken(gains, easy.most) < short
        assert gains[-1] >= 0.95 * easy.most > max([0.0, *gains[:-1]])


def test_what_is_never_found_counts_as_one_more_than_the_budget() -> None:
    assert taken([0.1, 0.2], 1.0) == BUDGET + 1
    assert taken([0.1, 0.96, 0.99], 1.0) == 2


def test_the_summary_is_of_pairs() -> None:
    pairs = [
        {"karn": karn, "random": chance, "proxies": {"naswot": 0.1 * karn}}
        for karn, chance in ((10, 30), (20, BUDGET + 1), (BUDGET + 1, 50))
    ]
    found = summary(pairs)
    assert found["trials_saved"][0] == pytest.approx((20 + BUDGET - 19 + 49 - BUDGET) / 3)
    assert (found["karn_found"], found["random_found"]) == (2, 2)


def test_random_blocks_are_of_the_space_that_karn_has() -> None:
    rng = Random(0)
    blocks: list[Blueprint] = [draw(CATALOGUE, rng, 2) for _ in range(10)]
    assert all(BREEDING.bounds.allow(one, SLOT) for one in blocks)
    tight = replace(BREEDING.bounds, nodes=1)
    assert not any(tight.allow(one, SLOT) for one in blocks)
