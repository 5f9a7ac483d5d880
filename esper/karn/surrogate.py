"""A Gaussian process over graphs in their places: what gain a trial would give, and how sure that is.

The regression is scikit-learn's (Rasmussen & Williams 2006, algorithm 2.1), with a Matern kernel of order 5/2
and one length over all features, fitted by marginal likelihood. How much the graph counts beside sizes and
place is fitted too, over ``WEIGHTS``. Its own residuals calibrate it: the standard deviations are multiplied
by the root mean square of the residuals that each report leaves when it is left out (same book, equations
5.10 to 5.12), in units of the deviation that was then predicted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esper.errors import ConfigError
from esper.karn.features import BINS, Vector

WEIGHTS = (0.5, 1.0, 2.0)
CALIBRATION = (0.5, 4.0)
"""Least and most factor on the deviations: a dozen residuals say no more."""
_LENGTHS, _NOISES = (0.1, 30.0), (1e-4, 2.0)


@dataclass(frozen=True, slots=True)
class Trial:
    """The features of a blueprint in its place, the gain there and the standard error of that (nats)."""

    features: Vector
    gain: float
    error: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of the gain: mean, standard deviation of what trials give on average, and of what one trial says."""

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

    Raises ``ConfigError`` where scikit-learn is not installed.
    """

    def __init__(self, trials: Sequence[Trial]) -> None:
        gains = np.array([trial.gain for trial in trials])
        self._centre, self._scale = float(gains.mean()), float(gains.std()) or 1.0
        self._y = (gains - self._centre) / self._scale
        self._noise = np.array([(trial.error / self._scale) ** 2 for trial in trials]) + 1e-8
        self._rows = np.array([trial.features for trial in trials])
        fits = [(self._fit(weight), weight) for weight in WEIGHTS]
        self._process, self._weight = max(fits, key=lambda fit: fit[0].log_marginal_likelihood_value_)
        self.calibration, self.rank = self._left_out()

    def predict(self, rows: Sequence[Vector]) -> list[Prediction]:
        """The gain of each blueprint in its place, given by their ``esper.karn.features.features``."""
        if not rows:
            return []
        mean, deviation = self._process.predict(_weighted(np.array(rows), self._weight), return_std=True)
        noise = float(self._process.kernel_.k2.noise_level)
        known_noise = float(self._noise.mean())
        found = []
        for one, total in zip(mean, deviation**2, strict=True):
            latent, spread = max(float(total) - noise, 0.0), float(total) + known_noise
            scale = self._scale * self.calibration
            mean_gain = self._centre + self._scale * float(one)
            found.append(Prediction(mean_gain, scale * math.sqrt(latent), scale * math.sqrt(spread)))
        return found

    def believing(self, row: Vector) -> None:
        """Takes its own prediction of ``row`` for a trial, so that the next of a batch is chosen elsewhere.

        The Kriging believer, Ginsbourger et al. 2010, section 4.2; kernel and calibration stay.
        """
        (mean,) = self._process.predict(_weighted(row[None], self._weight))
        self._rows = np.vstack([self._rows, row])
        self._y = np.append(self._y, mean)
        self._noise = np.append(self._noise, 1e-8)
        self._process = self._regressor(self._process.kernel_, optimizer=None)
        self._process.fit(_weighted(self._rows, self._weight), self._y)

    def _fit(self, weight: float) -> Any:
        kernels = _learned().kernels
        kernel = kernels.ConstantKernel(1.0, (0.05, 20.0)) * kernels.Matern(1.0, _LENGTHS, nu=2.5)
        process = self._regressor(kernel + kernels.WhiteKernel(0.1, _NOISES), optimizer="fmin_l_bfgs_b")
        with warnings.catch_warnings():
            # It warns where the best length or noise lies on a bound, which is where they are meant to stop.
            warnings.simplefilter("ignore")
            return process.fit(_weighted(self._rows, weight), self._y)

    def _regressor(self, kernel: Any, optimizer: str | None) -> Any:
        return _learned().GaussianProcessRegressor(kernel, alpha=self._noise, optimizer=optimizer)

    def _left_out(self) -> tuple[float, float]:
        """The calibration, and Spearman's rank correlation of left-out predictions with the gains."""
        lower = np.linalg.inv(self._process.L_)
        inverse = lower.T @ lower
        variance = 1 / np.diag(inverse)
        residual = (inverse @ self._y) * variance
        low, high = CALIBRATION
        calibration = min(high, max(low, float(np.sqrt(np.mean(residual**2 / variance)))))
        return calibration, rank_correlation(self._y - residual, self._y)


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


def _weighted(rows: Vector, weight: float) -> Vector:
    return np.concatenate([weight * rows[:, :BINS], rows[:, BINS:]], axis=1)


def _learned() -> Any:
    try:
        from sklearn import gaussian_process  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            "the package scikit-learn is not installed", hint="pip install 'esper-morph[karn]'"
        ) from None
    return gaussian_process
