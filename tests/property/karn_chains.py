"""Chains of random mutations and crossovers, every blueprint on the way held to what an invention must be.

By hand, for longer: ``python tests/property/karn_chains.py --chains 5000 --seed 7``. Ends with an error at
the first that is not valid, does not fit its slot, is over a budget, or is loud at birth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import torch

from esper.blueprint import Blueprint, fits, plan
from esper.blueprint.lint import Linter
from esper.karn.bounds import Bounds, depth, parameters
from esper.karn.catalogue import fitting, load_catalogue
from esper.karn.crossover import cross
from esper.karn.mutation import mutate
from esper.messages import Layout, Slot
from esper.tezzeret.budget import count_parameters
from esper.tezzeret.builder import build
from esper.tezzeret.examples import example

LENGTH = 6
LOUD = 0.5
"""Of the output's root mean square at birth, for input of 1; the rule of thumb allows 0.2."""
BOUNDS = Bounds(parameters=100_000)
SHIPPED = load_catalogue([Path(__file__).resolve().parents[2] / "blueprints"]).blueprints


def chain(seed: int) -> list[Blueprint]:
    """The blueprints of one chain, all of them checked; the last is built, and run."""
    rng = Random(seed)
    layout: Layout = rng.choice(("features", "tokens", "channels"))
    stride = rng.choice((1, 1, 2)) if layout == "channels" else 1
    slot = Slot(layout, rng.randint(2, 24), rng.randint(2, 24), stride)
    pool = fitting(SHIPPED, slot)
    blueprint = rng.choice(pool)
    found: list[Blueprint] = []
    for _ in range(LENGTH):
        if rng.random() < 0.75:
            made = mutate(blueprint, slot, rng, BOUNDS)
        else:
            made = cross(blueprint, rng.choice(pool), slot, rng, BOUNDS)
        if made is None:  # allowed, and counted
            continue
        blueprint = made[0]
        check(blueprint, slot)
        found.append(blueprint)
    check_kernel(blueprint, slot)
    return found


def check(blueprint: Blueprint, slot: Slot) -> None:
    """Lint is clean for the slot, and everything is within bounds and the compiler's budget."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "invented.json")
        path.write_text(blueprint.canonical_json())
        found = Linter([slot]).read(path)
    assert not found, (blueprint.canonical_json(), found)
    assert fits(blueprint, slot)
    assert len(blueprint.nodes) <= BOUNDS.nodes
    assert depth(blueprint) <= BOUNDS.depth
    assert parameters(plan(blueprint, slot)) <= BOUNDS.parameters


def check_kernel(blueprint: Blueprint, slot: Slot) -> None:
    """It is within the compiler's budget and starts small, but not at nothing: no weight would learn."""
    kernel = build(blueprint, slot)
    assert count_parameters(kernel) == parameters(plan(blueprint, slot))
    with torch.no_grad():
        made = kernel(example(slot, 16, 6, generator=torch.Generator().manual_seed(0)))
    size = float(made.square().mean().sqrt())
    assert 0 < size < LOUD, (size, slot, blueprint.canonical_json())


def chains(count: int, first: int) -> dict[str, int]:
    """What came of ``count`` chains, seeds from ``first`` on: steps, blueprints, and graphs among them."""
    graphs: Counter[str] = Counter()
    for seed in range(first, first + count):
        graphs.update(one.graph_id for one in chain(seed))
    return {"steps": LENGTH * count, "blueprints": graphs.total(), "graphs": len(graphs)}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(json.dumps(chains(options.chains, options.seed * 1_000_000)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
