"""Runs whose kernels start from the steepest last weights: told, counted, and the same after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.assembly.training import build_training
from esper.data.batches import Batches
from esper.errors import ConfigError
from esper.nissa.runs import RunStore
from esper.tolaria.adaptation import apply
from esper_cli.config import compose
from esper_cli.history import print_history

SHIPPED = Path(__file__).parents[2] / "blueprints"
AT = ["urza=memory", "tamiyo=schedule", "tamiyo.at=[0.2,0.4]", "tolaria.trial.init=gradmax"]
HOSTS = {
    "mlp": ["+experiment=smoke", f"karn.paths=[{SHIPPED / 'bottleneck_mlp.yaml'}]"],
    "resnet": ["+experiment=resnet", "data=digits", f"karn.paths=[{SHIPPED / 'residual_conv.yaml'}]"],
    "transformer": ["+experiment=transformer", f"karn.paths=[{SHIPPED / 'swiglu.yaml'}]"],
}


def _build(folder: Path, host: str, *overrides: str, resume: str | None = None) -> Any:
    settings = [*HOSTS[host], *AT, f"runs={folder}", "tolaria.epochs=5", "tolaria.batch_size=128"]
    return build_training(compose([*settings, *overrides]), resume=resume)


def _events(folder: Path, run_id: str, name: str) -> list[dict[str, Any]]:
    lines = (folder / run_id / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def _grafts(folder: Path, run_id: str) -> list[dict[str, Any]]:
    return [e["evidence"] for e in _events(folder, run_id, "seed") if e["to_state"] == "GERMINATED"]


@pytest.fixture(scope="module", params=HOSTS)
def started(request: Any, tmp_path_factory: Any) -> tuple[str, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("started")
    return request.param, folder, _build(folder, request.param).run()


def test_the_journal_says_what_was_set_and_how_steep_it_is(
    started: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, summary = started
    grafts = _grafts(folder, summary["run_id"])
    assert len(grafts) == 2
    for evidence in grafts:
        assert evidence["start"].startswith("gradmax set ")
        assert evidence["slope"] < min(0.0, evidence["slope_before"])
    print_history(RunStore(folder).open(summary["run_id"]))
    assert capsys.readouterr().out.count("gradmax set ") == 2


def test_a_run_that_stopped_after_a_graft_ends_as_one_that_did_not(started: Any, tmp_path: Path) -> None:
    host, _, whole = started
    run = _build(tmp_path, host)
    run.trainer.policy = _StopAfter(run.trainer.policy, 2)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    resumed = _build(tmp_path, host, resume=run.info.run_id).run()
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["training_flops"] == whole["training_flops"]


def test_a_graft_changes_nothing_but_the_kernel_and_its_flops_count(tmp_path: Path) -> None:
    run = _build(tmp_path, "mlp", "tamiyo.at=[0.0]")
    trainer = run.trainer
    packet = trainer.run_epoch(0)
    spent, random = trainer.progress.flops, torch.random.get_rng_state()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    losses = trainer.held_out.evaluate().losses
    apply(trainer, trainer.policy.decide(packet), packet)
    assert torch.equal(trainer.held_out.evaluate().losses, losses)
    assert torch.equal(torch.random.get_rng_state(), random)
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert any(".kernel." in name for name in after)
    step = 128 * trainer.flops().training
    assert 0.3 * step < trainer.progress.flops - spent < 10 * step
    run.trainer.recorder.journal.close()


def test_it_sees_training_batches_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _build(tmp_path, "mlp")
    asked = []
    batch = Batches.batch
    monkeypatch.setattr(Batches, "batch", lambda own, *at: asked.append((own, *at[:2])) or batch(own, *at))
    run.trainer.policy = _StopAfter(run.trainer.policy, 1)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    steps = len(run.trainer.batches)
    grafts = _grafts(tmp_path, run.info.run_id)
    assert len(grafts) == 1
    expected = [(run.trainer.batches, epoch, step) for epoch in (0, 1) for step in range(steps)]
    extra = (run.trainer.batches, 1, 0)
    assert sorted(asked, key=lambda a: a[1:]) == sorted([*expected, extra], key=lambda a: a[1:])


def test_a_kernel_without_a_last_weight_is_grafted_as_it_is_and_why_is_told(tmp_path: Path) -> None:
    text = (SHIPPED / "bottleneck_mlp.yaml").read_text()
    bent = text.replace("output: up", "  - {id: bent, op: tanh, inputs: [up]}\noutput: bent")
    bent = bent.replace("gain: 0.1", "gain: 4.0").replace("name: bottleneck_mlp", "name: bent_mlp")
    (tmp_path / "bent.yaml").write_text(bent)
    told: list[str] = []
    run = _build(tmp_path / "runs", "mlp", f"karn.paths=[{tmp_path / 'bent.yaml'}]")
    run.trainer.recorder.listeners = (lambda event, fields: told.append(fields.get("text", "")),)
    summary = run.run()
    grafts = _grafts(tmp_path / "runs", summary["run_id"])
    assert grafts
    reason = "gradmax left the weights as they were: no weight of the kernel makes its output alone"
    assert all(evidence["start"].startswith(reason) for evidence in grafts)
    assert any(reason in text for text in told)


def test_by_default_kernels_start_as_they_come(tmp_path: Path) -> None:
    summary = _build(tmp_path, "mlp", "tolaria.trial.init=default").run()
    grafts = _grafts(tmp_path, summary["run_id"])
    assert grafts
    assert all("start" not in evidence for evidence in grafts)


def test_an_unknown_start_is_one_clear_line_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tolaria.trial.init must be default or gradmax, not gradmin"):
        _build(tmp_path / "runs", "mlp", "tolaria.trial.init=gradmin")
    assert not (tmp_path / "runs").exists()


class _StopAfter:
    """A policy that interrupts the run before its decision of epoch ``epoch``, counted from 0."""

    def __init__(self, policy: Any, epoch: int) -> None:
        self.policy, self.epoch = policy, epoch
        self.needs_kernels, self.needs_widths = policy.needs_kernels, policy.needs_widths

    def decide(self, packet: Any) -> Any:
        if packet.epoch == self.epoch:
            raise KeyboardInterrupt
        return self.policy.decide(packet)
