"""A run that starts from the network of another: what it takes over, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.assembly.exporting import export_run
from esper.assembly.keys import build_envelope
from esper.assembly.training import build_training
from esper.errors import CheckpointError, RunError
from esper.tolaria.checkpoints import Checkpoints
from esper_cli.config import compose, compose_from

SMOKE = ["+experiment=smoke", "urza=memory", "tamiyo=never"]
WIDEN = ["tamiyo=widen", "tamiyo.at=[0.3]", "tolaria.epochs=2"]
GROW = ["tamiyo=schedule", "tamiyo.at=[0.2]", "tolaria.epochs=4"]
KERNELS = "karn.paths=[blueprints/low_rank.yaml]"


def build(folder: Path, *overrides: str, resume: str | None = None) -> Any:
    return build_training(compose([*SMOKE, KERNELS, f"runs={folder}", *overrides]), resume=resume)


def stopped(run: Any, epoch: int) -> str:
    """The id of ``run``, stopped in the midst of ``epoch``."""

    def interrupt(event: str, fields: Any) -> None:
        if event == "step" and fields["epoch"] == epoch and fields["step"] > 0:
            raise KeyboardInterrupt

    run.trainer.recorder.listeners = (interrupt,)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    return str(run.info.run_id)


def started_event(summary: dict[str, Any]) -> dict[str, Any]:
    lines = (Path(summary["folder"]) / "journal.jsonl").read_text().splitlines()
    return next(e for e in map(json.loads, lines) if e["event"] == "run_started")


@pytest.fixture(scope="module")
def widened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build(tmp_path_factory.mktemp("widened"), *WIDEN).run()


def test_it_takes_over_the_network_and_nothing_else(widened, tmp_path):
    run = build(tmp_path, f"tolaria.start={widened['folder']}", "tolaria.epochs=1", "seed=7")
    held_out = run.trainer.held_out.evaluate()
    assert held_out.loss == pytest.approx(widened["held_out"]["loss"], abs=1e-6)
    assert held_out.accuracy == widened["held_out"]["accuracy"]
    assert run.trainer.optimizer.state_dict()["state"] == {}
    assert run.trainer.progress.history == ()
    assert run.trainer.progress.flops == 0
    assert run.trainer.structure.reports == []
    state = run.trainer.state()["rng"]
    assert torch.equal(state["torch"], build(tmp_path, "seed=7").trainer.state()["rng"]["torch"])
    summary = run.run()
    assert summary["epochs"] == 1
    assert summary["start"]["parameters"] == widened["end"]["parameters"]
    assert summary["training_flops"] < widened["training_flops"]
    assert started_event(summary)["parameters"] == widened["end"]["parameters"]


def test_it_grows_on_and_leaves_as_plain_pytorch(widened, tmp_path):
    overrides = [f"tolaria.start={widened['folder']}", *WIDEN]
    summary = build(tmp_path, *overrides).run()
    assert summary["end"]["parameters"] > summary["start"]["parameters"] == widened["end"]["parameters"]
    run = Path(summary["folder"])
    report = export_run(compose_from(run / "config.yaml", []), run, tmp_path / "out")
    assert report.parameters == summary["end"]["parameters"]


@pytest.mark.parametrize("policy", [WIDEN, GROW], ids=["widen", "graft"])
def test_resuming_it_ends_as_if_it_had_not_stopped(widened, policy, tmp_path):
    overrides = [f"tolaria.start={widened['folder']}", *policy, "tolaria.epochs=4"]
    whole = build(tmp_path, *overrides).run()
    run_id = stopped(build(tmp_path, *overrides), 3)
    resumed = build(tmp_path, *overrides[1:], "tolaria.start=gone", resume=run_id).run()
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["training_flops"] == whole["training_flops"]


def test_kernels_come_along_and_trials_go_on(tmp_path):
    run = build(tmp_path, *GROW)
    run_id = stopped(run, 2)
    first = run.trainer.orchestrator.seeds.trials
    assert any(not trial.finished for trial in first.values())
    further = build(tmp_path, f"tolaria.start={tmp_path / run_id}", "tolaria.epochs=4")
    orchestrator = further.trainer.orchestrator
    assert {trial.started_epoch for trial in orchestrator.seeds.trials.values()} == {0}
    assert orchestrator.seeds.reports == []
    owned = [g for g in further.trainer.optimizer.param_groups if "seed" in g]
    assert len(owned) == len(orchestrator.seeds.trials) > 0
    summary = further.run()
    assert len(summary["adaptations"]) >= 1
    assert all(report["ended_epoch"] >= report["started_epoch"] for report in summary["adaptations"])
    ended = build(tmp_path, f"tolaria.start={summary['folder']}", "tolaria.epochs=1").run()
    assert ended["start"]["parameters"] == summary["end"]["parameters"]


def test_another_memory_format_is_no_obstacle(tmp_path):
    small = ["+experiment=resnet", "model.width=2", "data=digits", "urza=memory", "tamiyo=never"]
    small += ["tolaria.epochs=1", f"runs={tmp_path}"]
    first = build_training(compose([*small, "tolaria.channels_last=true"])).run()
    started = [*small, "tolaria.channels_last=false", f"tolaria.start={first['folder']}"]
    run = build_training(compose(started))
    assert run.trainer.held_out.evaluate().loss == pytest.approx(first["held_out"]["loss"], abs=1e-5)
    folder, envelope = Path(first["folder"]) / "checkpoints", build_envelope(compose(small))
    buffers = Checkpoints(folder, envelope).load()["model"]
    for name, value in run.trainer.model.state_dict().items():
        assert torch.equal(value, buffers[name]), name


def test_what_cannot_be_started_from_is_one_line_and_leaves_no_folder(widened, tmp_path):
    with pytest.raises(RunError, match=r"tolaria\.start: there is no run in gone \(name the folder"):
        build(tmp_path / "a", "tolaria.start=gone")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        build(tmp_path / "a", f"tolaria.start={tmp_path}")
    for other in ("model.hidden=[40,16]", "model.hidden=[16,16,16]", "data=fashion"):
        with pytest.raises(CheckpointError, match=r"does not fit this network: .* \(tolaria\.start=") as told:
            build(tmp_path / "a", f"tolaria.start={widened['folder']}", other)
        assert "\n" not in str(told.value)
    assert not (tmp_path / "a").exists()
