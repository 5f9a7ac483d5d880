"""Training that becomes unstable goes back, leaves out what caused it, and goes on from there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from torch import Tensor

from esper.assembly.network import build_data, build_host
from esper.assembly.training import build_training
from esper.data.batches import Batches
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.tolaria.run import Run, weights_digest
from esper.tolaria.stability import first_non_finite
from esper_cli.app import run as command
from esper_cli.config import compose
from esper_cli.progress import describe


class Poisoned(Batches):
    """Batches of which those at ``places`` (epoch, step) hold ``value``."""

    places: tuple[tuple[int, int], ...] = ()
    value = float("nan")

    def batch(self, epoch: int, step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        x, y = super().batch(epoch, step, part)
        return (x * self.value if (epoch, step) in self.places else x), y


def config(runs: Path, *overrides: str) -> DictConfig:
    base = ["+experiment=smoke", "urza=memory", "tamiyo=never", "tolaria.epochs=4", f"runs={runs}"]
    return compose([*base, *overrides])


def poisoned(run: Run, *places: tuple[int, int], value: float = float("nan")) -> Run:
    batches = run.trainer.batches
    batches.__class__ = Poisoned
    assert isinstance(batches, Poisoned)
    batches.places, batches.value = places, value
    return run


def events_of(run: Run, *names: str) -> list[dict[str, Any]]:
    events, _ = read_journal(run.info.folder / JOURNAL_NAME)
    return [event for event in events if event["event"] in names]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_poisoned_batch_costs_one_rollback(
    tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    run = poisoned(build_training(config(tmp_path)), (1, 3), value=value)
    summary = run.run()
    (rollback,) = events_of(run, "rollback")
    steps = len(run.trainer.batches)
    assert rollback["cause"] == "batch"
    assert rollback["skipped"] == [1, 3]
    assert (rollback["from_step"], rollback["to_step"]) == (steps + 3, steps)
    assert rollback["seconds"] > 0
    assert summary["epochs"] == 4
    assert summary["steps"] == 4 * steps - 1
    assert first_non_finite(run.trainer.model) is None
    assert summary["held_out"]["accuracy"] > 0.7
    lines = [describe(event["event"], event) for event in events_of(run, "rollback")]
    assert "caused by batch" in str(lines[0])
    assert "batch 4 of epoch 2 is left out" in str(lines[0])
    capsys.readouterr()
    assert command(["runs", "show", "latest", f"runs={tmp_path}"]) == 0
    assert " ".join(str(lines[0]).split()) in " ".join(capsys.readouterr().out.split())


def test_samples_that_are_no_numbers_cost_one_rollback_and_never_come_again(tmp_path: Path) -> None:
    run = build_training(config(tmp_path, "tolaria.batch_size=256"))
    batches = run.trainer.batches
    bad = batches.order(1)[300:303].tolist()
    batches.x[bad[0]] = float("inf")
    batches.x[bad[1:], :, 2] = float("nan")
    summary = run.run()
    rollbacks = events_of(run, "rollback")
    assert [each["cause"] for each in rollbacks] == ["batch"] * len(rollbacks)
    assert 1 <= len(rollbacks) <= 3  # in the first epoch, each of the batches that they are in
    assert all(each["skipped"][0] == 0 for each in rollbacks)
    assert sorted(run.trainer.progress.left_out) == sorted(bad)
    assert summary["epochs"] == 4
    assert first_non_finite(run.trainer.model) is None


def test_a_run_that_was_rolled_back_resumes_to_the_same_weights(tmp_path: Path) -> None:
    every = ("tolaria.checkpoint_every=2", "tolaria.keep_checkpoints=1000")
    whole = poisoned(build_training(config(tmp_path / "whole", *every)), (1, 3)).run()
    source = Path(whole["folder"])
    names = sorted(path.name for path in source.glob("checkpoints/step-*"))
    back = next(name for name in names if name.endswith(".1"))  # written just after the rollback
    for last in (back, names[names.index(back) + 3]):
        folder = tmp_path / last / source.name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("summary.json"))
        for name in names[names.index(last) + 1 :]:
            shutil.rmtree(folder / "checkpoints" / name)
        again = poisoned(build_training(config(folder.parent, *every), resume=source.name), (1, 3)).run()
        assert again["weights_sha256"] == whole["weights_sha256"], last


def test_an_adaptation_that_explodes_is_taken_out_and_the_host_is_as_it_was(tmp_path: Path) -> None:
    growing = ["tamiyo=eager", "tamiyo.first_epoch=2", "karn.paths=[blueprints/low_rank.yaml]"]
    growing += ["tamiyo.min_confidence=0.0", "tamiyo.detector.window=3", "tolaria.epochs=8"]
    growing += ["tolaria.checkpoint_every=5", "tolaria.keep_checkpoints=1000"]
    run = build_training(config(tmp_path, *growing))
    trainer = run.trainer
    exploded: list[tuple[str, int]] = []
    restored: list[str] = []
    saved: list[Any] = []
    left: list[list[str]] = []

    def watch(event: str, fields: Any) -> None:
        if event == "checkpoint" and restored:
            left.append([path.name for path in run.info.folder.glob("checkpoints/step-*")])
        if event == "seed" and fields["to_state"] == "BLENDING" and not exploded:
            seed = trainer.orchestrator.layers[fields["layer"]].seed(fields["seed_idx"])
            for parameter in seed.kernel_parameters:
                parameter.data.fill_(1e6)  # finite, and soon to be heard
            exploded.append((fields["layer"], fields["seed_idx"]))
        if event == "rollback":
            restored.append(weights_digest(trainer.model))
            left.append([path.name for path in run.info.folder.glob("checkpoints/step-*")])
            saved.append(trainer.checkpoints.load(str(fields["to_step"]))["model"])

    trainer.recorder.listeners += (watch,)
    summary = run.run()
    (rollback,) = events_of(run, "rollback")
    (layer, idx) = exploded[0]
    assert rollback["cause"] == "adaptation"
    assert rollback["target"] == f"{layer}#{idx}"
    assert rollback["seeds"] == [[layer, idx]]
    assert rollback["skipped"] is None
    step = f"step-{rollback['to_step']:09d}"
    assert max(left[0]) > f"{step}.1"
    assert max(left[1]) == f"{step}.1"  # a process that is killed now goes on from there
    fresh = build_host(config(tmp_path), build_data(config(tmp_path)))
    fresh.load_state_dict(saved[0])
    assert restored == [weights_digest(fresh)]  # no kernel is in it, and its host is that of the checkpoint
    moved = [
        (event["to_state"], event["evidence"])
        for event in events_of(run, "seed")
        if (event["layer"], event["seed_idx"]) == (layer, idx)
    ]
    culled = next(n for n, (state, _) in enumerate(moved) if state == "CULLED")
    assert "rolled back" in moved[culled][1]["reason"]
    assert moved[culled + 1] == ("EMBARGOED", {"until_epoch": rollback["to_epoch"] + 2})
    failed = [a for a in summary["adaptations"] if a["verdict"] == "failed"]
    assert [(a["layer"], a["seed_idx"]) for a in failed] == [(layer, idx)]
    assert first_non_finite(trainer.model) is None


def test_growth_of_the_host_is_undone_and_not_tried_again_at_once(tmp_path: Path) -> None:
    run = build_training(
        config(tmp_path, "tamiyo=widen_early", "tolaria.epochs=6", "tolaria.keep_checkpoints=1")
    )
    trainer = run.trainer
    before: list[Any] = []

    def break_it(event: str, fields: Any) -> None:
        if event == "growth" and not before:
            before.append({name: tuple(p.shape) for name, p in trainer.model.named_parameters()})
            last = list(trainer.model.parameters())[-2]
            last.data.mul_(1e6)
        if event == "rollback":
            before.append({name: tuple(p.shape) for name, p in trainer.model.named_parameters()})

    trainer.recorder.listeners += (break_it,)
    run.run()
    (rollback,) = events_of(run, "rollback")
    assert (rollback["cause"], rollback["target"]) == ("adaptation", "widen host")
    assert before[0] != before[1]
    refused = [e for e in events_of(run, "decision") if e["outcome"]["status"] == "refused"]
    assert any("rolled back" in event["outcome"]["reason"] for event in refused)
