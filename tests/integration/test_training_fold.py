"""Kept kernels that are affine are folded into their hosts, and the run goes on as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esper.assembly.training import build_training
from esper_cli.config import compose

SHIPPED = Path(__file__).parents[2] / "blueprints"


def _run(tmp_path: Path, blueprint: str, *overrides: str, resume: str | None = None):
    base = ["+experiment=smoke", "urza=memory", f"runs={tmp_path}", "tolaria.trial.min_gain=-10"]
    cfg = compose([*base, "tolaria.epochs=9", f"karn.paths=[{SHIPPED / blueprint}]", *overrides])
    return build_training(cfg, resume=resume)


def _events(tmp_path: Path, run_id: str, name: str) -> list[dict]:
    lines = (tmp_path / run_id / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A run that kept and folded every kernel that it judged."""
    folder = tmp_path_factory.mktemp("folded")
    return folder, _run(folder, "low_rank.yaml", "tolaria.trial.fold=true").run()


def test_a_folded_kernel_costs_nothing_and_its_seed_is_dormant(folded):
    folder, summary = folded
    kept = [report for report in summary["adaptations"] if report["verdict"] == "kept"]
    moves = _events(folder, summary["run_id"], "seed")
    folds = [m for m in moves if (m["from_state"], m["to_state"]) == ("FOSSILIZED", "DORMANT")]
    assert len(folds) == len(kept) > 0
    assert all(0 <= m["evidence"]["folded_error"] <= 1e-5 for m in folds)
    assert "FOSSILIZED" not in summary["seeds"]


def test_a_run_that_folded_resumes(folded):
    folder, summary = folded
    further = _run(
        folder, "low_rank.yaml", "tolaria.trial.fold=true", "tolaria.epochs=10", resume=summary["run_id"]
    )
    assert further.run()["epochs"] == 10


def test_a_kernel_that_is_not_affine_stays_in_its_seed_and_the_reason_is_told(tmp_path):
    told: list[str] = []
    run = _run(tmp_path, "bottleneck_mlp.yaml", "tolaria.trial.fold=true")
    run.trainer.recorder.listeners = (lambda event, fields: told.append(fields.get("text", "")),)
    summary = run.run()
    assert summary["seeds"].get("FOSSILIZED", 0) > 0
    assert any("not folded" in text and "not affine" in text for text in told)
