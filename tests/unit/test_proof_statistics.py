import math

import numpy as np
import pytest

from esper.proof.statistics import bootstrap_mean, deviation, paired_difference, ratio_of_means, t_quantile


@pytest.mark.parametrize(
    ("p", "dof", "table"),
    [  # printed tables, as in Abramowitz & Stegun 1964, table 26.10
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.975, 9, 2.262),
        (0.95, 5, 2.015),
        (0.995, 10, 3.169),
        (0.975, 120, 1.980),
    ],
)
def test_quantiles_are_those_of_the_tables(p, dof, table):
    assert t_quantile(p, dof) == pytest.approx(table, abs=6e-4)
    assert t_quantile(1 - p, dof) == pytest.approx(-table, abs=6e-4)


def test_a_paired_difference_is_taken_pair_by_pair():
    # Differences 1, 2, 3: mean 2, sd 1, half width 4.303 / sqrt(3).
    found = paired_difference([11, 22, 33], [10, 20, 30])
    assert found.mean == pytest.approx(2)
    assert (found.low, found.high) == (
        pytest.approx(2 - 2.4842, abs=1e-3),
        pytest.approx(2 + 2.4842, abs=1e-3),
    )
    assert not found.tells
    assert paired_difference([3, 4, 5], [1, 2, 3.1]).tells


def test_the_ratio_is_that_of_fieller():
    above, below = [0.5, 0.7, 0.6, 0.4], [1.0, 1.2, 0.9, 1.1]
    found = ratio_of_means(above, below)
    assert found is not None
    assert found.mean == pytest.approx(2.2 / 4.2)
    # At each end r, the mean of above - r * below lies exactly one quantile from zero: the definition.
    for end in (found.low, found.high):
        rest = [a - end * b for a, b in zip(above, below, strict=True)]
        assert abs(sum(rest) / 4) == pytest.approx(t_quantile(0.975, 3) * deviation(rest) / math.sqrt(4))


def test_no_ratio_stands_for_a_gap_that_may_be_zero():
    assert ratio_of_means([1.0, 1.0, 1.0], [-1.0, 2.0, 0.5]) is None


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_pair_has_no_interval(values):
    with pytest.raises(ValueError, match="two pairs"):
        paired_difference(values, values)
    with pytest.raises(ValueError, match="two pairs"):
        ratio_of_means(values, values)
    assert deviation([1.0]) == 0


def test_bootstrap_agrees_with_student_on_normal_values_and_is_repeatable() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 200).tolist()
    found = bootstrap_mean(values)
    wanted = paired_difference(values, [0.0] * len(values))
    assert found == bootstrap_mean(values)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (wanted.mean, wanted.low, wanted.high), abs=0.02
    )
    assert found.tells
    assert not bootstrap_mean([-1.0, 1.0, -2.0, 2.0]).tells
    with pytest.raises(ValueError, match="at least two values, not 1"):
        bootstrap_mean([1.0])
