"""Real Redis or Valkey servers on free ports of 127.0.0.1, without persistence; a pytest plugin."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from waiting import LONG

import servers
from esper.urza.breaker import CircuitBroken
from esper.urza.redis import RedisTier
from servers import DYING_WITH_PARENT, CannotStart
from servers.tls import make_certificates

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = iter(random.SystemRandom().sample(range(10_000 + _WORKER % 8, 30_000, 8), 2500))
"""For this process alone, each once, and drawn by chance as other processes may be no workers of tests.

They lie below those that systems give to connections: such a port stays free while its server is away.
"""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise CannotStart("no port is free")


def be_patient(patch: pytest.MonkeyPatch, seconds: float = LONG) -> None:
    """Have Redis caches that are made from here on be passed over only after ``seconds``."""
    for made, name in ((RedisTier, "seconds"), (CircuitBroken, "slow_seconds")):
        patch.setitem(made.__init__.__kwdefaults__, name, seconds)


class RedisServer:
    """One server process, which a test may kill, stop, let go on and start again on the same port."""

    def __init__(self, *options: str, tls: bool = False, password: str | None = None) -> None:
        """``options`` are further ones of the command line. Starts nothing yet."""
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self.folder = Path(self._folder.name)
        self.port = free_port()
        self.password = password
        self.certificates = make_certificates(self.folder) if tls else None
        self.options = list(options)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """How a client reaches it; over TLS with the authority that it must trust."""
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        if self.certificates is None:
            return f"redis://{user}127.0.0.1:{self.port}/0"
        return f"rediss://{user}127.0.0.1:{self.port}/0?ssl_ca_certs={self.certificates.authority}"

    @property
    def unix_url(self) -> str:
        """The same server through a socket of the file system."""
        return f"unix://{self.folder}/redis.sock"

    def start(self, *, wait: bool = True) -> None:
        """Start it and, unless told otherwise, wait until it answers."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise CannotStart("neither redis-server nor valkey-server is installed")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*DYING_WITH_PARENT, program, *self._arguments()], stdout=log, stderr=subprocess.STDOUT
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Return once it answers a PING, as after a start; ``CannotStart`` if it does not."""
        deadline = time.monotonic() + LONG
        while time.monotonic() < deadline and self._running().poll() is None:
            try:
                with self.client() as client:
                    client.ping()
                    return
            except redis.RedisError:
                time.sleep(0.02)
        log = (self.folder / "log").read_text(errors="replace")[-500:]
        raise CannotStart(f"the Redis server did not answer: {log}")

    def client(self) -> redis.Redis:
        """A plain client of it, to look behind the back of what is tested."""
        return redis.Redis.from_url(self.url, socket_timeout=LONG, protocol=2)

    def kill(self) -> None:
        """SIGKILL, as by the machine when it is out of memory."""
        self._running().kill()
        self._running().wait()

    def pause(self) -> None:
        """SIGSTOP: its sockets accept and swallow what is sent, and nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it for sure and remove its folder."""
        if self.process is not None:
            self.kill()
        self._folder.cleanup()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "the server was never started"
        return self.process

    def _arguments(self) -> list[str]:
        given = {
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            "unixsocket": str(self.folder / "redis.sock"),
            "enable-debug-command": "yes",
        }
        if self.certificates is None:
            given["port"] = str(self.port)
        else:
            given |= {
                "port": "0",
                "tls-port": str(self.port),
                "tls-cert-file": str(self.certificates.certificate),
                "tls-key-file": str(self.certificates.key),
                "tls-ca-cert-file": str(self.certificates.authority),
                "tls-auth-clients": "no",
            }
        if self.password:
            given["requirepass"] = self.password
        return [part for name, value in given.items() for part in (f"--{name}", value)] + self.options


def started(server: RedisServer, *, wait: bool = True) -> Iterator[RedisServer]:
    """See ``servers.started``."""
    yield from servers.started(server, lambda: server.start(wait=wait))


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One server for all tests that leave it running."""
    yield from started(RedisServer())


@pytest.fixture(scope="session")
def shared_redis_tls() -> Iterator[RedisServer]:
    """The same over TLS only."""
    yield from started(RedisServer(tls=True))


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """The shared server, emptied."""
    return _emptied(shared_redis)


@pytest.fixture
def redis_tls_server(shared_redis_tls: RedisServer) -> RedisServer:
    """The shared server over TLS, emptied."""
    return _emptied(shared_redis_tls)


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server of the test's own, to kill or stop."""
    yield from started(RedisServer())


def _emptied(server: RedisServer) -> RedisServer:
    with server.client() as client:
        client.flushall()
    return server
