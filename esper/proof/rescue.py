"""What a proof of ``mode=rescue`` shows: what to do next with a network that has converged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from statistics import fmean
from typing import Any

from esper.proof.results import Result, by_arm, compare, points, summary
from esper.proof.statistics import paired_difference

LABELS = {
    "base": "base",
    "train_on": "trained on",
    "grown": "grown",
    "large": "large, from scratch",
}
"""Each arm in words; the order in which they are told."""

AGAINST = {
    "train_on": "training on for the same FLOPs",
    "large": "starting the larger network from scratch with the same FLOPs",
    "base": "the base that it started from",
}


def analyse(results: Iterable[Result]) -> dict[str, Any]:
    """Arms, paired differences of grown from each other arm in points, and the verdict; plain data.

    ``training_flops`` of an arm are those spent after the base was there; ``base_flops`` are what the base
    itself took. Every arm must have the seeds of ``grown``, two or more.
    """
    found = by_arm(results)
    arms = {arm: found[arm] for arm in LABELS}
    reached = {arm: points(rows) for arm, rows in arms.items()}
    differences = {arm: paired_difference(reached["grown"], reached[arm]) for arm in AGAINST}
    best = max((arm for arm in arms if arm != "base"), key=lambda arm: fmean(reached[arm]))
    said = [compare(differences[arm], other) for arm, other in AGAINST.items()]
    further = paired_difference(reached["train_on"], reached["base"])
    said.append(compare(further, "the base", subject="training on"))
    said.append(f"highest mean accuracy: {LABELS[best]}, {fmean(reached[best]):.1f} %")
    summaries = [summary(arm, rows) for arm, rows in arms.items()]
    return {
        "arms": [{**one, "training_flops": 0.0} if one["arm"] == "base" else one for one in summaries],
        "base_flops": summaries[0]["training_flops"],
        "differences": {arm: asdict(difference) for arm, difference in differences.items()},
        "best": best,
        "verdict": said,
    }
