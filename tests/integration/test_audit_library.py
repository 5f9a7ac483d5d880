"""The audit trail of a library, on every database: an entry a change, and whatever is done to it is found."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from audit_support import KERNELS, attacks, audited, auditor, change, changes_in, tamper
from sqlalchemy import text
from urza_support import KEY, artefact, never_load, open_sealed

from esper.errors import KernelNotFound, LibraryError
from esper.security import Envelope, KeyRing, new_key
from esper.security.audit import Action, acting
from esper.urza import migrations, open_library
from esper.urza.database import open_database
from esper.urza.trail import TrailQuery

DATA = Path(__file__).parents[1] / "data"


def test_each_change_has_one_entry_and_the_trail_is_whole(stored_url: str, tmp_path: Path) -> None:
    count = 60 if stored_url.startswith("postgres") else 400
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
    with audited(stored_url, tmp_path) as library:
        change(library, 30)
        last = library.trail.verify().entries
        copies = {name: copied(stored_url, name) for name in ("audit", "audit_head")}
    for name, attack, wanted in attacks(last):
        tamper(stored_url, attack)
        with audited(stored_url, tmp_path) as library:
            findings = library.trail.verify().findings
            assert findings, name
            assert findings[0].sequence == wanted, (name, findings)
            assert str(wanted) in findings[0].text, (name, findings)
        for table, rows in copies.items():
            put_back(stored_url, table, rows)
    with audited(stored_url, tmp_path) as library:
        assert library.trail.verify().findings == ()


def copied(url: str, table: str) -> list[dict[str, object]]:
    with closing(open_database(url)) as database, database.reading() as connection:
        return [dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()]


def put_back(url: str, table: str, rows: list[dict[str, object]]) -> None:
    columns = list(rows[0])
    values = ", ".join(f":{column}" for column in columns)
    with closing(open_database(url)) as database, database.writing() as connection:
        connection.execute(text(f"DELETE FROM {table}"))
        connection.execute(text(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"), rows)


def test_an_entry_that_is_not_stored_means_a_change_that_is_not(stored_url: str, tmp_path: Path) -> None:
    with audited(stored_url, tmp_path) as library:
        library.put(artefact("a"))
        tamper(stored_url, lambda connection: connection.execute(text("DROP TABLE audit")))
        for attempt in (
            lambda: library.put(artefact("b")),
            lambda: library.set_tags("kernel_a", ["new"]),
            lambda: library.remove("kernel_a"),
        ):
            with pytest.raises(LibraryError):
                attempt()
        assert not library.contains("kernel_b")
        assert library.get("kernel_a").tags == ("linear",)


def test_what_changes_nothing_has_no_entry(stored_url: str, tmp_path: Path) -> None:
    with audited(stored_url, tmp_path) as library:
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


WRITER = """
import sys
sys.path[:0] = sys.argv[3:4]
from pathlib import Path
from audit_support import audited, change
with audited(sys.argv[1], Path(sys.argv[2])) as library:
    print("open", flush=True)
    sys.stdin.readline()
    change(library, int(sys.argv[4]), seed=int(sys.argv[5]))
"""


def writer(url: str, folder: Path, count: int, seed: int) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", WRITER, url, str(folder), tests, str(count), str(seed)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_write_at_once_make_one_chain(stored_url: str, tmp_path: Path) -> None:
    count = 20
    with audited(stored_url, tmp_path):
        pass  # its tables are made
    processes = [writer(stored_url, tmp_path, count, seed) for seed in range(3)]
    for process in processes:
        begin(process)
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    with audited(stored_url, tmp_path) as library:
        verdict = library.trail.verify()
    assert verdict.findings == ()
    assert verdict.entries == 1 + sum(changes_in(count, seed) for seed in range(3))


def test_a_killed_writer_leaves_a_change_and_its_entry_or_neither(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kernels.db"
    for attempt in range(6):
        process = writer(url, tmp_path, 10_000, attempt)
        begin(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05 * (attempt + 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with audited(url, tmp_path) as library:
        assert library.trail.verify().findings == ()
        assert_told(library.trail.in_order(), tmp_path / "kernels.db")


def assert_told(entries, path: Path) -> None:
    """What the entries tell is what there is: kernels with their tags and status, and trials."""
    kernels: set[str] = set()
    trials = 0
    for entry in entries:
        if entry.action == "kernel.stored":
            kernels.add(entry.subject)
        elif entry.action == "kernel.removed":
            kernels.remove(entry.subject)
        trials += entry.action == "trial.recorded"
    with closing(sqlite3.connect(path)) as database:
        there = {row[0] for row in database.execute("SELECT kernel_id FROM kernels")}
        assert there == kernels
        assert database.execute("SELECT count(*) FROM trials").fetchone()[0] == trials
    assert len(kernels) >= KERNELS


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


def test_a_library_in_memory_has_none(tmp_path: Path) -> None:
    with audited("sqlite://", tmp_path) as library:
        library.put(artefact("a"))
        assert (library.trail.kept, library.trail.head()) == (False, None)
