"""A host that is widened with the rates of its new parts matched; a resumed run ends as one that went on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from esper.assembly.training import build_training
from esper.tolaria import structure
from esper_cli.config import compose

BASE = ["+experiment=smoke", "tamiyo=widen", "urza=memory", "tamiyo.at=[0.2,0.5]", "tolaria.epochs=6"]
MATCHED = {"rates": "matched"}


def _build(
    folder: Path, parameters: dict, *overrides: str, resume: str | None = None, stop: int | None = None
):
    run = build_training(compose([*BASE, f"runs={folder}", *overrides]), resume=resume)
    run.trainer.policy = _Adds(run.trainer.policy, parameters, stop)
    return run


def _outcomes(folder: Path, run_id: str) -> list[dict]:
    lines = (folder / run_id / "journal.jsonl").read_text().splitlines()
    return [event["outcome"] for event in map(json.loads, lines) if event["event"] == "decision"]


def _factors(run) -> list[tuple[float, ...]]:
    """Of each weight whose new entries have a rate of their own."""
    found = [run.trainer.structure.block_rates.factors(p) for p in run.trainer.model.parameters()]
    return [factors for factors in found if len(factors) > 1]


@pytest.fixture(scope="module")
def matched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matched")
    run = _build(folder, MATCHED)
    return folder, run, run.run()


def test_each_growth_has_a_factor_in_each_weight(matched):
    folder, run, summary = matched
    assert [o["status"] for o in _outcomes(folder, summary["run_id"])] == ["grown", "grown"]
    factors = _factors(run)
    assert len(factors) == 3
    for first, *others in factors:
        assert first == 1
        assert len(others) == 2
        assert all(0.25 <= factor <= 4 and factor != 1 for factor in others)


def test_the_network_ends_otherwise_than_with_equal_rates(matched, tmp_path):
    _, _, summary = matched
    plain = _build(tmp_path / "plain", {})
    equal = _build(tmp_path / "equal", {"rates": "equal"})
    assert plain.run()["weights_sha256"] == equal.run()["weights_sha256"] != summary["weights_sha256"]
    assert not _factors(equal)
    assert not equal.trainer.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("stop", [2, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_that_stopped_ends_as_one_that_did_not(matched, tmp_path, optimizer, stop):
    _, _, whole = matched
    options = [f"tolaria/optimizer={optimizer}"]
    if optimizer != "sgd":
        options.append("tolaria.learning_rate=0.01")
        whole = _build(tmp_path, MATCHED, *options).run()
    run = _build(tmp_path, MATCHED, *options, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = _build(tmp_path, MATCHED, *options, resume=run.info.run_id)
    assert len(_factors(resumed)) == 3
    assert resumed.run()["weights_sha256"] == whole["weights_sha256"]


def test_a_growth_that_is_refused_at_birth_leaves_nothing_behind(tmp_path, monkeypatch):
    never = _build(tmp_path / "never", {"rates": "other"}).run()  # refused before anything grows
    monkeypatch.setattr(structure, "BIRTH_TOLERANCE", -1.0)
    run = _build(tmp_path, MATCHED)
    summary = run.run()
    assert {o["status"] for o in _outcomes(tmp_path, summary["run_id"])} == {"refused"}
    assert run.trainer.structure.state()["matched"] == []
    assert not run.trainer.optimizer._optimizer_step_pre_hooks
    assert summary["weights_sha256"] == never["weights_sha256"]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"rates": "other"}, "rates is 'other', and not one of: equal, matched"),
        ({"operator": "deepen", "target": "hidden.0", **MATCHED}, "makes no weight larger"),
    ],
)
def test_what_cannot_be_matched_is_refused_and_undone(tmp_path, parameters, reason):
    run = _build(tmp_path, parameters)
    summary = run.run()
    outcomes = _outcomes(tmp_path, summary["run_id"])
    assert {o["status"] for o in outcomes} == {"refused"}
    assert reason in outcomes[0]["reason"]
    assert summary["end"] == summary["start"]


def test_a_run_that_starts_with_a_grown_network_takes_all_of_it_as_old(matched, tmp_path):
    folder, _, summary = matched
    start = f"tolaria.start={folder / summary['run_id']}"
    run = _build(tmp_path, MATCHED, start, "tolaria.epochs=3")
    assert not _factors(run)
    run.run()
    assert [len(factors) for factors in _factors(run)] == [3, 3, 3]
    assert run.trainer.structure.state()["matched"] == [2, 3]


class _Adds:
    """A policy that adds ``parameters`` to the decisions of ``policy``, and stops the run at ``stop``."""

    def __init__(self, policy, parameters, stop):
        self.policy, self.parameters, self.stop = policy, parameters, stop
        self.needs_kernels, self.needs_widths = policy.needs_kernels, policy.needs_widths

    def decide(self, packet):
        if packet.epoch == self.stop:
            raise KeyboardInterrupt
        decision = self.policy.decide(packet)
        return decision and replace(decision, parameters={**decision.parameters, **self.parameters})
