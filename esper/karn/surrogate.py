"""A random forest over graphs in their places: what gain a trial would give, and how sure that is.

Regression trees are scikit-learn's (Breiman 2001, Random Forests, Machine Learning 45). How far the trees of
the forest are apart is how unsure it is (Hutter et al. 2011, SMAC, section 4.1). Its own residuals calibrate
it: of the trees that did not see a trial, the squared error of the mean is what their variance and the noise
of a trial must add up to, on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esper.errors import ConfigError
from esper.karn.features import Vector

TREES = 60
LEAF, SHARE = 2, 0.5
"""Least trials in a leaf, and the share of the features that each split may choose from."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The features of a blueprint in its place, and the gain there (nats)."""

    features: Vector
    gain: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of the gain: mean, standard deviation of what trials give on average, and of what one trial gives."""

    mean: float
    deviation: float
    spread: float

    def improvement(self, best: float) -> float:
        """The expected improvement over ``best`` (Jones et al. 1998, equation 15)."""
        if self.deviation == 0:
            return max(0.0, self.mean - best)
        z = (self.mean - best) / self.deviation
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return (self.mean - best) * (1 + math.erf(z / math.sqrt(2))) / 2 + self.deviation * density


class Surrogate:
    """Fitted to ``trials``, of which there must be at least three; deterministic.

    ``rank`` is Spearman's rank correlation of the gains with what the trees say that did not see them.
    Raises ``ConfigError`` where scikit-learn is not installed.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._rows = np.array([trial.features for trial in trials])
        self._gains = np.array([trial.gain for trial in trials])
        self._forest = self._fit()
        self._factor, self._noise, self.rank = self._calibrated()

    def predict(self, rows: Sequence[Vector]) -> list[Prediction]:
        """The gain of each blueprint in its place, given by their ``esper.karn.features.features``."""
        if not rows:
            return []
        given = self._trees(np.array(rows))
        deviations = self._factor * given.std(0)
        return [
            Prediction(float(mean), float(deviation), math.hypot(deviation, self._noise))
            for mean, deviation in zip(given.mean(0), deviations, strict=True)
        ]

    def believing(self, row: Vector) -> None:
        """Takes its own prediction of ``row`` for a trial, so that the next of a batch is chosen elsewhere.

        The believer of Ginsbourger et al. 2010, section 4.2; the calibration stays.
        """
        (prediction,) = self.predict([row])
        self._rows = np.vstack([self._rows, row])
        self._gains = np.append(self._gains, prediction.mean)
        self._forest = self._fit()

    def _fit(self) -> Any:
        forest = _learned().RandomForestRegressor(
            TREES, min_samples_leaf=LEAF, max_features=SHARE, random_state=0
        )
        return forest.fit(self._rows, self._gains)

    def _trees(self, rows: Vector) -> Vector:
        """What each tree says of each row."""
        return np.array([tree.predict(rows) for tree in self._forest.estimators_])

    def _calibrated(self) -> tuple[float, float, float]:
        """The factor on deviations, the noise of one trial, and the rank correlation; of unseen trials."""
        count = len(self._gains)
        unseen = np.array([~np.isin(np.arange(count), seen) for seen in self._forest.estimators_samples_])
        given = np.ma.masked_array(self._trees(self._rows), ~unseen)
        left = np.flatnonzero(unseen.sum(0) > 1)
        means, spread = np.asarray(given.mean(0))[left], np.asarray(given.var(0))[left]
        error = float(np.mean((self._gains[left] - means) ** 2))
        variance = float(np.mean(spread))
        factor = math.sqrt(min(1.0, error / variance)) if variance else 1.0
        noise = math.sqrt(max(0.0, error - variance))
        return factor, noise, rank_correlation(means, self._gains[left])


def rank_correlation(first: Sequence[float] | Vector, second: Sequence[float] | Vector) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where one of the two does not vary."""
    a, b = _ranks(np.asarray(first)), _ranks(np.asarray(second))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Vector) -> Vector:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=np.float64)


def _learned() -> Any:
    try:
        from sklearn import ensemble  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            "the package scikit-learn is not installed", hint="pip install 'esper-morph[karn]'"
        ) from None
    return ensemble
