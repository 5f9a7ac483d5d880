"""A real PostgreSQL on a free port of 127.0.0.1 and a socket of the file system; a pytest plugin."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from waiting import LONG

import servers
from servers import DYING_WITH_PARENT, CannotStart
from servers.redis import free_port
from servers.tls import make_certificates

PASSWORD = "pass word/of the tests"
_CHEAP = ("fsync=off", "full_page_writes=off", "autovacuum=off", "wal_level=minimal", "max_wal_senders=0")


class PostgresServer:
    """One server, which a test may kill, stop, let go on and start again on the same port."""

    def __init__(self, *options: str, tls: bool = False, durable: bool = False) -> None:
        """``options`` are settings as NAME=VALUE. Not ``durable`` bears SIGKILL alone. Starts nothing yet."""
        self._folder = tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.port = free_port()
        self.certificates = make_certificates(self.folder) if tls else None
        self.options = [*options, *(() if durable else _CHEAP)]
        self.process: subprocess.Popen[bytes] | None = None
        self._user = _user_to_be() if os.geteuid() == 0 else None

    def url(self, database: str = "postgres", *, password: str = PASSWORD) -> str:
        """How a client reaches one of its databases."""
        tls = ""
        if self.certificates is not None:
            tls = f"?sslmode=verify-full&sslrootcert={self.certificates.authority}"
        return f"postgresql://esper:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}{tls}"

    def unix_url(self, database: str = "postgres") -> str:
        """The same through the socket of the file system."""
        return (
            f"postgresql://esper:{quote(PASSWORD, safe='')}@/{database}?host={self.folder}&port={self.port}"
        )

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A plain client of it, to look behind the back of what is tested."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=round(LONG))

    def new_database(self) -> str:
        """The name of a database that is empty and nobody else's."""
        name = f"kernels_{uuid.uuid4().hex[:12]}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    def drop_database(self, name: str) -> None:
        """Remove it, whoever is still connected."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def start(self) -> None:
        """Make its folder if there is none, start it, and wait until it answers."""
        data = self.folder / "data"
        if not data.exists():
            self._make(data)
        arguments = [f"port={self.port}", f"unix_socket_directories={self.folder}", *self.options]
        if self.certificates is not None:
            arguments += [
                "ssl=on",
                f"ssl_cert_file={self.certificates.certificate}",
                f"ssl_key_file={self.certificates.key}",
            ]
        command = [*DYING_WITH_PARENT, _program("postgres"), "-D", str(data), "-h", "127.0.0.1"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *[part for argument in arguments for part in ("-c", argument)]],
                stdout=log,
                stderr=subprocess.STDOUT,
                **self._as_user(),
            )
        deadline = time.monotonic() + LONG
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                time.sleep(0.02)
        raise CannotStart(f"PostgreSQL did not answer: {self.log()[-500:]}")

    def log(self) -> str:
        """All that it has written to its log."""
        return (self.folder / "log").read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to all of its processes, as when the machine loses power (but for the disk's cache)."""
        for pid in reversed(self._pids()):
            with suppress(ProcessLookupError):  # one that ended on its own meanwhile
                os.kill(pid, signal.SIGKILL)
        self._running().wait()

    def pause(self) -> None:
        """SIGSTOP to all of its processes: connections stand, and nothing answers."""
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        for pid in self._pids():
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it for sure and remove its folder."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._folder.cleanup()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "the server was never started"
        return self.process

    def _pids(self) -> list[int]:
        """The postmaster and its children, of which each leads a process group of its own."""
        parent = self._running().pid
        stats = [(int(path.name), _stat(path)) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [parent, *[pid for pid, ppid in stats if ppid == parent]]

    def _make(self, data: Path) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        done = subprocess.run(
            [
                *(_program("initdb"), "-D", data, "-U", "esper", "-A", "scram-sha-256", "--pwfile", secret),
                *("-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            check=False,
            **self._as_user(),
        )
        if done.returncode:
            raise CannotStart(f"initdb failed: {done.stderr.strip()[-500:]}")

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        return {
            "user": self._user.pw_uid,
            "group": self._user.pw_gid,
            "extra_groups": [],
            "cwd": self.folder,
            "env": environment,
        }


def _user_to_be() -> pwd.struct_passwd:
    """PostgreSQL refuses to run as root."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise CannotStart("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def _program(name: str) -> str:
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: path.parts[-3])
    found = shutil.which(name) or (str(newest[-1]) if newest else None)
    if found is None:
        raise CannotStart(f"PostgreSQL's {name} is not installed")
    return found


def _stat(path: Path) -> int:
    """The parent of a process, or 0 for one that has gone."""
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def started(server: PostgresServer) -> Iterator[PostgresServer]:
    """See ``servers.started``."""
    yield from servers.started(server, server.start)


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """One server for all tests that leave it running."""
    yield from started(PostgresServer())


@pytest.fixture
def postgres_url(shared_postgres: PostgresServer) -> Iterator[str]:
    """An empty database on it."""
    name = shared_postgres.new_database()
    yield shared_postgres.url(name)
    shared_postgres.drop_database(name)


@pytest.fixture(params=["sqlite", "postgres"])
def stored_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a library that outlives a process, of each kind."""
    found: str = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    return found or f"sqlite:///{tmp_path}/kernels.db"


@pytest.fixture(params=["sqlite-file", "sqlite-memory", "postgres"])
def library_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a library, of each kind."""
    if request.param == "postgres":
        found: str = request.getfixturevalue("postgres_url")
        return found
    return f"sqlite:///{tmp_path}/kernels.db" if request.param == "sqlite-file" else "sqlite://"


@pytest.fixture(scope="session")
def shared_postgres_tls() -> Iterator[PostgresServer]:
    """One that speaks TLS, with a certificate that its clients verify."""
    yield from started(PostgresServer(tls=True))


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server of the test's own, to kill or stop."""
    yield from started(PostgresServer())
