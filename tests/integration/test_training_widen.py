"""A host that is widened while it trains: exact at birth, resumable, exportable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from esper.assembly.exporting import export_run
from esper.assembly.keys import build_envelope
from esper.assembly.training import build_training
from esper.errors import ConfigError
from esper.tolaria.checkpoints import Checkpoints
from esper_cli.config import compose, compose_from

BASE = [
    "+experiment=smoke",
    "tamiyo=widen",
    "tamiyo.widening.factor=1.5",
    "urza=memory",
    "tamiyo.at=[0.2,0.5]",
]


def _build(folder: Path, *overrides: str, resume: str | None = None):
    return build_training(compose([*BASE, f"runs={folder}", "tolaria.epochs=6", *overrides]), resume=resume)


def _events(folder: Path, run_id: str, name: str) -> list[dict]:
    lines = (folder / run_id / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture(scope="module")
def widened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("widened")
    return folder, _build(folder).run()


def test_growth_moves_no_held_out_loss_and_no_answer(widened):
    folder, summary = widened
    reports = [event["report"] for event in _events(folder, summary["run_id"], "growth")]
    assert [r["sizes"]["hidden.0"] for r in reports] == [[16, 24], [24, 36]]
    for report in reports:
        assert report["accuracy_after"] == report["accuracy_before"]
        assert report["loss_after"] == pytest.approx(report["loss_before"], abs=1e-5)
    assert summary["start"]["parameters"] == 16 * 65 + 16 * 17 + 17 * 10
    assert summary["end"]["parameters"] == 36 * 65 + 36 * 37 + 37 * 10
    assert summary["end"]["flops_per_sample"] > 2 * summary["start"]["flops_per_sample"]


def test_new_units_learn(widened):
    folder, summary = widened
    cfg = compose([*BASE, f"runs={folder}"])
    checkpoint = Checkpoints(folder / summary["run_id"] / "checkpoints", build_envelope(cfg)).load()
    weights = {name: value for name, value in checkpoint["model"].items() if name.endswith("head.weight")}
    (head,) = weights.values()
    assert head.shape == (10, 36)
    assert bool((head[:, 16:].abs().amax(0) > 1e-4).all())


OTHERWISE = ("tamiyo.widening.start=pairs", "tamiyo.widening.moments=reset", "tolaria/optimizer=adamw")


@pytest.mark.parametrize("overrides", [(), OTHERWISE])
def test_a_run_that_stopped_after_growth_ends_as_one_that_did_not(overrides, widened, tmp_path):
    whole = widened[1] if not overrides else _build(tmp_path / "whole", *overrides).run()
    run = _build(tmp_path, *overrides)
    run.trainer.policy = _StopAfter(run.trainer.policy, 3)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = _build(tmp_path, *overrides, resume=run.info.run_id).run()
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["training_flops"] == whole["training_flops"]


def test_a_widened_network_leaves_as_plain_pytorch(widened, tmp_path):
    folder, summary = widened
    run = folder / summary["run_id"]
    export_run(compose_from(run / "config.yaml", []), run, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == summary["end"]["parameters"]


def test_what_cannot_grow_is_refused_and_training_goes_on(tmp_path):
    run = _build(tmp_path)
    run.trainer.policy = _Asks(run.trainer.policy, {"hidden.9": 20})
    summary = run.run()
    outcomes = [event["outcome"] for event in _events(tmp_path, summary["run_id"], "decision")]
    assert {outcome["status"] for outcome in outcomes} == {"refused"}
    assert "hidden.9" in outcomes[0]["reason"]
    assert summary["end"] == summary["start"]


def test_new_units_in_pairs_move_no_answer_either(tmp_path):
    summary = _build(tmp_path, "tamiyo.widening.start=pairs").run()
    reports = [event["report"] for event in _events(tmp_path, summary["run_id"], "growth")]
    assert len(reports) == 2
    assert all(report["accuracy_after"] == report["accuracy_before"] for report in reports)
    assert all(report["loss_after"] == pytest.approx(report["loss_before"], abs=1e-5) for report in reports)


@pytest.mark.parametrize("name", ["start", "moments", "rates"])
def test_a_word_that_no_operator_knows_is_refused_at_once(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} is one of"):
        _build(tmp_path, f"tamiyo.widening.{name}=nonsense")


class _StopAfter:
    """A policy that interrupts the run before its decision number ``epochs``, counted from 0."""

    def __init__(self, policy, epochs):
        self.policy, self.epochs = policy, epochs
        self.needs_kernels, self.needs_widths = policy.needs_kernels, policy.needs_widths

    def decide(self, packet):
        if packet.epoch == self.epochs:
            raise KeyboardInterrupt
        return self.policy.decide(packet)


class _Asks(_StopAfter):
    """A policy that asks for other sizes than ``policy``."""

    def __init__(self, policy, sizes):
        super().__init__(policy, -1)
        self.sizes = sizes

    def decide(self, packet):
        from dataclasses import replace

        decision = self.policy.decide(packet)
        return decision and replace(decision, parameters={"operator": "widen", "sizes": self.sizes})
