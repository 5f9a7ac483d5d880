"""Health checks and calls with a time limit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from nissa_support import RunWriter
from waiting import LONG

from esper.errors import LibraryError
from esper.nissa.health import BoundedCall, HealthReport, check_library, check_runs
from esper.nissa.journal import JOURNAL_NAME
from esper.nissa.runs import RunStore


def test_all_is_well(tmp_path: Path) -> None:
    with RunWriter(tmp_path, "20261123-181502-resnet-3f2a") as journal:
        journal.started()
    report = HealthReport((*check_runs(RunStore(tmp_path)), check_library(lambda: [])))
    assert report.to_json()["status"] == "ok"
    assert report.reasons == ()
    assert [check["name"] for check in report.to_json()["checks"]] == [
        "runs folder",
        "journals",
        "kernel library",
    ]


def test_no_folder_yet_is_healthy(tmp_path: Path) -> None:
    checks = check_runs(RunStore(tmp_path / "runs"))
    assert all(check.healthy for check in checks)
    assert "does not exist yet" in checks[0].detail


def test_a_torn_journal_is_healthy(tmp_path: Path) -> None:
    folder = tmp_path / "20261123-181502-resnet-3f2a"
    folder.mkdir()
    (folder / JOURNAL_NAME).write_bytes(b'{"event":"ep')
    assert all(check.healthy for check in check_runs(RunStore(tmp_path)))


def test_an_unreadable_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "20261123-181502-resnet-3f2a" / JOURNAL_NAME).mkdir(parents=True)
    folder, journals = check_runs(RunStore(tmp_path))
    assert folder.healthy
    assert not journals.healthy
    assert "20261123-181502-resnet-3f2a" in journals.detail


def test_a_folder_that_is_none_is_degraded(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    report = HealthReport(check_runs(RunStore(tmp_path / "runs")))
    assert report.to_json()["status"] == "degraded"
    assert "Not a directory" in report.reasons[0]


def test_a_library_that_fails_says_why() -> None:
    def fail() -> list[object]:
        raise LibraryError("the database is from a newer version", hint="update")

    check = check_library(fail)
    assert not check.healthy
    assert check.detail == "the database is from a newer version (update)"


def test_a_call_that_hangs_is_given_up_and_not_made_twice() -> None:
    calls = []
    release = threading.Event()

    def hang() -> str:
        calls.append(1)
        release.wait()
        return "late"

    call = BoundedCall(hang, 0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            call()
    assert len(calls) == 1
    release.set()
    assert BoundedCall(hang, LONG)() == "late"


def test_a_call_returns_and_raises_what_the_function_does() -> None:
    answers: list[object] = [1, ValueError("no")]

    def answer() -> object:
        value = answers.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    call = BoundedCall(answer, 10)
    assert call() == 1
    with pytest.raises(ValueError, match="no"):
        call()
