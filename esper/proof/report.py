"""Results of paired runs as arms, differences and a verdict, and those as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from esper.proof.statistics import Interval, deviation, paired_difference, ratio_of_means

ARMS = {
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
    "small": "the small network trained for the same epochs",
    "small_flops": "small given the same FLOPs",
    "large": "the large network trained for the same epochs",
    "large_flops": "large given the same FLOPs",
    "random": "random growth at the same times",
}


@dataclass(frozen=True, slots=True)
class Result:
    """One finished run: what it reached on the test split, in [0, 1] and nats, and what it cost.

    ``adapted_at`` are the shares of the run after which the network was changed; ``width`` is that of a
    static network that was asked for by its width. ``overrides`` are those of the arm, ``run`` its folder
    below the proof's.
    """

    arm: str
    seed: int
    overrides: tuple[str, ...]
    run: str
    accuracy: float
    loss: float
    training_flops: float
    seconds: float
    parameters: int
    width: int | None
    adapted_at: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``dumps``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of ``to_json``; KeyError or TypeError for other data."""
        lists = {"overrides": tuple(data["overrides"]), "adapted_at": tuple(data["adapted_at"])}
        return cls(**{**data, **lists})


def analyse(results: Iterable[Result]) -> dict[str, Any]:
    """Arms, paired differences of grown from each other arm in points, and the verdict; plain data.

    Every arm must have the seeds of ``grown``, two or more.
    """
    arms: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.seed):
        arms.setdefault(result.arm, []).append(result)
    points = {arm: [100 * result.accuracy for result in rows] for arm, rows in arms.items()}
    differences = {arm: paired_difference(points["grown"], p) for arm, p in points.items() if arm != "grown"}
    sized = [arm for arm in arms if arm.startswith("sweep-")]
    best = max([arm for arm in ("small_flops", "large_flops") if arm in arms] + sized, key=_mean(points))
    gap = ratio_of_means(_minus(points["grown"], points["small"]), _minus(points["large"], points["small"]))
    return {
        "arms": [_arm(arm, rows) for arm, rows in arms.items()],
        "differences": {arm: asdict(difference) for arm, difference in differences.items()},
        "gap_closed": asdict(gap) if gap else None,
        "best_static": best,
        "verdict": _verdict(differences, gap, best, fmean(_minus(points["large"], points["small"]))),
    }


def label(arm: str) -> str:
    """The name of an arm for people."""
    name, _, width = arm.partition("-")
    return f"width {width}, grown's FLOPs" if width else ARMS[name]


def _mean(points: Mapping[str, Sequence[float]]) -> Any:
    return lambda arm: fmean(points[arm])


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _arm(arm: str, rows: Sequence[Result]) -> dict[str, Any]:
    accuracy = [row.accuracy for row in rows]
    loss = [row.loss for row in rows]
    return {
        "arm": arm,
        "runs": len(rows),
        "accuracy": {"mean": fmean(accuracy), "sd": deviation(accuracy)},
        "loss": {"mean": fmean(loss), "sd": deviation(loss)},
        "training_flops": fmean(row.training_flops for row in rows),
        "seconds": fmean(row.seconds for row in rows),
        "parameters": fmean(row.parameters for row in rows),
    }


def compare(difference: Interval, other: str) -> str:
    """One sentence: grown beside ``other``, which it may lose to, or that nothing can be told."""
    if not difference.tells:
        spread = f"{difference.mean:+.1f} points [{difference.low:+.1f}, {difference.high:+.1f}]"
        return f"grown against {other}: cannot tell, the interval includes zero: {spread}"
    ends = sorted((abs(difference.low), abs(difference.high)))
    word = "better" if difference.mean > 0 else "worse"
    return f"grown is {word} than {other} by {abs(difference.mean):.1f} points [{ends[0]:.1f}, {ends[1]:.1f}]"


def _verdict(differences: Mapping[str, Interval], gap: Interval | None, best: str, width: float) -> list[str]:
    order = ("small_flops", "large_flops", "small", "large", "random")
    said = [compare(differences[arm], AGAINST[arm]) for arm in order if arm in differences]
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


def markdown(proof: Mapping[str, Any]) -> str:
    """The whole report; ``proof`` is what ``analyse`` returns beside what the run of it recorded."""
    lines = [
        f"# Proof: {proof['experiment']}",
        "",
        f"{len(proof['seeds'])} paired seeds, {proof['seeds'][0]} to {proof['seeds'][-1]}; "
        "accuracy and loss on the test split, which each run measures once, at its end.",
        "",
        "## Verdict",
        *(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in proof["verdict"]),
        "",
        "## Arms",
        "| arm | accuracy, % | loss | training FLOPs | seconds | parameters |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in arm_cells(proof)),
        "",
        "## Grown minus each other arm",
        "| arm | points | 95 % interval |",
        "|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in difference_cells(proof)),
        "",
        "Intervals are two-sided, Student's t over paired differences; that of the share of the gap is "
        "Fieller's. None is corrected for their number. The best static size is chosen on these same runs, "
        "which favours it.",
        "",
        "![Accuracy against training FLOPs](plot.png)",
        "",
        "## Run it again",
        "```text",
        proof["command"],
        "```",
        ", ".join(f"{name} {version}" for name, version in proof["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def arm_cells(proof: Mapping[str, Any]) -> list[list[str]]:
    """The table of arms: name, accuracy in percent and loss as mean +- sd, FLOPs, seconds, parameters."""
    return [
        [
            label(arm["arm"]),
            f"{100 * arm['accuracy']['mean']:.2f} ± {100 * arm['accuracy']['sd']:.2f}",
            f"{arm['loss']['mean']:.4f} ± {arm['loss']['sd']:.4f}",
            f"{arm['training_flops']:.3g}",
            f"{arm['seconds']:.1f}",
            f"{arm['parameters']:,.0f}",
        ]
        for arm in proof["arms"]
    ]


def difference_cells(proof: Mapping[str, Any]) -> list[list[str]]:
    """The table of differences: name, mean in points, interval."""
    return [
        [label(arm), f"{item['mean']:+.2f}", f"[{item['low']:+.2f}, {item['high']:+.2f}]"]
        for arm, item in proof["differences"].items()
    ]
