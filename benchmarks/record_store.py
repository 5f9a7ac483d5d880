"""Get and put 20 KB in the library's record, beside the bare driver doing the same durable work.

A get is one blob by its digest; a put one blob in a transaction of its own, on the disk when it returns, with
the lock that a writer takes. Goal: at most 1.3 times the driver. The rows with seals have no goal: the driver
does not encrypt. Exits 1 beyond the goal.

    python benchmarks/record_store.py [--rounds 60]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from paired import paired

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers.postgres import PostgresServer

from esper.security import Envelope, KeyRing, new_key
from esper.urza.database import Database, open_database
from esper.urza.encrypted import Encrypted
from esper.urza.sql import SqlTier

GOAL = 1.3
SIZE = 20_000
Put = Callable[[str, bytes], object]
Get = Callable[[str], object]


def values() -> Iterator[tuple[str, bytes]]:
    """Blobs that no one has stored, with their digests."""
    while True:
        data = os.urandom(SIZE)
        yield hashlib.sha256(data).hexdigest(), data


def bare(connection: Any, mark: str, begin: str) -> tuple[Get, Put]:
    """What one writes with the driver alone."""

    def get(digest: str) -> object:
        return connection.execute(f"SELECT data FROM blobs WHERE digest = {mark}", (digest,)).fetchone()[0]

    def put(digest: str, data: bytes) -> None:
        connection.execute(begin)
        connection.execute(f"INSERT INTO blobs (digest, data) VALUES ({mark}, {mark})", (digest, data))
        connection.execute("COMMIT")

    return get, put


def compare(name: str, database: Database, peer: tuple[Get, Put], rounds: int) -> bool:
    """Print the times of one database; whether get and put are within the goal."""
    fresh = values()
    plain = SqlTier(database)
    sealed = Encrypted(SqlTier(database), Envelope(KeyRing((new_key(),), "memory")))
    good = True
    print(f"{name}, {SIZE} bytes, median ms")
    for what, tier in (("", plain), (" sealed", sealed)):
        digest, data = next(fresh)
        tier.put(digest, data)
        there, value = next(fresh)
        plain.put(there, value)
        for operation, ours, theirs in (
            ("get", lambda tier=tier, digest=digest: tier.get(digest), lambda there=there: peer[0](there)),
            ("put", lambda tier=tier: tier.put(*next(fresh)), lambda: peer[1](*next(fresh))),
        ):
            timed = paired(theirs, ours, rounds=rounds, steps=10, clock=time.perf_counter)
            print(
                f"  {operation}{what}: driver {timed.peer_ms:.3f}, ours {timed.ours_ms:.3f}, "
                f"ratio {timed.ratio:.2f} ({timed.low:.2f} to {timed.high:.2f})"
            )
            good &= bool(what) or timed.ratio <= GOAL
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    server = PostgresServer(durable=True)
    with TemporaryDirectory() as folder, closing(server):
        path = Path(folder) / "kernels.db"
        with (
            closing(open_database(f"sqlite:///{path}")) as database,
            closing(sqlite3.connect(path, isolation_level=None)) as connection,
        ):
            good = compare("SQLite", database, bare(connection, "?", "BEGIN IMMEDIATE"), rounds)
        server.start()
        url = server.url(server.new_database())
        with closing(open_database(url)) as database, psycopg.connect(url, autocommit=True) as connection:
            good &= compare("PostgreSQL", database, bare(connection, "%s", "BEGIN"), rounds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
