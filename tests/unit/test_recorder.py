"""What a recorder leaves in the journal of what sinks did not take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from telemetry_support import everything
from torch import nn, ones

from esper.errors import SinkUnavailable
from esper.kasmina import observe, wrap
from esper.nissa.journal import Journal
from esper.nissa.journal_reader import read_journal
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.telemetry import Telemetry
from esper.tolaria.events import Recorder


class Deaf:
    """A sink that takes nothing, or everything."""

    name = "deaf"

    def __init__(self, deaf: bool) -> None:
        self._deaf = deaf
        self.got: list[Message] = []

    def position(self) -> None:
        pass

    def write(self, batch: Sequence[Message]) -> None:
        if self._deaf:
            raise SinkUnavailable("deaf")
        self.got += batch

    def idle(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("deaf", [True, False])
def test_the_end_of_a_run_tells_what_a_sink_did_not_take(tmp_path: Path, deaf: bool) -> None:
    journal = Journal(tmp_path / "journal.jsonl", fsync=False)
    telemetry = Telemetry([Deaf(deaf)], journal.path, lambda: journal.end, allow=everything)
    recorder = Recorder(journal, (), telemetry)
    recorder.emit("step", epoch=0, step=0, steps=1, loss=1.0)
    recorder.emit("run_finished", summary={})
    end = journal.end
    recorder.close()
    recorder.close()
    names = [event["event"] for event in read_journal(journal.path)[0]]
    if not deaf:
        assert names == ["run_finished"]
        return
    assert names == ["run_finished", "telemetry"]
    sink = read_journal(journal.path)[0][-1]["sinks"]["deaf"]
    assert (sink["state"], sink["behind"], sink["written"]) == ("down", end, 0)


@pytest.mark.parametrize("ending", ["run_finished", "run_interrupted", "run_failed"])
def test_how_sinks_fare_is_told_once_for_many_short_epochs_and_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    now = [0.0]
    monkeypatch.setattr("esper.tolaria.events.time.monotonic", lambda: now[0])
    with Journal(tmp_path / "journal.jsonl", fsync=False) as journal:
        telemetry = Telemetry([Deaf(False)], journal.path, lambda: journal.end, allow=everything)
        recorder = Recorder(journal, (), telemetry)
        for now[0] in (10.0, 10.5, 11.0, 11.5):
            recorder.emit("epoch", packet={})
        recorder.emit(ending)
        recorder.close()
    names = [event["event"] for event in read_journal(journal.path)[0]]
    assert names == ["epoch", "telemetry", "epoch", "epoch", "telemetry", "epoch", "telemetry", ending]


@pytest.mark.parametrize(("every", "told"), [(0.0, [0, 1, 2]), (3600.0, [0])])
def test_sinks_are_told_of_a_step_and_its_health_now_and_then_and_listeners_of_each_step(
    tmp_path: Path, every: float, told: list[int]
) -> None:
    model, sink, heard = nn.Sequential(nn.Linear(4, 4)), Deaf(False), []
    wrap(model, ones(2, 4), seeds=2)
    observe(model, True)
    model(ones(2, 4))
    with Journal(tmp_path / "journal.jsonl", fsync=False) as journal:
        telemetry = Telemetry(
            [sink], journal.path, lambda: journal.end, allow=everything, signals_every=every
        )
        recorder = Recorder(journal, [lambda _, fields: heard.append(fields["step"])], telemetry)
        for step in range(3):
            recorder.emit("step", epoch=0, step=step, steps=3, loss=1.0)
            recorder.health(0, step, model)
        recorder.close()
    assert heard == [0, 1, 2]
    assert [message.kind for message in sink.got] == ["step", "health"] * len(told)
    assert [message.fields["step"] for message in sink.got if message.kind == "step"] == told
