"""What a recorder leaves in the journal of what sinks did not take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from telemetry_support import everything

from esper.errors import SinkUnavailable
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

    def position(self) -> None:
        pass

    def write(self, batch: Sequence[Message]) -> None:
        if self._deaf:
            raise SinkUnavailable("deaf")

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
