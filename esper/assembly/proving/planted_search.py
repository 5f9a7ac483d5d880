"""Karn against random search where the best block is known: how many trials each takes to come near it.

``python -m esper.assembly.proving.planted_search --first 100 --seeds 20 --out experiments/karn_planted`` does
all of it and writes results_100.json. Seeds 0 to 9 are those on which settings were chosen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from esper.assembly.proving.planted import (
    BREEDING,
    GENERATIONS,
    KIND,
    SLOT,
    Planted,
    draw,
    fitting,
    plant,
    report,
)
from esper.blueprint import Blueprint
from esper.karn.catalogue import load_catalogue
from esper.karn.features import kernel_key
from esper.karn.generator import Generator
from esper.karn.invention import Past, Place
from esper.karn.proxies import proxies
from esper.karn.surrogate import rank_correlation
from esper.messages import FieldReport, Slot
from esper.proof.statistics import bootstrap_mean
from esper.tezzeret.builder import build

NEAR = 0.95
BUDGET = 100
BATCH = 4


def by_inventing(catalogue: Sequence[Blueprint], task: Planted, generator: Generator) -> list[float]:
    """The gains of Karn's trials in their order, until one is near the best or the budget is spent."""
    blueprints = list(catalogue)
    known: set[tuple[str, Slot]] = set()
    reports: list[FieldReport] = []
    while len(reports) < BUDGET:
        past = Past(reports, blueprints, known)
        for one in generator.propose(past, [Place(SLOT, KIND)], BATCH):
            if one.blueprint not in blueprints:
                blueprints.append(one.blueprint)
            known.add((one.blueprint.graph_id, SLOT))
            trial = task.trial(one.blueprint, len(reports))
            reports.append(report(one.blueprint, trial, len(reports)))
            if trial.gain >= NEAR * task.most:
                return [one.gain for one in reports]
    return [one.gain for one in reports[:BUDGET]]


def by_chance(catalogue: Sequence[Blueprint], task: Planted, seed: int) -> list[tuple[Blueprint, float]]:
    """The trials of random search: the blocks that ``plant`` draws from and all on the way, none twice."""
    rng = Random(f"random search {seed}")
    keys: set[str] = set()
    trials: list[tuple[Blueprint, float]] = []
    while len(trials) < BUDGET:
        block = draw(catalogue, rng, rng.randint(0, GENERATIONS))
        key = kernel_key(block, SLOT)
        if key in keys:
            continue
        keys.add(key)
        trials.append((block, task.trial(block, len(trials)).gain))
        if trials[-1][1] >= NEAR * task.most:
            break
    return trials


def taken(gains: Sequence[float], most: float) -> int:
    """Trials up to the first near the best; one more than the budget where there is none."""
    return next((number for number, gain in enumerate(gains, 1) if gain >= NEAR * most), BUDGET + 1)


def pair(catalogue: Sequence[Blueprint], seed: int) -> dict[str, Any]:
    """Both searches of one planted block, and what the proxies say of the trials of random search."""
    task, block = plant(catalogue, seed)
    generator = Generator(build, seed=seed, breeding=BREEDING)
    karn = by_inventing(catalogue, task, generator)
    chance = by_chance(catalogue, task, seed)
    gains = [gain for _, gain in chance]
    return {
        "seed": seed,
        "planted": [node.op for node in block.nodes],
        "most": task.most,
        "karn": taken(karn, task.most),
        "random": taken(gains, task.most),
        "karn_best": max(karn) / task.most,
        "random_best": max(gains) / task.most,
        "proxies": proxy_ranks(chance),
    }


def proxy_ranks(trials: Sequence[tuple[Blueprint, float]]) -> dict[str, float]:
    """Spearman's rank correlation of each proxy with the gains; none of fewer than ten trials."""
    if len(trials) < 10:
        return {}
    scores = [proxies(build(block, SLOT), SLOT) for block, _ in trials]
    gains = [gain for _, gain in trials]
    return {name: rank_correlation([score[name] for score in scores], gains) for name in scores[0]}


def summary(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The paired difference in trials, random search minus Karn, and the mean rank correlations."""
    difference = bootstrap_mean([one["random"] - one["karn"] for one in pairs])
    names = sorted({name for one in pairs for name in one["proxies"]})
    ranks = {
        name: bootstrap_mean([one["proxies"][name] for one in pairs if one["proxies"]]) for name in names
    }
    return {
        "trials_saved": [difference.mean, difference.low, difference.high],
        "karn_mean": sum(one["karn"] for one in pairs) / len(pairs),
        "random_mean": sum(one["random"] for one in pairs) / len(pairs),
        "karn_found": sum(one["karn"] <= BUDGET for one in pairs),
        "random_found": sum(one["random"] <= BUDGET for one in pairs),
        "proxies": {name: [rank.mean, rank.low, rank.high] for name, rank in ranks.items()},
    }


def main() -> None:
    """Runs the pairs one after the other and writes them as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--blueprints", default="blueprints")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    catalogue = fitting(load_catalogue([options.blueprints]).blueprints)
    options.out.mkdir(parents=True, exist_ok=True)
    pairs: list[dict[str, Any]] = []
    for seed in range(options.first, options.first + options.seeds):
        pairs.append(pair(catalogue, seed))
        print(json.dumps(pairs[-1]), flush=True)
    found = {"budget": BUDGET, "near": NEAR, "summary": summary(pairs), "pairs": pairs}
    (options.out / f"results_{options.first}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["summary"]))


if __name__ == "__main__":
    main()
