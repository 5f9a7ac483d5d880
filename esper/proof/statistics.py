"""Paired comparisons of a few runs: means, Student intervals and Fieller's interval of a ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from esper.student import student_t_cdf

CONFIDENCE = 0.95
"""Of every two-sided interval here."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its two-sided interval, in the unit of what was estimated."""

    mean: float
    low: float
    high: float

    @property
    def tells(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The mean of ``a - b``, pair by pair, with Student's interval (Student 1908).

    Raises ValueError for unequal lengths and for fewer than two pairs.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    n = len(differences)
    if n < 2:
        raise ValueError(f"an interval needs at least two pairs, not {n}")
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * stdev(differences) / math.sqrt(n)
    mean = fmean(differences)
    return Interval(mean, mean - half, mean + half)


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """mean(above) / mean(below) of paired values, with Fieller's interval (Fieller 1954, section 3).

    ``None`` where the mean of ``below`` cannot be told from zero: the set of ratios that agree with the
    values is then unbounded, and no number stands for it. Raises ValueError as ``paired_difference``.
    """
    n = len(above)
    if n != len(below) or n < 2:
        raise ValueError(f"a ratio needs at least two pairs, not {n} and {len(below)}")
    a, b = fmean(above), fmean(below)
    scale = 1 / (n * (n - 1))  # from sums of squares to variances of the means
    vaa = scale * math.fsum((x - a) ** 2 for x in above)
    vbb = scale * math.fsum((y - b) ** 2 for y in below)
    vab = scale * math.fsum((x - a) * (y - b) for x, y in zip(above, below, strict=True))
    q = t_quantile((1 + CONFIDENCE) / 2, n - 1) ** 2
    square = b * b - q * vbb
    if square <= 0:
        return None
    middle = a * b - q * vab
    # Real roots follow from square > 0; rounding alone can make the root's argument negative.
    root = math.sqrt(max(middle * middle - square * (a * a - q * vaa), 0.0))
    return Interval(a / b, (middle - root) / square, (middle + root) / square)


def t_quantile(p: float, dof: int) -> float:
    """The value that Student's t with ``dof`` >= 1 stays below with probability ``p`` in (0, 1)."""
    if not 0 < p < 1 or dof < 1:
        raise ValueError(f"p must lie between 0 and 1 and dof be at least 1, not {p} and {dof}")
    low, high = -1.0, 1.0
    while student_t_cdf(low, dof) > p:
        low *= 2
    while student_t_cdf(high, dof) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_cdf(middle, dof) < p else (low, middle)
    return (low + high) / 2


def bootstrap_mean(values: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> Interval:
    """The mean, with the percentile interval of ``draws`` means of resampled values (Efron 1979).

    For values that are far from normal, such as counts that are cut off. Raises ValueError for fewer than
    two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, not {len(values)}")
    given = np.asarray(values, dtype=np.float64)
    picked = np.random.default_rng(seed).integers(len(given), size=(draws, len(given)))
    low, high = np.quantile(given[picked].mean(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(given.mean()), float(low), float(high))
