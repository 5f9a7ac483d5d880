"""The file of requests to a run: whole lines in one order, whatever became of who wrote before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from esper.errors import RunError, StorageError
from esper.nissa import control
from esper.nissa.control import CONTROL_NAME, ControlRequests, ask
from esper.nissa.journal import JOURNAL_NAME, Journal


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that goes on."""
    with Journal(tmp_path / JOURNAL_NAME):
        yield tmp_path


def test_requests_are_taken_once_and_in_order(run: Path) -> None:
    requests = ControlRequests(run)
    assert requests.take() == []
    asked = [ask(run, "pause"), ask(run, "rollback", epoch=3), ask(run, "resume")]
    assert requests.take() == asked
    assert requests.take() == []
    assert len({request.request for request in asked}) == 3


def test_what_was_asked_of_an_earlier_process_is_not_asked_of_this_one(run: Path) -> None:
    ask(run, "pause")
    requests = ControlRequests(run)
    asked = ask(run, "resume")
    assert requests.take() == [asked]


def test_a_line_that_somebody_left_unfinished_harms_no_other(run: Path) -> None:
    requests = ControlRequests(run)
    first = ask(run, "pause")
    with (run / CONTROL_NAME).open("ab") as file:
        file.write(b'{"request": "half')
    assert requests.take() == [first]
    second = ask(run, "resume")
    assert requests.take() == [second]


@pytest.mark.parametrize(
    "line",
    [
        b'{"request": "a", "action": "stop", "at": ""}',
        b'{"request": "a", "action": "rollback", "at": "", "epoch": -1}',
        b'{"request": "a", "action": "rollback", "at": "", "step": true}',
        b'{"request": "a", "action": "rollback", "at": "", "step": "1"}',
        b'{"request": ["a"], "action": "pause", "at": ""}',
        b'{"request": "a", "action": ["pause"], "at": ""}',
        b'{"request": "a", "action": "pause", "at": "", "more": 1}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_line_that_is_no_request_is_passed_over(run: Path, line: bytes) -> None:
    requests = ControlRequests(run)
    (run / CONTROL_NAME).write_bytes(line + b"\n")
    asked = ask(run, "pause")
    assert requests.take() == [asked]


def test_the_file_grows_no_further_than_its_bound(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_BYTES", 300)
    ask(run, "pause")
    ask(run, "resume")
    with pytest.raises(StorageError, match="it has its 300 bytes"):
        ask(run, "pause")
    assert (run / CONTROL_NAME).stat().st_size <= 300


def test_a_run_that_does_not_go_on_is_asked_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / JOURNAL_NAME):
        pass
    with pytest.raises(RunError, match="does not go on") as refused:
        ask(tmp_path, "pause")
    assert refused.value.hint == f"to train on: esper train --resume {tmp_path.name}"
    assert not (tmp_path / CONTROL_NAME).exists()


def test_a_link_in_the_place_of_the_file_is_not_followed(run: Path) -> None:
    target = run / "elsewhere"
    target.write_text("")
    (run / CONTROL_NAME).symlink_to(target)
    with pytest.raises(StorageError):
        ask(run, "pause")
    assert target.read_text() == ""
    assert ControlRequests(run).take() == []
