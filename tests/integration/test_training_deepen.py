"""A host that is deepened while it trains: exact at birth, resumable, exportable, shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from proving_support import LONG
from safetensors.torch import load_file

from esper.assembly.exporting import export_run
from esper.assembly.training import build_training
from esper.kasmina import seeded_layers
from esper.messages import AdaptationDecision
from esper.nissa.runs import RunStore
from esper.tolaria import structure
from esper_cli.config import compose, compose_from
from esper_cli.history import print_history

AT = ["tamiyo=deepen", "urza=memory", "tolaria.epochs=4", "tamiyo.at=[0.25,0.5]", "tolaria.batch_size=128"]
HOSTS = {
    "mlp": ["+experiment=smoke", "tamiyo.targets=[hidden.1,hidden.0]"],
    "mlp, wrapped layers": ["+experiment=smoke"],
    "resnet": ["+experiment=resnet", "data=digits", "tamiyo.targets=[stage1,stage3]"],
    "resnet, copies": ["+experiment=resnet", "data=digits", "tamiyo.targets=[stage1]", "tamiyo.like=copy"],
    "transformer": ["+experiment=transformer", "tamiyo.targets=[blocks]", "tamiyo.hidden=8"],
    "transformer, copies": ["+experiment=transformer", "tamiyo.targets=[blocks]", "tamiyo.like=copy"],
}
if not LONG:
    del HOSTS["resnet, copies"], HOSTS["transformer"]
TARGETS = {
    "mlp": ["hidden.1", "hidden.0"],
    "mlp, wrapped layers": ["hidden.0", "hidden.1"],
    "resnet": ["stage1", "stage3"],
    "resnet, copies": ["stage1.0", "stage1.1"],
    "transformer": ["blocks", "blocks"],
    "transformer, copies": ["blocks.1", "blocks.2"],
}


def _build(folder: Path, host: str, *overrides: str, resume: str | None = None) -> Any:
    return build_training(compose([*HOSTS[host], *AT, f"runs={folder}", *overrides]), resume=resume)


def _events(folder: Path, run_id: str, name: str) -> list[dict[str, Any]]:
    lines = (folder / run_id / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture(scope="module", params=HOSTS)
def deepened(request: Any, tmp_path_factory: Any) -> tuple[str, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("deepened")
    return request.param, folder, _build(folder, request.param).run()


def test_a_new_block_moves_no_held_out_loss_and_no_answer(deepened: Any) -> None:
    host, folder, summary = deepened
    reports = [event["report"] for event in _events(folder, summary["run_id"], "growth")]
    assert [r["target"] for r in reports] == TARGETS[host]
    for report in reports:
        assert report["operator"] == "deepen"
        assert report["loss_after"] == report["loss_before"]
        assert report["accuracy_after"] == report["accuracy_before"]
    grown = summary["end"]["parameters"] - summary["start"]["parameters"]
    assert grown == sum(r["parameters"] for r in reports) > 0
    assert summary["end"]["flops_per_sample"] > summary["start"]["flops_per_sample"]


def test_new_blocks_learn(deepened: Any) -> None:
    host, folder, summary = deepened
    run = _build(folder, host, "tolaria.epochs=5", resume=summary["run_id"])
    (group,) = run.trainer.optimizer.param_groups
    parameters = {id(p) for p in run.trainer.model.parameters()}
    assert {id(p) for p in group["params"]} == parameters
    assert len(group["params"]) == len(parameters)
    assert all(bool(p.any()) for p in group["params"][-2:])  # of the newest block, zero at its birth
    assert group["peak_lr"] == run.trainer.optimizer.defaults["lr"]
    run.trainer.recorder.journal.close()


def test_a_run_that_stopped_after_growth_ends_as_one_that_did_not(deepened: Any, tmp_path: Path) -> None:
    host, _, whole = deepened
    run = _build(tmp_path, host)
    run.trainer.policy = _StopAfter(run.trainer.policy, 2)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = _build(tmp_path, host, resume=run.info.run_id).run()
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["training_flops"] == whole["training_flops"]
    reports = [event["report"] for event in _events(tmp_path, run.info.run_id, "growth")]
    assert [r["target"] for r in reports if r["epoch"] < 2] == TARGETS[host]


def test_a_deepened_network_leaves_as_plain_pytorch(deepened: Any, tmp_path: Path) -> None:
    _, folder, summary = deepened
    run = folder / summary["run_id"]
    export_run(compose_from(run / "config.yaml", []), run, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    weights = [tensor for name, tensor in tensors.items() if not name.endswith(buffers)]
    assert sum(tensor.numel() for tensor in weights) == summary["end"]["parameters"]


def test_what_was_done_is_shown(deepened: Any, capsys: pytest.CaptureFixture[str]) -> None:
    host, folder, summary = deepened
    print_history(RunStore(folder).open(summary["run_id"]))
    shown = capsys.readouterr().out
    for target in TARGETS[host]:
        assert f"grown: {target} is followed by a " in shown
    assert "modify architecture at " in shown


def test_growth_goes_on_with_kernels_in_seeds(tmp_path: Path) -> None:
    """The optimizer's groups are those of the host and of each kernel, in one order, also after a stop."""
    catalogue = "karn.paths=[blueprints/low_rank.yaml]"
    grafting = ["tamiyo=schedule", "tamiyo.at=[0.1]", catalogue]
    cfg = compose([*HOSTS["mlp"][:1], "urza=memory", "tolaria.epochs=5", *grafting, f"runs={tmp_path}"])

    def build(resume: str | None = None) -> Any:
        run = build_training(cfg, resume=resume)
        run.trainer.policy = _ThenDeepens(run.trainer.policy, 2)
        return run

    whole = build().run()
    stopped = build()
    stopped.trainer.policy = _StopAfter(stopped.trainer.policy, 3)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = build(stopped.info.run_id).run()
    assert len(_events(tmp_path, whole["run_id"], "growth")) == 1
    assert any(event["to_state"] == "TRAINING" for event in _events(tmp_path, whole["run_id"], "seed"))
    assert resumed["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"target": "hidden.9"}, "no module is named 'hidden.9'"),
        ({"target": "hidden.0", "like": "copy"}, "a copy of this Linear is never the identity"),
        ({"target": "hidden.0", "like": "mirror"}, "no block is like 'mirror'"),
        ({"target": "hidden.0", "hidden": 0}, "a block of 0 hidden features"),
        ({}, "a decision to deepen needs the parameter 'target'"),
        ({"operator": "shorten"}, "no operator is called 'shorten'; there are: widen, deepen"),
    ],
)
def test_what_cannot_be_deepened_is_refused_and_training_goes_on(
    parameters: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run = _build(tmp_path, "mlp")
    run.trainer.policy = _Asks(run.trainer.policy, {"operator": "deepen", **parameters})
    summary = run.run()
    outcomes = [event["outcome"] for event in _events(tmp_path, summary["run_id"], "decision")]
    assert [outcome["status"] for outcome in outcomes] == ["refused"] * 2
    assert said in outcomes[0]["reason"]
    assert summary["end"] == summary["start"]


def test_a_block_that_moves_a_loss_is_undone_exactly_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _build(tmp_path, "mlp")
    plain = structure.OPERATORS["deepen"]

    def spoiled(model: Any, *args: Any) -> Any:
        growth = plain(model, *args)
        with torch.no_grad():
            for parameter in growth.added:
                parameter.add_(1.0)
        return growth

    monkeypatch.setitem(structure.OPERATORS, "deepen", spoiled)
    trainer = run.trainer
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    layers = list(seeded_layers(trainer.model))
    parameters = list(trainer.optimizer.param_groups[0]["params"])
    packet = trainer.run_epoch(0)
    trained = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    decision = trainer.policy.decide(packet)
    outcome = trainer.structure.apply(decision, 0)
    assert outcome.status == "refused"
    assert "deepen changed a held-out loss by" in outcome.reason
    assert "it was undone" in outcome.reason
    after = trainer.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], trained[name]) for name in trained)
    assert list(seeded_layers(trainer.model)) == layers
    assert [id(p) for p in trainer.optimizer.param_groups[0]["params"]] == [id(p) for p in parameters]
    assert not trainer.structure.records
    assert not trainer.structure.reports
    run.trainer.recorder.journal.close()


def test_reports_of_before_there_were_new_blocks_are_read() -> None:
    old = {
        "epoch": 3,
        "operator": "widen",
        "target": "hidden.0 to 24",
        "sizes": {"hidden.0": [16, 24]},
        "parameters": 9,
        "loss_before": 0.5,
        "loss_after": 0.5,
        "accuracy_before": 0.8,
        "accuracy_after": 0.8,
    }
    report = structure._report_from(old)
    assert (report.sizes, report.like, report.hidden) == ({"hidden.0": (16, 24)}, "", None)


class _StopAfter:
    """A policy that interrupts the run before its decision of epoch ``epoch``, counted from 0."""

    def __init__(self, policy: Any, epoch: int) -> None:
        self.policy, self.epoch = policy, epoch
        self.needs_kernels, self.needs_widths = policy.needs_kernels, policy.needs_widths

    def decide(self, packet: Any) -> Any:
        if packet.epoch == self.epoch:
            raise KeyboardInterrupt
        return self.policy.decide(packet)


class _ThenDeepens(_StopAfter):
    """A policy that deepens in epoch ``epoch``, whatever ``policy`` says."""

    def decide(self, packet: Any) -> Any:
        decision = self.policy.decide(packet)
        if packet.epoch != self.epoch:
            return decision
        wanted = {"operator": "deepen", "target": "hidden.0"}
        return AdaptationDecision("modify_architecture", "hidden.0", wanted, 1.0, 0.0)


class _Asks(_StopAfter):
    """A policy that asks for something else when ``policy`` asks."""

    def __init__(self, policy: Any, parameters: dict[str, Any]) -> None:
        super().__init__(policy, -1)
        self.parameters = parameters

    def decide(self, packet: Any) -> Any:
        decision = self.policy.decide(packet)
        return decision and replace(decision, parameters=self.parameters)
