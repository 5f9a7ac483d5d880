"""Lists read no more of the runs than they show, keep no more than they may, and let others go first."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from nissa_support import RunWriter
from waiting import LONG

from esper.errors import StorageError
from esper.messages import SeedState
from esper.nissa import run_list, runs
from esper.nissa.journal import JOURNAL_NAME, line_head
from esper.nissa.journal_reader import JournalReader, check_journal, parse_line
from esper.nissa.run_list import RunList
from esper.nissa.run_outline import RunOutline
from esper.nissa.run_records import RunStatus
from esper.nissa.run_view import RunView
from esper.nissa.runs import RunStore
from esper.nissa.turns import going_first


def write_run(root: Path, run_id: str, epochs: int = 3) -> Path:
    with RunWriter(root, run_id) as run:
        run.started()
        for epoch in range(epochs):
            run.epoch(epoch)
            run.decision(epoch)
            run.seed(epoch, SeedState.GERMINATED)
            run.trial(epoch)
        run.write("run_finished", summary={})
    return run.path


def test_of_runs_that_are_not_shown_only_the_beginning_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write_run(tmp_path, f"run-{number}", epochs=60)
    listed = RunList(tmp_path)
    begun = listed.begun()
    assert max(run.size for run in begun) < 16_000  # each journal has some 100 kB
    shown = list(islice(listed.measured(begun), 2))
    assert [run.run_id for run in shown] == ["run-4", "run-3"]
    assert [run.was_measured for run in begun] == [True, True, False, False, False]
    assert [run.was_read for run in begun] == [True, True, False, False, False]


def test_which_runs_are_the_latest_is_known_without_reading_those_that_have_ended(tmp_path: Path) -> None:
    with RunWriter(tmp_path, "going") as going:
        going.started()
        for number in range(4):
            write_run(tmp_path, f"run-{number}", epochs=60)
        listed = RunList(tmp_path)
        assert listed.latest(2) == ["going", "run-3", "run-2"]
        assert [run.run_id for run in listed.begun() if run.was_read] == ["going"]
        going.write("run_finished", summary={})
        assert listed.latest(2) == ["run-3", "run-2"]


def test_verdicts_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, "run")
    outline = RunOutline(tmp_path / "run")
    outline.refresh()
    assert [item.trial for item in outline.adaptations][:2] == [None] * 2
    outline.refresh(trials=True)
    view = RunView(tmp_path / "run").refresh()
    assert outline.adaptations == view.adaptations
    outline.refresh()
    assert outline.trials == view.trials


def test_what_is_too_much_is_forgotten_of_the_oldest_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        write_run(tmp_path, f"run-{number}", epochs=20)
    listed = RunList(tmp_path)
    sizes = [run.size for run in listed.refreshed(trials=True)]
    monkeypatch.setattr(run_list, "KEPT_BYTES", 4 * sizes[0])
    for _ in range(2):
        found = {run.run_id: len(run.adaptations) for run in listed.refreshed(trials=True)}
        assert found == {f"run-{number}": 20 for number in range(6)}
        kept = [run for run in listed._outlines.values() if run.adaptations]
        assert sum(run.size for run in listed._outlines.values()) <= 4 * sizes[0]
        assert {"run-5", "run-4", "run-3"} <= {run.run_id for run in kept}


def test_a_run_that_cannot_be_read_any_more_is_a_problem_until_it_can(tmp_path: Path) -> None:
    journal = write_run(tmp_path, "run")
    listed = RunList(tmp_path)
    (run,) = listed.measured()
    journal.rename(tmp_path / "aside")
    journal.mkdir()
    assert list(listed.measured([run])) == []
    assert list(listed.problems) == ["run"]
    assert listed.begun() == []
    journal.rmdir()
    (tmp_path / "aside").rename(journal)
    assert [run.seconds >= 0 for run in listed.measured()] == [True]
    assert listed.problems == {}


def test_a_replaced_journal_is_read_from_its_beginning(tmp_path: Path) -> None:
    journal = write_run(tmp_path, "run", epochs=9)
    listed = RunList(tmp_path)
    (run,) = listed.measured()
    write_run(tmp_path, "other", epochs=2).replace(journal)
    (tmp_path / "other").rmdir()
    (run,) = listed.measured()
    assert run.last is not None
    assert (run.last.epoch, len(run.adaptations)) == (1, 2)
    assert run.started_at == RunView(tmp_path / "run").refresh().started_at


def test_of_runs_that_have_ended_a_follower_of_many_keeps_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, "run")
    store = RunStore(tmp_path, keep_packets=False)
    view = store.view("run")
    assert (len(view.epochs), view.transitions) == (1, [])
    assert store.view("run") is view
    with RunWriter(tmp_path, "run") as run:
        assert store.view("run").status is RunStatus.FINISHED
        run.started(resumed_from_epoch=1)
        view, whole = store.view("run"), RunView(tmp_path / "run").refresh()
        assert [epoch.epoch for epoch in view.epochs] == [0, 1]
        assert (view.transitions, view.seeds, view.worked) == (whole.transitions, whole.seeds, whole.worked)
    with run.path.open("ab") as file:  # written where this host sees no lock
        file.write(b'{"event":"later","at":"2100-01-01T00:00:00Z"}\n')
    assert [len(store.view("run").epochs) for _ in range(2)] == [2, 1]
    monkeypatch.setattr(runs, "KEPT_ENDED", 2)
    for number in range(4):
        write_run(tmp_path, f"run-{number}")
    assert len(store.views()) == 5
    assert len(store._views) == 2


def line(event: str, second: int, more: str = "") -> bytes:
    return f'{{"event":"{event}","at":"2026-11-28T10:00:{second:02}.000+00:00"{more}}}\n'.encode()


TOLD = [line("a", 0), line("b", 1), line("a", 2), line("b", 3), line("b", 4), line("a", 5), line("b", 6)]


def read_of(path: Path, lines: list[bytes]) -> list[int]:
    """The places of those that a reader decodes where ``b`` is replaced."""
    path.write_bytes(b"".join(lines) + b'{"event":"a"')
    reader = JournalReader(path)
    events = list(reader.read((line_head("b"),)))
    assert reader.torn == 12
    assert reader.offset + reader.torn == path.stat().st_size
    return [number for number, each in enumerate(lines) if parse_line(each) in events]


def test_of_events_that_are_replaced_a_reader_decodes_the_last_where_no_time_is_lost(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL_NAME
    assert read_of(path, TOLD) == [0, 2, 5, 6]
    assert read_of(path, TOLD[1:]) == [0, 1, 4, 5]  # the first and the last
    for odd in (line("b", 0), b"\n", b"[]\n", line("b", 3)[:-9] + b"\n", line("run_started", 4)):
        lines = [*TOLD[:4], odd, *TOLD[5:]]
        assert read_of(path, lines) == [number for number, each in enumerate(lines) if parse_line(each)]
    assert read_of(path, [line("run_started", 0), *TOLD[1:]]) == [0, 2, 5, 6]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"event":"e","v":NaN}', "NaN"),
        (b'{"event":"e","v":-Infinity}', "-Infinity"),
        (b'{"event":"e","v":"\\ud800"}', "\ud800"),
        (b'{"event":"e","v":1e400}', float("inf")),
        (b'{"event":"e","v":12345678901234567890123}', 12345678901234567890123),
        (b'{"event":"e","v":' + b"[" * 300 + b"]" * 300 + b"}", None),
    ],
)
def test_what_the_fast_decoder_does_not_take_is_read_all_the_same(line: bytes, value: object) -> None:
    event = parse_line(line)
    assert event is not None
    assert event["v"] == value or value is None


def test_a_journal_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(StorageError, match="cannot read the journal"):
            check_journal(path)
    left = [file for file in Path("/proc/self/fd").iterdir() if file.resolve().is_relative_to(tmp_path)]
    assert left == []


def test_readings_pause_for_who_goes_first(tmp_path: Path) -> None:
    journal = write_run(tmp_path, "run")
    read = threading.Event()

    def reading(then: Callable[[], object]) -> None:
        list(JournalReader(journal).read())
        then()

    with going_first():
        list(JournalReader(journal).read())  # whoever goes first does not wait for itself
        thread = threading.Thread(target=reading, args=[read.set])
        thread.start()
        assert not read.wait(0.2)
    assert read.wait(LONG)
    thread.join()
