"""What reaches a sink: every event whatever the sink does, and the latest signals, those missed counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from telemetry_support import everything
from waiting import LONG, until

from esper.errors import SinkUnavailable
from esper.nissa.journal import Journal
from esper.nissa.telemetry.messages import Message
from esper.nissa.telemetry.telemetry import Telemetry


class Collecting:
    """A sink in memory, which can be held up, be unavailable or be at fault."""

    name = "collecting"

    def __init__(self, position: int | Exception | None = None) -> None:
        self.got: list[Message] = []
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.closed = False
        self._position = position

    def position(self) -> int | None:
        if isinstance(self._position, Exception):
            raise self._position
        return self._position

    def write(self, batch: Sequence[Message]) -> None:
        self.free.wait(LONG)
        if self.error is not None:
            raise self.error
        self.got += batch

    def idle(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def events(self) -> list[Any]:
        return [message.fields["n"] for message in self.got if message.kind == "event"]

    def steps(self) -> list[Any]:
        return [message.fields["n"] for message in self.got if message.kind == "step"]


@contextmanager
def telemetry_of(
    folder: Path, *sinks: Collecting, capacity: int = 100, allow: Any = everything
) -> Iterator[tuple[Journal, Telemetry]]:
    with Journal(folder / "journal.jsonl", fsync=False) as journal:
        telemetry = Telemetry(sinks, journal.path, lambda: journal.end, allow=allow, capacity=capacity)
        try:
            yield journal, telemetry
        finally:
            for sink in sinks:
                sink.free.set()
            telemetry.close()


def test_messages_arrive_in_the_order_in_which_they_were_told(tmp_path: Path) -> None:
    sink = Collecting()
    with telemetry_of(tmp_path, sink) as (journal, telemetry):
        for n in range(0, 90, 3):
            journal.write("seed", n=n)
            telemetry.step({"n": n + 1})
            telemetry.step({"n": n + 2})
    assert [message.fields["n"] for message in sink.got] == list(range(90))
    assert sink.closed


def test_a_full_buffer_lets_the_oldest_signals_go_counts_them_and_keeps_every_event(tmp_path: Path) -> None:
    sink = Collecting()
    sink.free.clear()
    with telemetry_of(tmp_path, sink) as (journal, telemetry):
        for n in range(1000):
            journal.write("seed", n=n)
            telemetry.step({"n": n})
        sink.free.set()
        until(lambda: len(sink.events()) == 1000)
        counts = telemetry.counts()["collecting"]
    assert sink.events() == list(range(1000))
    assert sink.steps()[-100:] == list(range(900, 1000))
    assert counts.dropped == 1000 - len(sink.steps())
    assert counts.dropped >= 800  # a batch was under way
    assert counts.written == len(sink.got)


def test_a_sink_that_is_down_gets_every_event_later_and_holds_up_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    down, well = Collecting(), Collecting()
    down.error = SinkUnavailable("redis://user:secret@host/0 is gone")
    well.name = "well"
    with telemetry_of(tmp_path, down, well) as (journal, telemetry):
        for n in range(5):
            journal.write("seed", n=n)
            telemetry.step({"n": n})
        until(lambda: len(well.got) == 10)
        until(lambda: telemetry.counts()["collecting"].errors > 1)
        counts = telemetry.counts()["collecting"]
        assert (counts.state, counts.behind) == ("down", journal.end)
        assert "gone" in counts.reason
        down.error = None
        until(lambda: len(down.got) == 10)
        assert telemetry.counts()["collecting"].state == "up"
    assert down.events() == well.events() == list(range(5))
    assert [record.getMessage() for record in caplog.records] == [
        "telemetry sink collecting: SinkUnavailable: redis://host/0 is gone",
        "telemetry sink collecting: takes messages again",
    ]


@pytest.mark.parametrize("position", [None, 0])
def test_a_sink_at_fault_loses_those_messages_and_gets_the_next(tmp_path: Path, position: int | None) -> None:
    sink = Collecting(position)
    sink.error = ZeroDivisionError("a bug of a library")
    with telemetry_of(tmp_path, sink) as (journal, telemetry):
        journal.write("seed", n=0)
        until(lambda: telemetry.counts()["collecting"].lost == 1)
        sink.error = None
        journal.write("seed", n=1)
        until(lambda: bool(sink.got))
        assert telemetry.counts()["collecting"].behind == 0
    assert sink.events() == [1]


def test_a_sink_that_keeps_count_gets_what_it_lacks_and_another_what_is_new(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", fsync=False) as journal:
        journal.write("seed", n=0)
        first = journal.end
        journal.write("seed", n=1)
    knows, new = Collecting(first), Collecting()
    new.name = "new"
    with telemetry_of(tmp_path, knows, new) as (journal, _):
        journal.write("seed", n=2)
    assert (knows.events(), new.events()) == ([1, 2], [2])


def test_what_is_not_allowed_to_leave_stays(tmp_path: Path) -> None:
    sink = Collecting()

    def allow(name: str, fields: Mapping[str, Any], text: str | None) -> Mapping[str, Any] | None:
        return None if name == "secret" else {"n": fields["n"]}

    with telemetry_of(tmp_path, sink, allow=allow) as (journal, telemetry):
        journal.write("secret", n=0)
        journal.write("checkpoint", n=1, path="/home/someone")
        journal.write("secret", n=2)
        until(lambda: telemetry.counts()["collecting"].behind == 0)
    assert [dict(message.fields) for message in sink.got] == [{"n": 1}]


def test_a_sink_that_hangs_does_not_hold_up_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = Collecting()
    sink.free.clear()
    with Journal(tmp_path / "journal.jsonl", fsync=False) as journal:
        telemetry = Telemetry([sink], journal.path, lambda: journal.end, allow=everything)
        journal.write("seed", n=0)
        telemetry.close(0.2)
        assert sink.got == []
        assert f"{journal.end} bytes of events are in the journal alone" in caplog.text
    sink.free.set()


def test_each_event_is_cut_to_size_once_for_all_sinks_and_lines_that_are_none_are_passed_over(
    tmp_path: Path,
) -> None:
    cut: list[Any] = []

    def allow(_: str, fields: Mapping[str, Any], text: str | None) -> Mapping[str, Any]:
        cut.append(fields["n"])
        return fields

    first, second = Collecting(), Collecting()
    second.name = "second"
    with telemetry_of(tmp_path, first, second, allow=allow) as (journal, _):
        with (tmp_path / "journal.jsonl").open(
            "ab"
        ) as file:  # as a crash of another version might have left it
            journal.end += file.write(b"no event\n[]\n")
        for n in range(50):
            journal.write("seed", n=n)
        with (tmp_path / "journal.jsonl").open("ab") as file:
            journal.end += file.write(b"no event\n")
        until(lambda: len(first.got) == len(second.got) == 50)
    assert first.events() == second.events() == cut == list(range(50))


@pytest.mark.parametrize("kept", [None, 50])
def test_a_sink_that_comes_later_gets_what_the_first_had_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int | None
) -> None:
    if kept is not None:  # less than is read ahead: nothing is lost by that
        monkeypatch.setattr("esper.nissa.telemetry.events.KEPT_BYTES", kept)
    parsed: list[Any] = []

    def allow(_: str, fields: Mapping[str, Any], text: str | None) -> Mapping[str, Any]:
        parsed.append(fields["n"])
        return fields

    first, later = Collecting(), Collecting(0)
    later.name = "later"
    later.free.clear()
    with telemetry_of(tmp_path, first, later, allow=allow) as (journal, telemetry):
        telemetry.step({"n": -1})
        until(lambda: len(first.got) == 1)  # and the other holds it
        for n in range(200):
            journal.write("seed", n=n)
        until(lambda: len(first.got) == 201)
        later.free.set()
        until(lambda: len(later.got) == 201)
    assert first.events() == later.events() == list(range(200))
    assert set(parsed) == set(range(200))
    assert len(parsed) == 200 or kept


def test_a_sink_that_gives_nonsense_is_down_and_tried_again(tmp_path: Path) -> None:
    sink = Collecting(KeyError("place"))
    with telemetry_of(tmp_path, sink) as (journal, telemetry):
        journal.write("seed", n=0)
        until(lambda: telemetry.counts()["collecting"].errors == 2)
        sink._position = 0
        until(lambda: sink.events() == [0])
        assert telemetry.counts()["collecting"].state == "up"
