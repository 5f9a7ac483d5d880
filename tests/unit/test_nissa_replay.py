"""A run told event by event is the run that its journal says, and an epoch is as it was lived last."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from nissa_support import DORMANT, RunWriter

from esper.messages import SeedState
from esper.nissa.journal import JOURNAL_NAME, Event, dumps
from esper.nissa.journal_reader import read_journal
from esper.nissa.replay import EventLog, ToldRun, until_epoch, with_numbers
from esper.nissa.run_records import RunHistory, RunStatus
from esper.nissa.run_view import RunView

RUN = "20261123-181502-resnet-3f2a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that went back from epoch 3 to epoch 2, and had a graft in epoch 1."""
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        journal.epoch(0, 0.9)
        journal.epoch(1, 0.8)
        journal.decision(1)
        journal.seed(1, SeedState.GERMINATED)
        journal.seed(2, SeedState.TRAINING)  # within epoch 2
        journal.epoch(2, 0.7, states=(SeedState.TRAINING, SeedState.DORMANT))
        journal.write("checkpoint", epoch=3, step=30, path="c", seconds=0.1, paused=0.0)
        journal.epoch(3, 0.6, states=(SeedState.TRAINING, SeedState.DORMANT))
        journal.rollback(2)
        journal.epoch(2, 0.75, states=DORMANT)
        journal.fault(3)
        journal.epoch(3, 0.5, states=DORMANT)
        journal.write("run_finished", summary={})
    return tmp_path / RUN


def events_of(folder: Path) -> list[Event]:
    return read_journal(folder / JOURNAL_NAME)[0]


def told(folder: Path, epoch: int) -> ToldRun:
    run = ToldRun(folder)
    run.tell(until_epoch(events_of(folder), epoch), alive=True)
    return run


def test_what_is_told_is_what_the_journal_says(folder: Path) -> None:
    run, read = ToldRun(Path(RUN)), RunView(folder, keep_packets=False).refresh()
    for event in events_of(folder):
        run.tell([event], alive=False)
    for item in fields(RunHistory):
        assert getattr(run, item.name) == getattr(read, item.name), item.name
    assert run.refresh().status is RunStatus.FINISHED
    assert run.run_id == RUN


def test_an_epoch_ends_with_its_decision_and_before_the_next_begins(folder: Path) -> None:
    run = told(folder, 1)
    assert [epoch.loss for epoch in run.epochs] == [0.9, 0.8]
    assert len(run.adaptations) == 1
    assert run.seeds["stage1"][0].state == SeedState.GERMINATED  # it trained in the next one
    assert run.status is RunStatus.RUNNING


def test_an_epoch_that_was_lived_again_is_as_it_was_then(folder: Path) -> None:
    run = told(folder, 2)
    assert [epoch.loss for epoch in run.epochs] == [0.9, 0.8, 0.75]
    assert len(run.rollbacks) == 1
    assert not run.faults  # of the epoch after
    assert run.seeds["stage1"][0].state == SeedState.DORMANT


def test_the_last_epoch_has_the_end_of_the_run(folder: Path) -> None:
    assert told(folder, 3).status is RunStatus.FINISHED


@pytest.mark.parametrize("epoch", range(4))
def test_a_log_tells_each_epoch_as_the_journal_does(folder: Path, epoch: int) -> None:
    log, kept = EventLog(), ToldRun(folder)
    log.add(events_of(folder))
    kept.tell(until_epoch(log.events, epoch), alive=True)
    whole = told(folder, epoch)
    for item in fields(RunHistory):
        if item.name != "epochs":
            assert getattr(kept, item.name) == getattr(whole, item.name), item.name
    without = [replace(one, packet={}) for one in whole.epochs]
    assert [replace(one, packet={}) for one in kept.epochs] == without


def test_a_log_of_many_layers_is_small(tmp_path: Path) -> None:
    still = {"seed_states": ["DORMANT"] * 4, "signals": [0.5] * 200}
    packet = {"loss": 1.0, "accuracy": 0.5, "history": [1] * 100}
    metrics = {f"layer{number}": still for number in range(500)}
    log = EventLog()
    for epoch in range(20):
        whole = {**packet, "epoch": epoch, "layer_metrics": metrics}
        log.add([{"event": "epoch", "at": "now", "packet": whole}])
    assert len(dumps(log.events[1:])) < 20 * 200
    log.add([{"event": "epoch", "packet": "?"}])
    assert log.events[-1] == {"event": "epoch", "packet": "?"}


def test_a_log_keeps_what_takes_a_change_back(tmp_path: Path) -> None:
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        journal.epoch(0)
        journal.seed(1, SeedState.TRAINING)
        journal.epoch(1)  # which says that it is dormant, as the one before did
    log, kept = EventLog(), ToldRun(tmp_path / RUN)
    log.add(events_of(tmp_path / RUN))
    kept.tell(log.events, alive=True)
    assert kept.seeds["stage1"][0].state == SeedState.DORMANT


def test_a_log_keeps_what_a_rollback_makes_news_again(tmp_path: Path) -> None:
    trains = (SeedState.TRAINING, SeedState.DORMANT)
    with RunWriter(tmp_path, RUN) as journal:
        journal.started()
        journal.epoch(0)
        journal.epoch(1, states=trains)
        journal.rollback(1)
        journal.epoch(1, states=trains)
    log, kept = EventLog(), ToldRun(tmp_path / RUN)
    log.add(events_of(tmp_path / RUN))
    kept.tell(log.events, alive=True)
    assert kept.seeds["stage1"][0].state == SeedState.TRAINING


def test_an_epoch_that_is_not_there_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="epoch 4"):
        until_epoch(events_of(folder), 4)


def test_a_run_whose_process_is_gone_has_stopped(tmp_path: Path) -> None:
    run = ToldRun(tmp_path)
    run.tell([], alive=True)
    assert run.status is RunStatus.RUNNING
    run.tell([], alive=False)
    assert run.status is RunStatus.STOPPED


def test_words_for_numbers_become_numbers_wherever_they_are() -> None:
    made = with_numbers({"a": ["NaN", {"b": "-Infinity"}], "c": "Infinity", "d": "nan", "e": None})
    assert math.isnan(made["a"][0])
    assert (made["a"][1]["b"], made["c"], made["d"], made["e"]) == (-math.inf, math.inf, "nan", None)
