"""Karn against random search where the best block is known: how many trials each takes to come near it.

As where Karn is used, what ships was tried before anything is invented: Karn learns from a trial of each
block of the catalogue, random search never draws one of them, and those trials count for neither.

``python -m esper.assembly.proving.planted_search --first 300 --seeds 20 --out results.json`` does all of it.
Seeds 0 to 19 are those on which settings were chosen.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
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
from esper.karn.invention import Inventor, Past, Place
from esper.karn.proxies import proxies
from esper.karn.surrogate import rank_correlation
from esper.messages import FieldReport, Slot
from esper.proof.statistics import bootstrap_mean
from esper.tezzeret.builder import build

NEAR = 0.95
BUDGET = 60
BATCH = 4


def by_inventing(catalogue: Sequence[Blueprint], task: Planted, inventor: Inventor) -> list[float]:
    """The gains of Karn's trials in their order, until one is near the best or the budget is spent."""
    blueprints = list(catalogue)
    known: set[tuple[str, Slot]] = {(one.graph_id, SLOT) for one in catalogue}
    reports: list[FieldReport] = [
        report(one, task.trial(one, number), number) for number, one in enumerate(catalogue)
    ]
    gains: list[float] = []
    while len(gains) < BUDGET:
        past = Past(reports, blueprints, known)
        for one in inventor.propose(past, [Place(SLOT, KIND)], BATCH):
            blueprints.append(one.blueprint)
            known.add((one.blueprint.graph_id, SLOT))
            trial = task.trial(one.blueprint, len(reports))
            reports.append(report(one.blueprint, trial, len(reports)))
            gains.append(trial.gain)
            if trial.gain >= NEAR * task.most:
                return gains
    return gains[:BUDGET]


def by_chance(catalogue: Sequence[Blueprint], task: Planted, seed: int) -> list[tuple[Blueprint, float]]:
    """The trials of random search: the blocks that ``plant`` draws from and all on the way, none twice."""
    rng = Random(f"random search {seed}")
    keys = {kernel_key(one, SLOT) for one in catalogue}
    trials: list[tuple[Blueprint, float]] = []
    while len(trials) < BUDGET:
        block = draw(catalogue, rng, rng.randint(1, GENERATIONS))
        key = kernel_key(block, SLOT)
        if key in keys:
            continue
        keys.add(key)
        trials.append((block, task.trial(block, len(keys) - 1).gain))
        if trials[-1][1] >= NEAR * task.most:
            break
    return trials


def taken(gains: Sequence[float], most: float) -> int:
    """Trials up to the first near the best; one more than the budget where there is none."""
    return next((number for number, gain in enumerate(gains, 1) if gain >= NEAR * most), BUDGET + 1)


def pair(catalogue: Sequence[Blueprint], seed: int) -> dict[str, Any]:
    """Both searches of one planted block, and what the proxies say of the trials of random search."""
    torch.set_num_threads(1)
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
    """Runs the pairs, prints each as it ends and writes all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--blueprints", default="blueprints")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    catalogue = fitting(load_catalogue([options.blueprints]).blueprints)
    seeds = range(options.first, options.first + options.seeds)
    pairs: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes) as pool:
        for one in pool.map(partial(pair, catalogue), seeds):
            print(json.dumps(one), flush=True)
            pairs.append(one)
    command = shlex.join(["python", "-m", "esper.assembly.proving.planted_search", *sys.argv[1:]])
    found = {"command": command, "budget": BUDGET, "near": NEAR, "summary": summary(pairs), "pairs": pairs}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["summary"]))


if __name__ == "__main__":
    main()
