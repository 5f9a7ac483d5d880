"""The audit trail of a library, on every database: an entry a change, and whatever is done to it is found."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from audit_support import (
    KERNELS,
    attacks,
    audited,
    auditor,
    change,
    changes_in,
    copied,
    cut_with_head,
    put_back,
    run,
    tamper,
    told,
    writer,
)
from sqlalchemy import text
from urza_support import KEY, artefact, never_load, open_sealed

from esper.assembly.catalogue import LibraryCatalogue
from esper.errors import AuditError, KernelNotFound, LibraryError
from esper.nissa.api.catalogue import BoundedLibrary
from esper.nissa.api.queries import TagsBody
from esper.security import Envelope, KeyRing, new_key
from esper.security.audit import Action, acting
from esper.urza import migrations, open_library
from esper.urza.database import open_database
from esper.urza.trail import TrailQuery

DATA = Path(__file__).parents[1] / "data"


def test_each_change_has_one_entry_and_the_trail_is_whole(stored_url: str, tmp_path: Path) -> None:
    count = 40 if stored_url.startswith("postgres") else 250
    with audited(stored_url, tmp_path) as library:
        change(library, count)
        verdict = library.trail.verify()
        entries = list(library.trail.in_order())
    assert verdict.findings == ()
    assert verdict.entries == len(entries) == changes_in(count) + 1  # and that of the key
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    assert {entry.who for entry in entries} == {"user-test"}
    assert all(entry.before or entry.after for entry in entries)


def test_what_is_done_to_the_trail_is_found_and_the_entry_named(stored_url: str, tmp_path: Path) -> None:
    with audited(stored_url, tmp_path) as library, closing(open_database(stored_url)) as database:
        change(library, 30)
        last = library.trail.verify().entries
        copies = {name: copied(database, name) for name in ("audit", "audit_head")}
        for name, attack, wanted in attacks(last):
            tamper(database, attack)
            findings = library.trail.verify().findings
            assert findings, name
            assert findings[0].sequence == wanted, (name, findings)
            assert str(wanted) in findings[0].text, (name, findings)
            for table, rows in copies.items():
                put_back(database, table, rows)
        assert library.trail.verify().findings == ()


def test_an_entry_of_another_history_does_not_pass(tmp_path: Path) -> None:
    """It is signed, and at its number; yet the library went another way."""
    files = {name: tmp_path / f"{name}.db" for name in ("one", "other")}
    with audited(f"sqlite:///{files['one']}", tmp_path) as library:
        change(library, KERNELS)
    shutil.copy(files["one"], files["other"])
    for name, path in files.items():
        with audited(f"sqlite:///{path}", tmp_path) as library:
            for number in range(4):
                library.set_tags("kernel_0_1", [f"{name}{number}"])
    number = KERNELS + 3
    with closing(sqlite3.connect(files["one"])) as database:
        database.execute(f"ATTACH '{files['other']}' AS other")
        database.execute(f"DELETE FROM audit WHERE sequence = {number}")
        database.execute(f"INSERT INTO audit SELECT * FROM other.audit WHERE sequence = {number}")
        database.commit()
    with audited(f"sqlite:///{files['one']}", tmp_path) as library:
        findings = library.trail.verify().findings
    assert [(each.wrong, each.sequence) for each in findings] == [
        ("inserted", number),
        ("inserted", number + 1),
    ]


def test_an_entry_that_is_not_stored_means_a_change_that_is_not(stored_url: str, tmp_path: Path) -> None:
    with audited(stored_url, tmp_path) as library:
        library.put(artefact("a"))
        with closing(open_database(stored_url)) as database:
            tamper(database, lambda connection: connection.execute(text("DROP TABLE audit")))
        for attempt in (
            lambda: library.put(artefact("b")),
            lambda: library.set_tags("kernel_a", ["new"]),
            lambda: library.remove("kernel_a"),
        ):
            with pytest.raises(LibraryError):
                attempt()
        assert not library.contains("kernel_b")
        assert library.get("kernel_a").tags == ("linear",)


def test_behind_a_trail_without_its_head_nothing_is_changed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kernels.db"
    with audited(url, tmp_path) as library, closing(open_database(url)) as database:
        library.put(artefact("a"))
        tamper(database, lambda connection: connection.execute(text("DELETE FROM audit_head")))
        with pytest.raises(AuditError, match="was removed"):
            library.put(artefact("b"))
        assert not library.contains("kernel_b")


def test_going_on_behind_a_cut_does_not_hide_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kernels.db"
    with audited(url, tmp_path) as library, closing(open_database(url)) as database:
        change(library, KERNELS)
        rows = copied(database, "audit_head")
        tamper(database, run("DELETE FROM audit WHERE sequence > 8", "UPDATE audit_head SET sequence = 8"))
        with pytest.raises(AuditError, match="was changed"):
            library.put(artefact("new"))
        put_back(database, "audit_head", rows)
        tamper(database, cut_with_head(8))  # by one who kept a copy of what was true once
        change(library, 30, seed=1)
        findings = library.trail.verify().findings
    assert [(each.wrong, each.sequence) for each in findings] == [("changed", KERNELS + 1)]
    assert "another one than the head kept in" in findings[0].text


def test_what_changes_nothing_has_no_entry(tmp_path: Path) -> None:
    with audited(f"sqlite:///{tmp_path}/kernels.db", tmp_path) as library:
        library.put(artefact("a"))
        before = library.trail.verify().entries
        library.put(artefact("a"))
        library.set_tags("kernel_a", ["linear"])
        library.set_status("kernel_a", "validated")
        library.gc(dry_run=True)
        with pytest.raises(KernelNotFound):
            library.set_status("kernel_b", "retired")
        assert library.trail.verify().entries == before


def test_who_acts_is_who_was_said_to(stored_url: str, tmp_path: Path) -> None:
    with audited(stored_url, tmp_path) as library:
        with acting("token alice"):
            library.put(artefact("a"))
            library.note(Action("run.pause.asked", "run-1"))
        library.set_tags("kernel_a", ["b"])
        found = library.trail.entries(TrailQuery(who="token alice"))
        assert [entry.action for entry in found] == ["run.pause.asked", "kernel.stored", "key.signs"]
        (tagged,) = library.trail.entries(TrailQuery(action="kernel.tagged"))
        assert (tagged.who, tagged.detail) == ("user-test", '{"added":["b"],"removed":["linear"]}')
        assert library.trail.entries(TrailQuery(before=3, limit=1))[0].sequence == 2


def test_who_asks_the_api_is_who_acts(tmp_path: Path) -> None:
    with audited(f"sqlite:///{tmp_path}/kernels.db", tmp_path) as library:
        library.put(artefact("a"))
        bounded = BoundedLibrary(LibraryCatalogue(library))
        with acting("token bob"):
            bounded(lambda each: each.retag("kernel_a", TagsBody(add=("x",), remove=())))
            bounded(lambda each: each.note_request("rollback", "run-1", epoch=3, step=None))
        found = library.trail.entries(TrailQuery(limit=2))
    assert [(entry.who, entry.action, entry.subject, entry.detail) for entry in found] == [
        ("token bob", "run.rollback.asked", "run-1", '{"epoch":3}'),
        ("token bob", "kernel.tagged", "kernel_a", '{"added":["x"],"removed":[]}'),
    ]


def test_processes_that_write_at_once_make_one_chain(stored_url: str, tmp_path: Path) -> None:
    count = 15
    with audited(stored_url, tmp_path):
        pass  # its tables are made
    processes = [writer(stored_url, tmp_path, count, seed) for seed in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    with audited(stored_url, tmp_path) as library:
        verdict = library.trail.verify()
    assert verdict.findings == ()
    assert verdict.entries == 1 + sum(changes_in(count, seed) for seed in range(2))


def test_a_killed_writer_leaves_a_change_and_its_entry_or_neither(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kernels.db"
    for attempt in range(2):
        process = writer(url, tmp_path, 10**9, attempt)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1 + 0.2 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with audited(url, tmp_path) as library:
        assert library.trail.verify().findings == ()
        with closing(sqlite3.connect(tmp_path / "kernels.db")) as database:
            assert told(library.trail.in_order(), database)


def test_another_key_signs_all_and_verification_goes_on(stored_url: str, tmp_path: Path) -> None:
    new = new_key()
    with audited(stored_url, tmp_path) as library:
        change(library, 20)
    both = KeyRing((new, KEY), "the tests")
    writes = auditor(tmp_path, both)
    with open_library(stored_url, never_load, envelope=Envelope(both), auditor=writes) as library:
        library.set_tags("kernel_0_0", ["between"])
        assert library.trail.verify().findings == ()
        assert set(library.trail.signed_by()) == {new.id, KEY.id}
        library.reseal()
        assert set(library.trail.signed_by()) == {new.id}
        entries = library.trail.verify().entries
    alone = KeyRing((new,), "the tests")
    opened = auditor(tmp_path, alone)
    with open_library(stored_url, never_load, envelope=Envelope(alone), auditor=opened) as library:
        assert library.trail.verify().findings == ()
        signs = library.trail.entries(TrailQuery(action="key.signs"))
    assert [entry.subject for entry in signs] == [new.id, KEY.id]
    other = auditor(tmp_path, KeyRing((new_key(),), "the tests"))
    with open_sealed(stored_url, never_load, auditor=other) as library:
        findings = library.trail.verify().findings
    assert [finding.wrong for finding in findings] == ["unknown key"] * (entries + 2)


def test_the_trail_of_an_older_library_begins_with_its_next_change(tmp_path: Path) -> None:
    shutil.copy(DATA / "first_light.db", tmp_path / "kernels.db")
    url = f"sqlite:///{tmp_path}/kernels.db"
    with open_sealed(url, never_load, auditor=auditor(tmp_path), adopt_later=True) as library:
        verdict = library.trail.verify()
        assert (verdict.trail, verdict.began, verdict.entries, verdict.findings) == (None, None, 0, ())
        library.adopt()
        verdict = library.trail.verify()
    assert verdict.began is not None
    assert (verdict.entries, verdict.findings) == (2, ())


def test_a_trail_is_not_migrated_away(stored_url: str, tmp_path: Path) -> None:
    with closing(open_database(stored_url)) as database, database.writing() as connection:
        migrations.downgrade(connection, "0004")
        migrations.upgrade(connection)
    with audited(stored_url, tmp_path) as library:
        library.put(artefact("a"))
    with (
        closing(open_database(stored_url)) as database,
        pytest.raises(LibraryError, match="audit trail"),
        database.writing() as connection,
    ):
        migrations.downgrade(connection, "0004")


def test_libraries_of_the_same_name_in_two_folders_have_a_head_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "a"):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        with audited("sqlite:///kernels.db", tmp_path) as library:
            library.put(artefact(name))
            assert library.trail.verify().findings == ()


def test_a_library_in_memory_has_none(tmp_path: Path) -> None:
    with audited("sqlite://", tmp_path) as library:
        library.put(artefact("a"))
        assert (library.trail.kept, library.trail.head()) == (False, None)
