"""A run before it starts, as its journal tells it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esper.messages import CompileQueue
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.run_records import RunStatus
from esper.nissa.run_view import RunView
from esper.nissa.runs import RunStore

ABOUT = {"experiment": "smoke", "task": "digits", "seed": 3, "total_epochs": 9}
OLDEST = "2026-11-28T10:00:00+00:00"
EPOCH = {"packet": {"epoch": 0, "loss": 1.0, "accuracy": 0.5, "layer_metrics": {}}}


def queue(waiting: int, at: str) -> tuple[str, str, dict[str, Any]]:
    oldest = OLDEST if waiting else None
    return "compile_queue", at, {"waiting": waiting, "compiling": 1, "workers": 2, "oldest": oldest}


BEGUN = [
    ("preparing", "10:00:00", ABOUT),
    queue(4, "10:00:00"),
    queue(0, "10:00:05"),
    ("run_started", "10:00:06", {"resumed_from_epoch": None, **ABOUT}),
    ("epoch", "10:00:10", EPOCH),
]


def write(path: Path, events: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Append events of that day."""
    with path.open("a") as file:
        for event, time, fields in events:
            file.write(json.dumps({"event": event, "at": f"2026-11-28T{time}+00:00", **fields}) + "\n")


def test_it_is_there_with_what_waits_and_then_a_run_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "20261128-100000-smoke-0000"
    folder.mkdir()
    view = RunView(folder)
    with Journal(folder / JOURNAL_NAME, fsync=False):
        write(folder / JOURNAL_NAME, BEGUN[:2])
        view.refresh()
        assert (view.status, view.preparing, view.experiment) == (RunStatus.RUNNING, True, "smoke")
        assert view.queue == CompileQueue(4, 1, 2, OLDEST)
        write(folder / JOURNAL_NAME, BEGUN[2:])
        view.refresh()
        assert (view.preparing, view.queue, view.resumes, len(view.epochs)) == (False, None, 0, 1)
        assert view.seconds == 9.0
        write(folder / JOURNAL_NAME, [queue(2, "10:00:11")])
        assert view.refresh().queue is not None
    assert view.refresh().queue is None  # its process is gone
    assert view.damaged == 0


def test_a_run_that_is_resumed_goes_on_while_kernels_are_compiled(tmp_path: Path) -> None:
    folder = tmp_path / "20261128-100000-smoke-0000"
    folder.mkdir()
    ended = ("run_interrupted", "10:00:12", {"epoch": 1})
    again = ("preparing", "18:00:00", ABOUT)
    resumed = ("run_started", "18:00:02", {"resumed_from_epoch": 0, **ABOUT})
    with Journal(folder / JOURNAL_NAME, fsync=False):
        write(folder / JOURNAL_NAME, [*BEGUN, ended, again, queue(3, "18:00:00")])
        view = RunView(folder).refresh()
        assert (view.status, view.preparing, view.resumes) == (RunStatus.RUNNING, True, 0)
        write(folder / JOURNAL_NAME, [queue(0, "18:00:01"), resumed])
        view.refresh()
    assert (view.preparing, view.resumes, len(view.epochs)) == (False, 1, 1)
    assert view.seconds == 12.0  # of which compiling is a part, and the night is none


def test_what_is_no_queue_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "20261128-100000-smoke-0000"
    folder.mkdir()
    with Journal(folder / JOURNAL_NAME, fsync=False) as journal:
        write(folder / JOURNAL_NAME, BEGUN)
        journal.write("compile_queue", waiting="many", compiling=0, workers=0)
        journal.write("compile_queue", waiting=1, compiling=0, workers=0, oldest="yesterday")
        view = RunStore(tmp_path).open("latest")
        assert view.queue is None
    assert view.damaged == 2
