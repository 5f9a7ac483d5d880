"""A library on a PostgreSQL that is killed, stopped, restarted, full, read-only or not to be trusted."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from servers.postgres import PASSWORD, PostgresServer, started
from urza_support import artefact, never_load, open_sealed
from waiting import LONG, until

from esper.errors import ConfigError, EsperError, LibraryError, StorageError
from esper.messages import Slot
from esper.urza import KernelLibrary, KernelQuery
from esper.urza.database import open_database
from esper.urza.postgres import PostgresBackend

SLOT = Slot("features", 8, 8)


@pytest.fixture
def durable_postgres() -> Iterator[PostgresServer]:
    """One that has on its disk what it has said to have."""
    yield from started(PostgresServer(durable=True))


def put_until_it_fails(library: KernelLibrary, name: str, done: list[str], errors: list[EsperError]) -> None:
    for step in range(10**6):
        kernel = f"{name}-{step}"
        data = f"{kernel} ".encode() * 3000
        try:
            library.put(artefact(kernel, program=data, weights=data + b"w", blueprint=kernel))
        except EsperError as error:
            errors.append(error)
            return
        done.append(f"kernel_{kernel}")


def test_a_server_killed_while_kernels_are_stored_has_each_of_them_whole_or_not_at_all(
    durable_postgres: PostgresServer,
) -> None:
    url = durable_postgres.url(durable_postgres.new_database())
    with open_sealed(url, never_load) as library:
        done: list[str] = []
        errors: list[EsperError] = []
        for attempt in range(3):
            threads = [
                threading.Thread(
                    target=put_until_it_fails, args=(library, f"{attempt}{number}", done, errors)
                )
                for number in range(3)
            ]
            before = len(done)
            for thread in threads:
                thread.start()
            until(lambda enough=before + 6: len(done) >= enough)
            durable_postgres.kill()
            for thread in threads:
                thread.join(LONG)
                assert not thread.is_alive()
            durable_postgres.start()
            # The same library goes on: its connections are found to be gone, and made anew.
            there = {kernel.kernel_id for kernel in library.query(KernelQuery())}
            assert set(done) <= there
            for kernel_id in there:
                library.verify(kernel_id)
            assert library.gc(dry_run=True).blobs == ()
    assert len(errors) == 9
    assert {type(error) for error in errors} == {LibraryError}
    assert all("cannot be reached" in error.message and error.hint for error in errors)


def test_a_stopped_server_is_given_up_in_time_and_found_again(own_postgres: PostgresServer) -> None:
    url = own_postgres.url(own_postgres.new_database())
    with open_sealed(url, never_load, seconds=1) as library:
        library.put(artefact("a"))
        own_postgres.pause()
        try:
            for use in (lambda: library.get("kernel_a"), lambda: library.put(artefact("b"))):
                with pytest.raises(LibraryError, match=r"did not answer in 2 s|cannot be reached") as caught:
                    use()
                assert caught.value.hint
        finally:
            own_postgres.resume()
        library.verify("kernel_a")
        library.put(artefact("b"))
        library.verify("kernel_b")


def test_a_server_that_is_gone_is_an_error_and_nothing_is_stored(own_postgres: PostgresServer) -> None:
    url = own_postgres.url(own_postgres.new_database())
    with open_sealed(url, never_load) as library:
        library.put(artefact("a"))
        own_postgres.kill()
        for use in (
            lambda: library.put(artefact("b")),
            lambda: library.find(SLOT),
            lambda: library.get("kernel_a"),
            lambda: open_sealed(url, never_load),
        ):
            with pytest.raises(LibraryError, match="cannot be reached") as caught:
                use()
            assert PASSWORD not in str(caught.value)
            assert "\n" not in str(caught.value)
        own_postgres.start()
        assert not library.contains("kernel_b")
        library.verify("kernel_a")


def test_a_lock_that_another_holds_is_given_up_in_time(postgres_url: str) -> None:
    with open_sealed(postgres_url, never_load, seconds=1) as library:
        with psycopg.connect(postgres_url) as other:
            other.execute("LOCK TABLE kernels")
            with pytest.raises(LibraryError, match="was locked for 1 s by another process"):
                library.put(artefact("a"))
        library.put(artefact("a"))


def test_a_statement_that_takes_too_long_is_given_up(postgres_url: str) -> None:
    database = open_database(postgres_url, seconds=0.5)
    with (
        pytest.raises(LibraryError, match="did not answer in 1 s"),
        database.reading("statement") as connection,
    ):
        connection.exec_driver_sql("SELECT pg_sleep(30)")
    database.close()


def test_a_process_that_dies_with_the_writers_lock_does_not_keep_it(postgres_url: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from esper.urza.database import open_database\n"
        f"with open_database({postgres_url!r}).writing():\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with open_sealed(postgres_url, never_load) as library:
        holder = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        putting = threading.Thread(target=library.put, args=(artefact("a"),))
        putting.start()
        putting.join(0.3)
        assert putting.is_alive()
        holder.kill()
        holder.communicate()
        putting.join(LONG)
        library.verify("kernel_a")


def test_processes_that_open_a_fresh_database_at_once_make_one_library(postgres_url: str) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from urza_support import artefact, never_load, open_sealed\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"with open_sealed({postgres_url!r}, never_load) as library:\n"
        "    for step in range(10):\n"
        "        library.put(artefact(f'{sys.argv[1]}-{step}'))\n"
        "        library.put(artefact(f'shared-{step}'))\n"
        "        library.put(artefact(f'{sys.argv[1]}-gone')); library.remove(f'kernel_{sys.argv[1]}-gone')\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=LONG) for process in processes]
    assert [(process.returncode, end[1]) for process, end in zip(processes, ends, strict=True)] == [
        (0, "")
    ] * 4
    with open_sealed(postgres_url, never_load) as library:
        kernels = library.query(KernelQuery())
        assert len(kernels) == 50
        for kernel in kernels:
            library.verify(kernel.kernel_id)
        assert library.gc(dry_run=True).blobs == ()


def test_over_tls_with_a_certificate_that_is_verified(shared_postgres_tls: PostgresServer) -> None:
    server = shared_postgres_tls
    assert server.certificates is not None
    url = server.url(server.new_database())
    with open_sealed(url, never_load) as library:
        library.put(artefact("a"))
        library.verify("kernel_a")
    with closing(open_database(url)) as database, database.reading() as connection:
        used = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.exec_driver_sql(used).scalar() is True
    stranger = url.replace(str(server.certificates.authority), str(server.certificates.certificate))
    with pytest.raises(LibraryError, match="certificate") as caught:
        open_sealed(stranger, never_load)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca"])
def test_another_machine_must_show_a_certificate(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"sslmode={mode} trusts anyone"):
        PostgresBackend(f"postgresql://me:secret@kernels.example/db?sslmode={mode}", 1)


def test_another_machine_by_the_environment_must_show_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "kernels.example")
    with pytest.raises(ConfigError, match="trusts anyone"):
        PostgresBackend("postgresql:///db?sslmode=prefer", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda server: server.url(password="wrong"), "password authentication failed"),
        (lambda server: server.url("nowhere"), 'database "nowhere" does not exist'),
    ],
)
def test_what_cannot_be_used_is_one_line_with_a_next_step(
    shared_postgres: PostgresServer, change: object, message: str
) -> None:
    with pytest.raises(LibraryError, match=message) as caught:
        open_sealed(change(shared_postgres), never_load)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_a_password_from_a_file(shared_postgres: PostgresServer, tmp_path: Path, postgres_url: str) -> None:
    name = postgres_url.rpartition("/")[2]
    passfile = tmp_path / "passfile"
    passfile.write_text(f"127.0.0.1:{shared_postgres.port}:*:esper:{PASSWORD}\n")
    passfile.chmod(0o600)
    url = f"postgresql://esper@127.0.0.1:{shared_postgres.port}/{name}?passfile={passfile}"
    with open_sealed(url, never_load) as library:
        library.put(artefact("a"))


def test_the_socket_of_the_file_system(shared_postgres: PostgresServer, postgres_url: str) -> None:
    with open_sealed(shared_postgres.unix_url(postgres_url.rpartition("/")[2]), never_load) as library:
        library.put(artefact("a"))


def test_a_read_only_database_is_an_error_of_storage(
    shared_postgres: PostgresServer, postgres_url: str
) -> None:
    open_sealed(postgres_url, never_load).close()
    with shared_postgres.connect() as connection:
        name = postgres_url.rpartition("/")[2]
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with (
        open_sealed(postgres_url, never_load) as library,
        pytest.raises(StorageError, match="read-only"),
    ):
        library.put(artefact("a"))


def test_a_full_disk_is_an_error_of_storage_and_nothing_is_stored(postgres_url: str) -> None:
    # A trigger raises what the server raises when a file cannot grow; its own disk is not ours to fill.
    with open_sealed(postgres_url, never_load) as library:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
                "$$BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'; END$$"
            )
            connection.execute(
                "CREATE TRIGGER full_disk BEFORE INSERT ON kernel_tags EXECUTE FUNCTION full_disk()"
            )
        with pytest.raises(StorageError, match="no space left to store in"):
            library.put(artefact("a"))
        assert not library.contains("kernel_a")
        assert library.gc(dry_run=True).blobs == ()


def test_a_database_of_something_else_is_refused_and_named(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE customers (id integer)")
    with pytest.raises(LibraryError, match=r"something else \(it has the tables customers\)"):
        open_sealed(postgres_url, never_load)
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("customers",)]


def test_a_library_of_a_newer_version_is_refused(postgres_url: str) -> None:
    open_sealed(postgres_url, never_load).close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("UPDATE esper_library_version SET version_num = '9999'")
    with pytest.raises(LibraryError, match=r"newer version of Esper \(schema 9999\)"):
        open_sealed(postgres_url, never_load)


def test_without_the_driver_the_error_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from esper.errors import ConfigError\n"
        "from esper.urza.database import open_database\n"
        "open_database('sqlite://').close()\n"
        "try: open_database('postgresql://127.0.0.1/x')\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'esper-morph[postgres]'" in done.stdout
