"""Were a policy's promises kept? What it expected of its trials, against what they brought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esper.messages import FieldReport


@dataclass(frozen=True, slots=True)
class Calibration:
    """Over ``trials`` finished trials, of which ``kept`` were kept.

    ``expected`` and ``realised`` are mean impacts, as shares of the held-out loss before the graft;
    ``error`` is the mean of expected minus realised (above 0: promised too much), ``absolute_error`` the mean
    of its size. ``confidence`` is the mean confidence and ``brier`` the mean of (confidence - kept)^2 (Brier
    1950) over the trials that have a confidence: 0 is perfect, 0.25 is what "one half" always scores. Both
    are None when no trial has one.
    """

    trials: int
    kept: int
    expected: float
    realised: float
    error: float
    absolute_error: float
    confidence: float | None
    brier: float | None


def calibration(trials: Sequence[FieldReport]) -> Calibration | None:
    """How the expectations of ``trials`` compare with the verdicts; None when there are no trials."""
    if not trials:
        return None
    errors = [trial.expected_impact - realised_impact(trial) for trial in trials]
    sure = [(t.confidence, float(t.verdict == "kept")) for t in trials if t.confidence is not None]
    return Calibration(
        trials=len(trials),
        kept=sum(trial.verdict == "kept" for trial in trials),
        expected=_mean([trial.expected_impact for trial in trials]),
        realised=_mean([realised_impact(trial) for trial in trials]),
        error=_mean(errors),
        absolute_error=_mean([abs(error) for error in errors]),
        confidence=_mean([confidence for confidence, _ in sure]) if sure else None,
        brier=_mean([(confidence - kept) ** 2 for confidence, kept in sure]) if sure else None,
    )


def realised_impact(trial: FieldReport) -> float:
    """The gain as a share of the loss before the graft; a kernel that was taken out gained nothing."""
    return trial.gain / trial.loss_before if trial.verdict == "kept" and trial.loss_before else 0.0


@dataclass(frozen=True, slots=True)
class GrowthImpact:
    """What the held-out loss did after the host grew, beside what it did before: no seed can be turned off.

    ``after`` and ``before`` are its falls in ``epochs`` epochs, as shares of the loss that each began with.
    Host and new parts learn together, so that only the difference can be the growth's, and a rate that cools
    down in the meantime is in it too.
    """

    epochs: int
    after: float
    before: float


def growth_impact(losses: Mapping[int, float], epoch: int, horizon: int = 5) -> GrowthImpact | None:
    """The impact of a growth at the end of ``epoch``, from held-out ``losses`` by epoch, over up to
    ``horizon`` epochs; None before an epoch is done on either side, and where a loss was 0.
    """
    span = min(horizon, epoch - min(losses, default=epoch), max(losses, default=epoch) - epoch)
    if span < 1:
        return None
    first, then, last = (losses.get(at, math.nan) for at in (epoch - span, epoch, epoch + span))
    if not first or not then:
        return None  # of a loss of 0 there are no shares
    return GrowthImpact(span, 1 - last / then, 1 - then / first)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
