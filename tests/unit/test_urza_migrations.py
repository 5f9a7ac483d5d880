"""The migrations: up, down, from anywhere, in silence, and to the very tables of the models."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import migrating
import pytest
from sqlalchemy import Connection, text
from urza_support import KEY, artefact, never_load, open_sealed

import esper
from esper.errors import CorruptKernel, LibraryError
from esper.messages import KernelArtefact
from esper.urza import KernelQuery, migrations
from esper.urza.database import REVISION, VERSION_TABLE, _backend, open_database
from esper.urza.rows import kernel_values
from esper.urza.schema import Base
from esper.urza.tiers import digest_of

LATER = ("author", "parent_blueprint", "parent_kernel", "run_id", "decision")
"""Columns that the first version had not."""


@pytest.fixture(autouse=True)
def by_alembic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "upgrade", migrating.alembic)


@pytest.fixture
def url(stored_url: str) -> str:
    return stored_url


def schema(connection: Connection) -> set[tuple[object, ...]]:
    """Every column, constraint and index but those of the version, in no order: a later column is last."""
    if connection.dialect.name == "sqlite":
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
        rows = [
            (table, *row[1:])
            for table in tables
            for pragma in ("table_xinfo", "foreign_key_list")
            for row in connection.exec_driver_sql(f"PRAGMA {pragma}({table})")
        ]
        rows += connection.exec_driver_sql(
            "SELECT tbl_name, name, sql FROM sqlite_master WHERE type = 'index'"
        )
    else:
        rows = [
            *connection.exec_driver_sql(
                "SELECT table_name, column_name, data_type, character_maximum_length, collation_name, "
                "is_nullable, column_default, is_generated, generation_expression "
                "FROM information_schema.columns WHERE table_schema = 'public'"
            ),
            *connection.exec_driver_sql(
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE conrelid <> 0 AND connamespace = 'public'::regnamespace"
            ),
            *connection.exec_driver_sql(
                "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
            ),
        ]
    return {tuple(row) for row in rows if row[0] != VERSION_TABLE}


def version(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()


def test_the_migrations_make_the_tables_of_the_models(url: str) -> None:
    with closing(open_database(url)) as database:
        with database.reading() as connection:
            migrated = schema(connection)
        with database.writing() as connection:
            migrations.downgrade(connection, "base")
            Base.metadata.create_all(connection)
            modelled = schema(connection)
    assert migrated == modelled
    assert len(migrated) > 80


def test_the_newest_revision_is_the_one_that_opening_checks_for() -> None:
    assert migrations.known_revisions()[0] == REVISION


def test_every_revision_goes_down_and_up_again(url: str) -> None:
    with closing(open_database(url)) as database:
        with database.reading() as connection:
            newest = schema(connection)
        for older in [*migrations.known_revisions()[1:], "base"]:
            with database.writing() as connection:
                migrations.downgrade(connection, older)
        with database.reading() as connection:
            assert schema(connection) == set()
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {VERSION_TABLE}").scalar() == 0
    with closing(open_database(url)) as database, database.reading() as connection:
        assert schema(connection) == newest
    with open_sealed(url, never_load) as library:
        library.put(artefact("a"))
        library.verify("kernel_a")


def first_light(url: str, kernels: list[KernelArtefact]) -> None:
    """A library as the first version of Esper left it: its tables, by its migration, and its rows."""
    with closing(open_database(url)) as database, database.writing() as connection:
        migrations.downgrade(connection, "0001")
    # Not through open_database, which would bring it up to date.
    backend = _backend(url, None)
    with backend.connect("write") as connection, connection.begin():
        for kernel in kernels:
            insert_as_before(connection, kernel)
    backend.close()


def insert_as_before(connection: Connection, kernel: KernelArtefact) -> None:
    parts = {"program": kernel.program, "weights": kernel.weights, "blueprint": kernel.blueprint.encode()}
    digests = {f"{part}_digest": digest_of(data) for part, data in parts.items()}
    for part, data in parts.items():
        connection.execute(
            text("INSERT INTO blobs (digest, data) VALUES (:digest, :data) ON CONFLICT DO NOTHING"),
            {"digest": digests[f"{part}_digest"], "data": data},
        )
    values = kernel_values(kernel.metadata) | digests | {"trial_count": 0, "kept_count": 0}
    values = {name: value for name, value in values.items() if name not in LATER}
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    connection.execute(text(f"INSERT INTO kernels ({names}) VALUES ({marks})"), values)
    for position, tag in enumerate(kernel.metadata.tags):
        connection.execute(
            text("INSERT INTO kernel_tags VALUES (:kernel_id, :tag, :position)"),
            {"kernel_id": kernel.metadata.kernel_id, "tag": tag, "position": position},
        )


def stored(kernel: KernelArtefact) -> KernelArtefact:
    """As the library returns it, with its sizes."""
    sizes = {"program_bytes": len(kernel.program), "weights_bytes": len(kernel.weights)}
    return replace(kernel, metadata=replace(kernel.metadata, **sizes))


FIRST = [
    stored(artefact(name, program=name.encode() * 999, created_at="2026-11-23T12:00:00+00:00"))
    for name in ("a", "b", "c")
]


def test_an_upgrade_from_first_light_keeps_and_seals_every_kernel(url: str) -> None:
    first_light(url, FIRST)
    with open_sealed(url, never_load, adopting=lambda: True) as library:
        assert [library.artefact(kernel.metadata.kernel_id) for kernel in FIRST] == FIRST
        assert library.sealed_by() == {KEY.id: 8}  # three records, three programs, weights, a blueprint
        library.put(artefact("d"))
    with open_sealed(url, never_load) as library:
        assert library.artefact("kernel_b") == FIRST[1]
        assert library.query(KernelQuery(author="somebody")) == []


def test_a_first_light_library_is_refused_where_there_were_keys_until_it_is_adopted(url: str) -> None:
    first_light(url, FIRST)
    with pytest.raises(LibraryError, match="not sealed") as caught:
        open_sealed(url, never_load)
    assert "esper keys adopt" in (caught.value.hint or "")
    with open_sealed(url, never_load, adopt_later=True) as library:
        with pytest.raises(CorruptKernel, match="its record was never sealed"):
            library.fetch("kernel_a")
        assert library.adopt() == 3
    with open_sealed(url, never_load) as library:
        assert [library.artefact(kernel.metadata.kernel_id) for kernel in FIRST] == FIRST


def test_an_adoption_that_was_stopped_goes_on_at_the_next_opening(url: str) -> None:
    kernels = [stored(artefact(str(n), program=b"%d" % n * 50, created_at="2026-11-23")) for n in range(120)]
    first_light(url, kernels)

    def stop(done: int, total: int) -> None:
        assert (done, total) == (50, 122)
        raise KeyboardInterrupt

    with open_sealed(url, never_load, adopt_later=True) as library:
        with pytest.raises(KeyboardInterrupt):
            library.adopt(stop)
        assert library.sealed_by() == {KEY.id: 170, "": 72}
    with open_sealed(url, never_load) as library:
        assert library.sealed_by() == {KEY.id: 242}
        assert [library.artefact(kernel.metadata.kernel_id) for kernel in kernels] == kernels


def test_a_first_light_kernel_that_was_damaged_is_not_vouched_for(url: str) -> None:
    first_light(url, [replace(FIRST[0], program=b"other bytes"), FIRST[1]])
    with closing(open_database(url)) as database, database.writing() as connection:
        changed = connection.execute(
            text("UPDATE blobs SET data = :data WHERE digest = :digest"),
            {"data": b"damaged", "digest": digest_of(b"other bytes")},
        )
        assert changed.rowcount == 1
    for _ in range(2):
        with open_sealed(url, never_load, adopting=lambda: True) as library:
            with pytest.raises(CorruptKernel, match="its program is not what was sealed"):
                library.verify("kernel_a")
            library.verify("kernel_b")


def test_the_way_down_keeps_kernels_that_are_not_sealed_and_is_refused_for_sealed_ones(url: str) -> None:
    first_light(url, FIRST)
    with closing(open_database(url)) as database, database.writing() as connection:
        migrations.downgrade(connection, "0001")
        assert connection.scalar(text("SELECT count(*) FROM kernels")) == 3
        assert connection.scalar(text("SELECT count(*) FROM kernel_tags")) == 3
        migrations.upgrade(connection)
    with open_sealed(url, never_load, adopting=lambda: True) as library:
        library.verify("kernel_a")
    with (
        closing(open_database(url)) as database,
        pytest.raises(LibraryError, match="older versions cannot read it"),
        database.writing() as connection,
    ):
        migrations.downgrade(connection, "0001")
    with open_sealed(url, never_load) as library:
        library.verify("kernel_a")


def test_a_migration_that_fails_leaves_nothing_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernels.db"
    broken = tmp_path / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, broken)
    revision = broken / "versions" / "r0001_kernel_library.py"
    revision.write_text(
        revision.read_text().replace("    _create_trials()\n", "    raise KeyboardInterrupt\n")
    )
    monkeypatch.setattr(migrations, "__file__", str(broken / "__init__.py"))
    with pytest.raises(KeyboardInterrupt):
        open_database(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    monkeypatch.undo()
    with open_sealed(f"sqlite:///{path}", never_load) as library:
        library.put(artefact("a"))


def test_migrating_prints_nothing_and_leaves_logging_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    mine = logging.getLogger("esper.of_the_caller")
    root = logging.getLogger()
    before = (list(root.handlers), root.level, mine.disabled, logging.getLogger("alembic").level)
    open_database(f"sqlite:///{tmp_path}/kernels.db").close()
    assert (list(root.handlers), root.level, mine.disabled, logging.getLogger("alembic").level) == before
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_installed_package_migrates_from_any_folder(tmp_path: Path) -> None:
    site = tmp_path / "site 100%"
    for package in ("urza", "security", "."):
        source = Path(esper.__file__).parent / package
        target = site / "esper" / package
        target.mkdir(parents=True, exist_ok=True)
        for file in source.glob("*.py"):
            shutil.copy(file, target)
    shutil.copytree(Path(migrations.__file__).parent, site / "esper" / "urza" / "migrations")
    code = (
        "import esper.urza; from esper.urza.database import open_database; print(esper.urza.__file__); "
        "open_database('sqlite:///kernels.db').close()"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(site / "esper" / "urza" / "__init__.py")
    assert version(elsewhere / "kernels.db") == [(REVISION,)]
