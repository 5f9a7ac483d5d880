"""A budget of FLOPs instead of epochs."""

from __future__ import annotations

import json

import pytest

from esper.assembly.training import build_training
from esper.errors import ConfigError, RunError
from esper_cli.config import compose

BASE = ["+experiment=smoke", "tamiyo=never", "urza=memory"]


def _summary(tmp_path, *overrides, resume=None):
    cfg = compose([*BASE, f"runs={tmp_path}", *overrides])
    return build_training(cfg, resume=resume).run()


def test_a_run_keeps_its_budget_and_uses_all_of_it_but_a_step(tmp_path):
    whole = _summary(tmp_path, "tolaria.epochs=3")
    budget = 0.55 * whole["training_flops"]
    cut = _summary(tmp_path, f"tolaria.flops={budget}", "tolaria.epochs=1")
    step = 64 * 3 * cut["end"]["flops_per_sample"]
    evaluation = 240 * cut["end"]["flops_per_sample"]
    assert budget - step - evaluation < cut["training_flops"] <= budget
    assert cut["epochs"] == 2
    assert cut["steps"] < whole["steps"]


def test_the_rate_has_cooled_down_when_the_budget_is_spent(tmp_path):
    cut = _summary(tmp_path, "tolaria.flops=2e7", "tolaria.epochs=1")
    lines = [
        json.loads(line) for line in (tmp_path / cut["run_id"] / "journal.jsonl").read_text().splitlines()
    ]
    packets = [line["packet"] for line in lines if line["event"] == "epoch"]
    assert [p["progress"] for p in packets] == sorted(p["progress"] for p in packets)
    assert packets[-1]["progress"] == 1.0
    assert packets[-1]["rate_share"] == pytest.approx(0.0, abs=1e-6)
    assert packets[-1]["total_epochs"] == len(packets)


def test_a_budget_that_is_spent_cannot_be_resumed(tmp_path):
    done = _summary(tmp_path, "tolaria.flops=1e7")
    with pytest.raises(RunError, match="has used its tolaria"):
        _summary(tmp_path, "tolaria.flops=1e7", resume=done["run_id"])
    further = _summary(tmp_path, "tolaria.flops=2e7", resume=done["run_id"])
    assert further["steps"] > done["steps"]


def test_the_flops_of_a_whole_run_give_the_same_run(tmp_path):
    whole = _summary(tmp_path, "tolaria.epochs=2")
    again = _summary(tmp_path, f"tolaria.flops={whole['training_flops']:.0f}", "tolaria.epochs=1")
    assert (again["steps"], again["training_flops"]) == (whole["steps"], whole["training_flops"])


def test_a_budget_below_one_step_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"do not suffice for one step and an evaluation \(give at least"):
        _summary(tmp_path, "tolaria.flops=1e5")
