"""Student's t distribution, which both decisions and proofs rest on."""

from __future__ import annotations

import math


def student_t_cdf(t: float, dof: int) -> float:
    """P(T <= t) of Student's t for an integer ``dof`` >= 1 (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(dof))
    cos2 = math.cos(theta) ** 2
    term = 1.0 if dof % 2 == 0 else math.cos(theta)
    total = term if dof > 1 else 0.0
    for k in range(2 if dof % 2 == 0 else 3, dof - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    inner = math.sin(theta) * total
    two_sided = inner if dof % 2 == 0 else 2 / math.pi * (theta + inner)
    return min(max(0.5 + two_sided / 2, 0.0), 1.0)  # rounding can step over by one unit in the last place
