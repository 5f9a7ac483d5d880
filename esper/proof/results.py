"""Results of paired runs: gathered into arms, and compared in points of accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from esper.proof.statistics import Interval, deviation


@dataclass(frozen=True, slots=True)
class Result:
    """One finished run: what it reached on the test split, in [0, 1] and nats, and what it cost.

    ``adapted_at`` are the shares of the run after which the network was changed; ``width`` is that of a
    static network that was asked for by its width. ``overrides`` are those of the arm, ``run`` its folder
    below the proof's. ``curve``, where it is kept, has the training FLOPs and the held-out accuracy after
    each epoch.
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
    curve: tuple[tuple[float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``dumps``; without a curve that was not kept."""
        plain = asdict(self)
        return plain if self.curve else {key: value for key, value in plain.items() if key != "curve"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of ``to_json``; KeyError, TypeError or ValueError for other data."""
        lists = {"overrides": tuple(data["overrides"]), "adapted_at": tuple(data["adapted_at"])}
        curve = tuple((flops, accuracy) for flops, accuracy in data.get("curve", ()))
        return cls(**{**data, **lists, "curve": curve})


def by_arm(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in the order of their seeds."""
    arms: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.seed):
        arms.setdefault(result.arm, []).append(result)
    return arms


def points(rows: Iterable[Result]) -> list[float]:
    """The accuracy of each run in percent."""
    return [100 * row.accuracy for row in rows]


def summary(arm: str, rows: Sequence[Result]) -> dict[str, Any]:
    """One arm: means and, of accuracy and loss, standard deviations; plain data."""
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


def compare(difference: Interval, other: str, subject: str = "grown") -> str:
    """One sentence: ``subject`` beside ``other``, which it may lose to, or that nothing can be told."""
    if not difference.tells:
        spread = f"{difference.mean:+.1f} points [{difference.low:+.1f}, {difference.high:+.1f}]"
        return f"{subject} against {other}: cannot tell, the interval includes zero: {spread}"
    ends = sorted((abs(difference.low), abs(difference.high)))
    word = "better" if difference.mean > 0 else "worse"
    interval = f"[{ends[0]:.1f}, {ends[1]:.1f}]"
    return f"{subject} is {word} than {other} by {abs(difference.mean):.1f} points {interval}"
