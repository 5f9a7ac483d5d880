"""Has training stalled? A line through the last epochs, and how sure one can be of its slope."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from esper.messages import EpochRecord
from esper.student import student_t_cdf


@dataclass(frozen=True, slots=True)
class Trend:
    """An ordinary least-squares line through one curve, relative to the curve's mean level.

    ``improvement`` is the fall per epoch as a share of the mean (negative when the curve rises);
    ``stalled`` the probability that the true improvement lies below the smallest that counts.
    """

    improvement: float
    stalled: float


@dataclass(frozen=True, slots=True)
class Plateau:
    """The trends of held-out loss and error over the window, and the surer of their two verdicts."""

    loss: Trend
    error: Trend

    @property
    def confidence(self) -> float:
        """Probability that training has stalled, by the curve that shows it more clearly.

        Either is enough: a network can keep polishing its loss while its errors no longer fall, and the loss
        can rise by overconfidence while the errors still do.
        """
        return max(self.loss.stalled, self.error.stalled)


class PlateauDetector:
    """Fits the last ``window`` epochs; an improvement under ``min_improvement`` an epoch is a stall.

    ``window`` is in epochs (at least 3, so that the fit has an error); ``min_improvement`` is a share of the
    curve's level. With ``window_share``, above 0 and at most 1, the window is that share of the run instead,
    and again at least 3 epochs: patience that fits a short schedule is haste in a long one. A setting out of
    its bounds is a ValueError.
    """

    def __init__(
        self, window: int = 4, min_improvement: float = 0.01, *, window_share: float | None = None
    ) -> None:
        if window < 3:
            raise ValueError(f"a plateau needs a window of 3 epochs or more, not {window}")
        if window_share is not None and not 0 < window_share <= 1:
            raise ValueError(f"window_share must be above 0 and at most 1, not {window_share}")
        self.window = window
        self.window_share = window_share
        self.min_improvement = min_improvement

    def window_of(self, total_epochs: int) -> int:
        """The window, in epochs, of a run of ``total_epochs``."""
        if self.window_share is None:
            return self.window
        return max(3, round(self.window_share * total_epochs))

    def assess(self, history: Sequence[EpochRecord], total_epochs: int = 0) -> Plateau | None:
        """The trends of the last epochs, oldest first, or ``None`` before the window is full."""
        window = self.window_of(total_epochs)
        recent = history[-window:]
        if len(recent) < window:
            return None
        return Plateau(
            loss=fit_trend([record.loss for record in recent], self.min_improvement),
            error=fit_trend([1.0 - record.accuracy for record in recent], self.min_improvement),
        )


def fit_trend(values: Sequence[float], min_improvement: float) -> Trend:
    """The line through ``values``, three or more, oldest first; does it fall by ``min_improvement``?"""
    n = len(values)
    if not all(map(math.isfinite, values)):
        return Trend(0.0, 0.0)
    level = math.fsum(values) / n
    if level <= 0:  # nothing is left to gain by growing
        return Trend(0.0, 0.0)
    centre = (n - 1) / 2
    spread = math.fsum((i - centre) ** 2 for i in range(n))
    slope = math.fsum((i - centre) * (v - level) for i, v in enumerate(values)) / spread
    residual = math.fsum((v - level - slope * (i - centre)) ** 2 for i, v in enumerate(values))
    error = math.sqrt(residual / (n - 2) / spread)
    distance = min_improvement * level + slope
    if error == 0.0:
        return Trend(-slope / level, float(distance > 0))
    return Trend(-slope / level, student_t_cdf(distance / error, n - 2))
