"""A run that was stopped after any step ends as one that was not. The long form: tests/drills/resume.py."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from drills.resume import config, resumed, states_at, train_whole
from torch import Tensor

from esper.assembly.training import build_training
from esper.errors import CheckpointError
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.journal_reader import read_journal
from esper.tolaria.checkpoints import Mark, background
from esper.tolaria.checkpoints.tree import split
from esper_cli.config import compose


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train_whole(tmp_path_factory.mktemp("whole"))


def test_to_write_checkpoints_changes_nothing(whole: dict[str, Any], tmp_path: Path) -> None:
    without = build_training(config(tmp_path, "tolaria.checkpoint_every=null")).run()
    assert without["weights_sha256"] == whole["weights_sha256"]


def test_stopped_anywhere_it_ends_with_the_same_weights(whole: dict[str, Any], tmp_path: Path) -> None:
    states = states_at(whole)
    first = {
        state: next((step for step in states if state in states[step]), None)
        for state in ("TRAINING", "BLENDING", "HOLDING")
    }
    assert all(first.values()), first
    steps = {0, 1, whole["steps"] - 1, whole["steps"] // 2, *first.values()}
    for step in sorted(step for step in steps if step is not None):
        summary = resumed(whole, step, tmp_path / str(step))
        assert summary["weights_sha256"] == whole["weights_sha256"], (step, states[step])
        assert [a["verdict"] for a in summary["adaptations"]] == [a["verdict"] for a in whole["adaptations"]]


def test_within_an_epoch_its_policy_is_told_the_same(whole: dict[str, Any], tmp_path: Path) -> None:
    def told(summary: dict[str, Any]) -> dict[int, dict[str, Any]]:
        events, _ = read_journal(Path(summary["folder"]) / JOURNAL_NAME)
        packets = {e["packet"]["epoch"]: e["packet"] for e in events if e["event"] == "epoch"}
        for packet in packets.values():
            for metrics in packet["layer_metrics"].values():
                for signal in metrics["signals"]:
                    signal.pop("latency_ms", None)  # a clock, not the network
        return packets

    again = resumed(whole, whole["steps"] // 2 + 3, tmp_path)
    assert told(again) == told(whole)


def test_weights_that_are_copied_late_are_those_of_their_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = background.fill

    def late(room: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.05)  # until long after the next step, if nobody waited
        fill(room, tensors)

    monkeypatch.setattr(background, "fill", late)
    base = ["+experiment=smoke", "urza=memory", "tamiyo=never", "tolaria.ema=0.9", f"runs={tmp_path}"]
    wide = ["model.hidden=[256,256]", "tolaria.batch_size=512", "tolaria.epochs=2"]
    every = ["tolaria.checkpoint_every=1", "tolaria.keep_checkpoints=100"]
    run = build_training(compose([*base, *wide, *every]))
    saver, kept = run.trainer.saving._saver, {}
    begin = saver.begin

    def noted(mark: Mark, state: dict[str, Any], steady: Iterable[Tensor]) -> None:
        kept[mark.step] = {name: tensor.clone() for name, tensor in split(state).tensors.items()}
        begin(mark, state, steady)

    monkeypatch.setattr(saver, "begin", noted)
    run.run()
    for step, tensors in kept.items():
        loaded = split(run.trainer.checkpoints.load(str(step))).tensors
        assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items()), step
    assert len(kept) > 4


def test_a_damaged_checkpoint_is_passed_over_and_told(whole: dict[str, Any], tmp_path: Path) -> None:
    source = Path(whole["folder"])
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    newest = max(folder.glob("checkpoints/step-*"))
    (newest / "state.sealed").write_bytes(b"")
    run = build_training(config(tmp_path), resume=source.name)
    assert run.trainer.progress.epochs_done == whole["epochs"] - 1  # the one within the last epoch
    assert run.run()["weights_sha256"] == whole["weights_sha256"]
    events, _ = read_journal(folder / JOURNAL_NAME)
    (told,) = [e["damaged_checkpoints"] for e in events if e["event"] == "run_started"][1:]
    assert newest.name in told[0]
    for path in folder.glob("checkpoints/step-*"):
        (path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        build_training(config(tmp_path), resume=source.name)


def test_data_that_changed_are_told(whole: dict[str, Any], tmp_path: Path) -> None:
    def told() -> list[str]:
        heard: list[str] = []
        run = build_training(
            config(tmp_path),
            resume=source.name,
            listeners=[lambda event, fields: heard.append(fields["text"]) if event == "message" else None],
        )
        run.trainer.recorder.journal.close()
        return heard

    source = Path(whole["folder"])
    folder = tmp_path / source.name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("summary.json"))
    assert told() == []
    (folder / "data.sha256").write_text("0" * 64)
    assert "the data are not those" in told()[0]
    (folder / "data.sha256").unlink()  # a run of an older Esper
    assert told() == []
