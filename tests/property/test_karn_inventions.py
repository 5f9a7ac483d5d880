"""Whatever is done to the blueprints that ship, in chains, is an invention that may be compiled."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from karn_chains import BOUNDS, SHIPPED, chain, chains

from esper.blueprint import Blueprint, fits, from_json
from esper.karn.bounds import Bounds
from esper.karn.features import distance, kernel_key, words
from esper.karn.mutation import mutate
from esper.messages import Slot

torch.set_num_threads(1)
SLOT = Slot("features", 8, 8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_chains_give_valid_blueprints_that_start_quiet(seed: int) -> None:
    for one in chain(seed):
        assert from_json(one.canonical_json()) == one


def test_nearly_every_step_of_a_chain_gives_a_new_graph() -> None:
    found = chains(25, first=0)
    assert found["blueprints"] >= 0.98 * found["steps"]
    assert found["graphs"] >= 0.95 * found["blueprints"]


@pytest.mark.parametrize("parent", [one for one in SHIPPED if fits(one, SLOT)], ids=lambda one: one.name)
def test_a_mutation_is_another_graph_that_is_like_its_parent(parent: Blueprint) -> None:
    rng = Random(0)
    for _ in range(5):
        made = mutate(parent, SLOT, rng, BOUNDS)
        assert made is not None
        child, told = made
        assert child.graph_id != parent.graph_id
        assert told in child.title
        assert -1e-9 < distance(words(child), words(parent)) < 0.8
        assert child.name.startswith(parent.name)


def test_tight_bounds_are_kept() -> None:
    rng, tight = Random(0), Bounds(nodes=5, depth=5, parameters=90)
    (parent,) = (one for one in SHIPPED if one.name == "low_rank")
    made = [mutate(parent, SLOT, rng, tight) for _ in range(20)]
    assert all(one is None or (tight.allow(one[0], SLOT) and len(one[0].nodes) <= 5) for one in made)
    assert len({kernel_key(one[0], SLOT) for one in made if one}) > 3
