"""The plateau detector, held against curves whose answer is known and SciPy-free reference values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.messages import EpochRecord
from esper.student import student_t_cdf
from esper.tamiyo.plateau import PlateauDetector


def history(losses: list[float], accuracies: list[float] | None = None) -> list[EpochRecord]:
    accuracies = accuracies or [0.5] * len(losses)
    return [
        EpochRecord(i, loss, loss, acc) for i, (loss, acc) in enumerate(zip(losses, accuracies, strict=True))
    ]


@pytest.mark.parametrize(
    ("t", "dof", "expected"),
    # Student 1908 tables, to six digits.
    [(1, 1, 0.75), (1, 2, 0.788675), (2, 3, 0.930337), (-1.5, 4, 0.104), (2.5, 5, 0.972755), (0, 9, 0.5)],
)
def test_student_t_matches_the_tables(t: float, dof: int, expected: float) -> None:
    assert student_t_cdf(t, dof) == pytest.approx(expected, abs=1e-6)


@given(t=st.floats(-50, 50), dof=st.integers(1, 30))
def test_student_t_is_a_distribution(t: float, dof: int) -> None:
    assert 0 <= student_t_cdf(t, dof) <= 1
    assert student_t_cdf(t, dof) + student_t_cdf(-t, dof) == pytest.approx(1)


def test_a_flat_noisy_curve_is_a_plateau() -> None:
    found = PlateauDetector(window=5, min_improvement=0.02).assess(history([0.5, 0.51, 0.5, 0.49, 0.505]))
    assert found is not None
    assert found.confidence > 0.9


def test_steady_progress_is_none() -> None:
    falling = [1.0, 0.8, 0.64, 0.51, 0.41]
    found = PlateauDetector(window=5, min_improvement=0.02).assess(
        history(falling, [1 - value / 2 for value in falling])
    )
    assert found is not None
    assert found.confidence < 0.05
    assert found.loss.improvement == pytest.approx(0.22, abs=0.02)


def test_a_stalled_error_is_enough_while_the_loss_still_falls() -> None:
    found = PlateauDetector(window=5).assess(
        history([1.0, 0.9, 0.8, 0.7, 0.6], [0.8, 0.801, 0.8, 0.799, 0.8])
    )
    assert found is not None
    assert found.error.stalled > 0.9 > found.loss.stalled


def test_a_network_that_makes_no_errors_has_nothing_to_grow_for() -> None:
    found = PlateauDetector(window=3, min_improvement=0.02).assess(history([1.0, 0.8, 0.6], [1.0, 1.0, 1.0]))
    assert found is not None
    assert found.confidence < 0.1


def test_no_verdict_before_the_window_is_full() -> None:
    assert PlateauDetector(window=4).assess(history([1.0, 1.0, 1.0])) is None


def test_a_window_without_an_error_is_refused() -> None:
    with pytest.raises(ValueError, match="3 epochs or more"):
        PlateauDetector(window=2)


def test_a_loss_that_is_not_finite_is_no_plateau() -> None:
    found = PlateauDetector(window=3).assess(history([1.0, math.nan, 1.0], [0.1, 0.4, 0.9]))
    assert found is not None
    assert found.loss.stalled == 0


@given(scale=st.floats(0.01, 100))
def test_the_verdict_does_not_depend_on_the_unit_of_the_loss(scale: float) -> None:
    detector = PlateauDetector(window=4)
    curve = [1.0, 0.97, 0.98, 0.95]
    one = detector.assess(history(curve))
    other = detector.assess(history([scale * value for value in curve]))
    assert one is not None
    assert other is not None
    assert other.loss.stalled == pytest.approx(one.loss.stalled, rel=1e-6)
