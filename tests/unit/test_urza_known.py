"""What was read of a kernel is current until somebody may have changed it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from esper.urza import known
from esper.urza.database import open_database
from esper.urza.known import Known


def test_a_value_is_current_while_the_version_stays() -> None:
    version = [7]
    values: Known[str] = Known(lambda: version[0])
    values.put("a", "one", values.ticket())
    assert values.get("a") == "one"
    assert values.get("b") is None
    version[0] = 8
    assert values.get("a") is None


def test_without_a_version_it_is_current_for_a_second_or_while_changes_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told = [100.0], [False]
    monkeypatch.setattr(known.time, "monotonic", lambda: now[0])
    values: Known[str] = Known(lambda: None, lambda: told[0])
    values.put("a", "one", values.ticket())
    now[0] += 0.9
    assert values.get("a") == "one"
    now[0] += 0.2
    assert values.get("a") is None
    told[0] = True
    assert values.get("a") == "one"


def test_what_is_forgotten_while_it_is_read_is_not_remembered() -> None:
    values: Known[str] = Known(lambda: 1)
    values.put("b", "kept", values.ticket())
    ticket = values.ticket()
    values.forget("a")
    values.put("a", "stale", ticket)
    assert values.get("a") is None
    assert values.get("b") == "kept"
    values.forget()
    assert values.get("b") is None


def test_the_least_recently_used_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MOST", 2)
    values: Known[int] = Known(lambda: 1)
    for number in range(3):
        values.put(str(number), number, values.ticket())
    assert [values.get(str(number)) for number in range(3)] == [None, 1, 2]


def test_sqlite_tells_of_the_commits_of_others(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kernels of 100%?.db"
    with closing(open_database(url)) as ours, closing(open_database(url)) as theirs:
        before = ours.version()
        assert ours.version() == before
        with theirs.reading() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM blobs").all()
        assert ours.version() == before
        with theirs.writing() as connection:
            connection.exec_driver_sql("DELETE FROM blobs")
            connection.exec_driver_sql("INSERT INTO blobs (digest, data, key_id) VALUES ('a', x'00', '')")
            assert ours.version() == before
        assert ours.version() != before


def test_memory_has_no_others() -> None:
    with closing(open_database("sqlite://")) as database:
        assert database.version() == database.version() == 0
