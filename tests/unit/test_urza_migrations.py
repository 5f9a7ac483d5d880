"""The migrations: up, down, from anywhere, in silence, and to the very tables of the models."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from urza_support import artefact, never_load

import esper
from esper.urza import migrations, open_library
from esper.urza.database import REVISION, VERSION_TABLE, open_database
from esper.urza.schema import Base


def schema(path: Path) -> dict[str, str]:
    """Every table and index of the library and the statement that makes it."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: sql for name, sql in rows if name != VERSION_TABLE}


def version(path: Path) -> list[tuple[str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()


def test_the_migrations_make_the_tables_of_the_models(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path}/migrated.db").close()
    engine = create_engine(f"sqlite:///{tmp_path}/modelled.db")
    Base.metadata.create_all(engine)
    engine.dispose()
    assert schema(tmp_path / "migrated.db") == schema(tmp_path / "modelled.db") != {}


def test_the_newest_revision_is_the_one_that_opening_checks_for() -> None:
    assert migrations.known_revisions()[0] == REVISION


def test_every_revision_goes_down_and_up_again(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    url = f"sqlite:///{path}"
    with closing(open_database(url)) as database:
        newest = schema(path)
        assert version(path) == [(REVISION,)]
        for older in [*migrations.known_revisions()[1:], "base"]:
            with database.writing() as connection:
                migrations.downgrade(connection, older)
    assert schema(path) == {}
    assert version(path) == []
    with open_library(url, never_load) as library:
        assert schema(path) == newest
        library.put(artefact("a"))
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
    with open_library(f"sqlite:///{path}", never_load) as library:
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
    for package in ("urza", "."):
        source = Path(esper.__file__).parent / package
        target = site / "esper" / package
        target.mkdir(parents=True, exist_ok=True)
        for file in source.glob("*.py"):
            shutil.copy(file, target)
    shutil.copytree(Path(migrations.__file__).parent, site / "esper" / "urza" / "migrations")
    code = (
        "import esper.urza; print(esper.urza.__file__); "
        "esper.urza.open_library('sqlite:///kernels.db', None).close()"
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
