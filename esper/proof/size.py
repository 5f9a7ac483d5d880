"""What a proof of ``mode=size`` shows: whether growth ends at the size that the task needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import fmean
from typing import Any

from esper.proof.results import Result, by_arm, compare, points, summary
from esper.proof.statistics import paired_difference

NEAR = 0.2
"""Points of accuracy by which a width may be below the best one and still be enough."""

FACTOR = 1.2
"""How many times the smallest width that is enough a network of the right size may have, or be short of."""


def label(arm: str) -> str:
    """The name of an arm for people."""
    return arm.replace("-", " ")


def analyse(results: Iterable[Result]) -> dict[str, Any]:
    """Arms, paired differences of grown from each width in points, and the verdict; plain data.

    ``enough`` is the smallest width whose mean accuracy is within ``NEAR`` points of that of the ``best``;
    ``grown_width`` that of a static network with as many parameters as grown has, a mean over seeds. Every
    arm must have the seeds of ``grown``, two or more.
    """
    arms = by_arm(results)
    reached = {arm: points(rows) for arm, rows in arms.items()}
    means = {rows[0].width: fmean(reached[arm]) for arm, rows in arms.items() if arm != "grown"}
    widths = sorted(width for width in means if width is not None)
    best = max(widths, key=lambda width: means[width])
    enough = next(width for width in widths if means[width] >= means[best] - NEAR)
    parameters = {width: arms[f"width-{width}"][0].parameters for width in widths}
    grown = fmean(_width(run.parameters, parameters) for run in arms["grown"])
    differences = {
        arm: paired_difference(reached["grown"], values) for arm, values in reached.items() if arm != "grown"
    }
    ratio = grown / enough
    said = [
        f"the smallest width within {NEAR} points of the best ({best}, {means[best]:.1f} %) is {enough}",
        f"grown ends as large as width {grown:.1f}, {ratio:.2f} times that: {_judged(ratio)}",
        compare(differences[f"width-{best}"], f"width {best}, the best"),
        *([compare(differences[f"width-{enough}"], f"width {enough}")] if enough != best else []),
    ]
    if best == widths[-1]:
        said.append("the best width is the largest that was tried: a larger one may be better still")
    return {
        "arms": [summary(arm, rows) for arm, rows in arms.items()],
        "differences": {arm: asdict(difference) for arm, difference in differences.items()},
        "best": best,
        "enough": enough,
        "grown_width": grown,
        "verdict": said,
    }


def _judged(ratio: float) -> str:
    if ratio > FACTOR:
        return "larger than needed"
    return "too small" if ratio < 1 / FACTOR else "the right size"


def _width(parameters: int, of: Mapping[int, int]) -> float:
    """The width with that many ``parameters``, between neighbours in a straight line of logarithms."""
    widths: Sequence[int] = sorted(of)
    for low, high in pairwise(widths):
        if parameters <= of[high]:
            share = math.log(parameters / of[low]) / math.log(of[high] / of[low])
            return float(low * (high / low) ** share)
    return float(widths[-1])
