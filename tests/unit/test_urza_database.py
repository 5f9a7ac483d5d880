"""Opening the library: what is made, what is refused, and that what is refused is left as it was."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from urza_support import artefact, never_load, open_sealed
from waiting import LONG

from esper.errors import ConfigError, EsperError, KernelNotFound, LibraryError, StorageError
from esper.urza import KernelLibrary
from esper.urza.database import open_database


def open_at(path: Path | str) -> KernelLibrary:
    return open_sealed(f"sqlite:///{path}", never_load)


def fingerprint(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def refused(path: Path, error: type[EsperError], message: str) -> EsperError:
    """Opening ``path`` raises ``error``, and no byte in its folder changes."""
    before = fingerprint(path.parent)
    with pytest.raises(error, match=message) as caught:
        open_at(path)
    assert fingerprint(path.parent) == before
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def foreign_database(path: Path, journal: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        with connection:
            connection.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT)")
            connection.execute("CREATE TABLE kernels (id INTEGER)")
            connection.execute("INSERT INTO customers VALUES (1, 'Ada')")


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with open_at(tmp_path / "some" / "where" / "kernels.db") as library:
        library.put(artefact("a"))
    assert (tmp_path / "some" / "where" / "kernels.db").is_file()


@pytest.mark.parametrize("name", ["with space.db", "100%.db", "ünïcode.db", "a?b#c.db", "%41.db"])
def test_any_file_name_is_itself(tmp_path: Path, name: str) -> None:
    with open_at(tmp_path / name) as library:
        library.put(artefact("a"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    open_at("~/kernels.db").close()
    assert (tmp_path / "kernels.db").is_file()


def test_an_empty_file_becomes_a_library(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    path.touch()
    with open_at(path) as library:
        library.put(artefact("a"))


def test_a_file_is_in_write_ahead_mode_and_checks_its_references(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kernels.db"
    with closing(open_database(url)) as database, database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_library_in_memory_lives_until_it_is_closed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_sealed(url, never_load) as library, open_sealed(url, never_load) as another:
        library.put(artefact("a"))
        library.verify("kernel_a")
        with pytest.raises(KernelNotFound):
            another.get("kernel_a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["", "kernels.db", "sqlite", "mysql://host/x", "sqlite://host/x"])
def test_a_url_that_is_no_library_is_a_mistake_in_the_configuration(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_sealed(url, never_load)
    assert "sqlite:///" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("mysql://me:secret@host/kernels", ConfigError),
        ("postgresql://me:secret@127.0.0.1:1/kernels", LibraryError),
        ("postgresql://me:secret@127.0.0.1:x/kernels", LibraryError),
        ("postgresql://me:sec@ret@:::/kernels?secret=secret", ConfigError),
        ("postgresql://me:secret@host.invalid/kernels?sslmode=require", ConfigError),
    ],
)
def test_a_password_is_not_repeated_in_the_error(url: str, error: type[EsperError]) -> None:
    with pytest.raises(error) as caught:
        open_sealed(url, never_load)
    assert "secret" not in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_database_of_something_else_is_refused_and_named(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "customers.db"
    foreign_database(path, journal)
    refused(path, LibraryError, r"something else \(it has the tables customers, kernels\)")


def test_a_library_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    with open_at(path) as library:
        library.put(artefact("a"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE esper_library_version SET version_num = '9999'")
    error = refused(path, LibraryError, r"newer version of Esper \(schema 9999\)")
    assert "upgrade Esper" in (error.hint or "")


@pytest.mark.parametrize(
    "content",
    [b"x", b"not a database, whatever its name says\n" * 300, b"\0" * 4096, b"PK\x03\x04" + bytes(9000)],
    ids=["one byte", "text", "zeros", "archive"],
)
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kernels.db"
    path.write_bytes(content)
    refused(path, LibraryError, "not a kernel library: it is no SQLite database")


def test_a_library_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    with open_at(path) as library:
        for number in range(50):
            library.put(artefact(str(number), program=bytes([number]) * 5000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])

    def use() -> None:
        with open_at(path) as library:
            library.verify("kernel_49")

    with pytest.raises(LibraryError, match="damaged"):
        use()


def test_a_folder_is_not_a_library(tmp_path: Path) -> None:
    (tmp_path / "kernels.db").mkdir()
    with pytest.raises(LibraryError, match="is a folder"):
        open_at(tmp_path / "kernels.db")


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kernels.db")
    with pytest.raises(LibraryError, match="not a plain file"):
        open_at(tmp_path / "kernels.db")


def test_a_database_torn_after_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    refused(path, LibraryError, "not a kernel library, or is damaged")


def test_a_file_in_the_way_of_the_folder_is_an_error_of_storage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make the kernel library's folder"):
        open_at(tmp_path / "file" / "deeper" / "kernels.db")


def test_a_folder_that_cannot_be_written_is_an_error_of_storage(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):  # root writes anywhere but here
        folder = Path("/proc/self/task")
    with pytest.raises(StorageError, match="cannot open"):
        open_at(folder / "kernels.db")
    with pytest.raises(StorageError, match="cannot make the kernel library's folder"):
        open_at(folder / "deeper" / "kernels.db")


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root reads files of any mode; nobody does not."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_file_that_cannot_be_read_is_refused() -> None:
    with TemporaryDirectory() as folder:  # tmp_path lies below a folder that only its owner may enter
        Path(folder).chmod(0o755)
        path = Path(folder) / "kernels.db"
        open_at(path).close()
        path.chmod(0)
        with without_privileges(), pytest.raises(LibraryError, match="cannot read the kernel library"):
            open_at(path)


def test_a_table_dropped_by_somebody_else_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "kernels.db"
    with open_at(path) as library:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DROP TABLE kernel_tags")
        with pytest.raises(LibraryError, match="no such table: kernel_tags"):
            library.put(artefact("a"))


@pytest.mark.parametrize("lock", ["DEFERRED", "IMMEDIATE"])
def test_the_switch_to_write_ahead_mode_waits_for_others(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "kernels.db"
    open_at(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other, ThreadPoolExecutor(1) as pool:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute(f"BEGIN {lock}")
        other.execute("SELECT * FROM kernels").fetchall()
        opening = pool.submit(open_at, path)
        time.sleep(0.5)
        assert not opening.done()
        other.execute("COMMIT")
        opening.result(timeout=LONG).close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
