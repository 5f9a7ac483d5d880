"""What a proof of ``mode=growth`` shows: the grown network beside every static size that it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from esper.proof.results import Result, by_arm, compare, points, summary
from esper.proof.statistics import Interval, paired_difference, ratio_of_means

LABELS = {
    "grown": "grown",
    "small": "small, same epochs",
    "small_flops": "small, grown's FLOPs",
    "large": "large, same epochs",
    "large_flops": "large, grown's FLOPs",
    "sweep": "static, grown's FLOPs",
    "random": "random growth, same times",
}
"""Each arm in words; an arm of the sweep is called ``sweep-WIDTH``."""

AGAINST = {
    "small_flops": "small given the same FLOPs",
    "large_flops": "large given the same FLOPs",
    "small": "the small network trained for the same epochs",
    "large": "the large network trained for the same epochs",
    "random": "random growth at the same times",
}


def label(arm: str) -> str:
    """The name of an arm for people."""
    name, _, width = arm.partition("-")
    return f"width {width}, grown's FLOPs" if width else LABELS[name]


def analyse(results: Iterable[Result]) -> dict[str, Any]:
    """Arms, paired differences of grown from each other arm in points, and the verdict; plain data.

    Every arm must have the seeds of ``grown``, two or more.
    """
    arms = by_arm(results)
    reached = {arm: points(rows) for arm, rows in arms.items()}
    differences = {
        arm: paired_difference(reached["grown"], p) for arm, p in reached.items() if arm != "grown"
    }
    sized = [arm for arm in arms if arm.startswith("sweep-")]
    flat = [arm for arm in ("small_flops", "large_flops") if arm in arms]
    best = max([*flat, *sized], key=lambda arm: fmean(reached[arm]))
    width = _minus(reached["large"], reached["small"])
    gap = ratio_of_means(_minus(reached["grown"], reached["small"]), width)
    return {
        "arms": [summary(arm, rows) for arm, rows in arms.items()],
        "differences": {arm: asdict(difference) for arm, difference in differences.items()},
        "gap_closed": asdict(gap) if gap else None,
        "best_static": best,
        "verdict": _verdict(differences, gap, best, fmean(width)),
    }


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _verdict(differences: Mapping[str, Interval], gap: Interval | None, best: str, width: float) -> list[str]:
    said = [compare(differences[arm], other) for arm, other in AGAINST.items() if arm in differences]
    said.append(compare(differences[best], f"the best static size given the same FLOPs ({label(best)})"))
    if gap is None:
        said.append(
            f"share of the gap from small to large that is closed: cannot tell, "
            f"the gap of {width:+.1f} points is not told from zero"
        )
    else:
        said.append(
            f"share of the gap from small to large ({width:+.1f} points) that is closed: {gap.mean:.0%} "
            f"[{gap.low:.0%}, {gap.high:.0%}]"
        )
    return said
