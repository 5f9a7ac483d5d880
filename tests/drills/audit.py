"""Make 10,000 modifications of a library, tamper with its trail in every way, and kill processes that write.

On SQLite, and on PostgreSQL with a tenth as many. Exits 1 if an entry is missing, if one that is wrong is not
found and named, or if a kill leaves a change without its entry or an entry without its change.

    PYTHONPATH=tests python -m drills.audit [--changes 10000] [--kills 30] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from audit_support import attacks, audited, change, changes_in, copied, put_back, tamper, told, writer
from servers.postgres import PostgresServer

from esper.urza.database import open_database


@contextmanager
def libraries(folder: Path, changes: int) -> Iterator[list[tuple[str, str, int]]]:
    """Name, URL and number of changes of each library."""
    server = PostgresServer()
    try:
        server.start()
        postgres = server.url(server.new_database())
        sqlite = f"sqlite:///{folder}/kernels.db"
        yield [("SQLite", sqlite, changes), ("PostgreSQL", postgres, changes // 10)]
    finally:
        server.close()


def counted(name: str, url: str, folder: Path, changes: int) -> bool:
    """Whether each of so many modifications has an entry, and the trail is whole."""
    began = time.perf_counter()
    with audited(url, folder) as library:
        change(library, changes)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        verdict = library.trail.verify()
    wanted = changes_in(changes) + 1  # and the entry of the key
    print(
        f"{name}: {wanted - 1} changes in {seconds:.1f} s, {verdict.entries - 1} entries besides that of "
        f"the key, {len(verdict.findings)} wrong; verified in {time.perf_counter() - began:.2f} s"
    )
    return verdict.entries == wanted and not verdict.findings


def found(name: str, url: str, folder: Path) -> bool:
    """Whether each attack is found, and the first entry that is wrong named."""
    missed = []
    with audited(url, folder) as library, closing(open_database(url)) as database:
        every = list(attacks(library.trail.verify().entries))
        tables = {table: copied(database, table) for table in ("audit", "audit_head")}
        for attack, do, wanted in every:
            tamper(database, do)
            findings = library.trail.verify().findings
            if not findings or findings[0].sequence != wanted or str(wanted) not in findings[0].text:
                missed.append(attack)
            for table, rows in tables.items():
                put_back(database, table, rows)
    print(
        f"{name}: {len(every)} attacks, {len(every) - len(missed)} found and the entry named {missed or ''}"
    )
    return not missed


def killed(folder: Path, kills: int, chance: random.Random) -> bool:
    """Whether each kill of a process that writes leaves a change and its entry, or neither."""
    url, torn = f"sqlite:///{folder}/killed.db", 0
    for attempt in range(kills):
        process = writer(url, folder, 100_000, attempt)
        try:
            process.wait(0.02 + 0.5 * chance.random())
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        with audited(url, folder) as library, closing(sqlite3.connect(folder / "killed.db")) as database:
            torn += bool(library.trail.verify().findings) or not told(library.trail.in_order(), database)
            entries = library.trail.verify().entries
    print(f"SQLite: {kills} kills of a writing process, {torn} left one without the other, {entries} entries")
    return torn == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with libraries(folder, asked.changes) as there:
            for kind, url, changes in there:
                good &= counted(kind, url, folder, changes)
                good &= found(kind, url, folder)
        good &= killed(folder, asked.kills, random.Random(asked.seed))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
