"""Expected against realised, with values worked out by hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from esper.messages import FieldReport, Slot
from esper.nissa.calibration import calibration, growth_impact
from esper.nissa.run_parsing import parse_report
from esper.nissa.run_view import RunView
from esper_cli.history import _calibration_words

KEPT = FieldReport(
    layer="a",
    layer_kind="linear",
    seed_idx=0,
    slot=Slot("features", 4, 4),
    site="parallel",
    kernel_id="kernel_a",
    blueprint_id="blueprint_a",
    started_epoch=1,
    ended_epoch=3,
    verdict="kept",
    reason="",
    expected_impact=0.01,
    gain=0.02,
    gain_error=0.001,
    threshold=0.0,
    loss_before=0.5,
    loss_after=0.48,
    accuracy_before=0.8,
    accuracy_after=0.81,
    parameters=10,
    confidence=0.8,
    tags=("linear", "mlp"),
)
CULLED = replace(KEPT, verdict="culled", gain=0.3, expected_impact=0.03, confidence=0.4)


def test_no_trial_has_no_calibration() -> None:
    assert calibration([]) is None


def test_known_values() -> None:
    found = calibration([KEPT, CULLED])
    assert found is not None
    assert (found.trials, found.kept) == (2, 1)
    assert found.expected == pytest.approx(0.02)
    assert found.realised == pytest.approx((0.04 + 0.0) / 2)  # what was culled gained nothing
    assert found.error == pytest.approx((-0.03 + 0.03) / 2)
    assert found.absolute_error == pytest.approx(0.03)
    assert found.confidence == pytest.approx(0.6)
    assert found.brier == pytest.approx((0.2**2 + 0.4**2) / 2)


def test_trials_without_a_confidence_count_for_the_impact_only() -> None:
    found = calibration([KEPT, replace(CULLED, confidence=None)])
    assert found is not None
    assert (found.trials, found.brier) == (2, pytest.approx(0.04))
    alone = calibration([replace(KEPT, confidence=None)])
    assert alone is not None
    assert (alone.brier, alone.confidence, alone.realised) == (None, None, pytest.approx(0.04))


def test_a_loss_of_zero_cannot_fall_and_a_failure_gains_nothing() -> None:
    found = calibration([replace(KEPT, loss_before=0.0), replace(KEPT, verdict="failed", gain=1.0)])
    assert found is not None
    assert found.realised == 0.0


def test_a_report_is_read_back_whole_and_one_of_an_older_journal_too() -> None:
    written = asdict(KEPT) | {"tags": list(KEPT.tags)}  # as JSON has it
    assert parse_report(written) == KEPT
    del written["confidence"], written["tags"]
    assert parse_report(written) == replace(KEPT, confidence=None, tags=())


def test_a_run_shows_its_calibration_once_it_has_trials(tmp_path: Path) -> None:
    view = RunView(tmp_path)
    assert _calibration_words(view) == []
    view.trials = [KEPT, CULLED]
    impact, confidence = _calibration_words(view)[1:]
    assert "2 finished trials: expected impact 2.00 %, realised 2.00 %, mean error +0.00 points" in impact
    assert "confidence 0.60 on average, 0.50 were kept; Brier score 0.100" in confidence
    view.trials = [replace(KEPT, confidence=None)]
    assert "1 finished trial:" in _calibration_words(view)[-1]


def test_a_growth_is_told_beside_what_the_loss_did_before() -> None:
    losses = {0: 2.0, 1: 1.6, 2: 1.0, 3: 0.8, 4: 0.5}
    found = growth_impact(losses, 2)
    assert found is not None
    assert (found.epochs, found.after, found.before) == (2, pytest.approx(0.5), pytest.approx(0.5))
    short = growth_impact(losses, 3)
    assert short is not None
    assert (short.epochs, short.after, short.before) == (1, pytest.approx(0.375), pytest.approx(0.2))
    assert growth_impact(losses, 4) is None
    assert growth_impact(losses, 0) is None
    assert growth_impact({}, 3) is None
    assert growth_impact({0: 1.0, 1: 0.0, 2: 1.0}, 1) is None
