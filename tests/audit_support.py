"""Libraries with an audit trail, changes of them, and what somebody without the key may do to the trail."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text
from urza_support import KEY, artefact, never_load, open_sealed, report

from esper.security import KeyRing, Keys
from esper.security.audit import Entry, Signer, link_of
from esper.security.audit_heads import KeptHeads
from esper.urza.database import Database
from esper.urza.library import KernelLibrary
from esper.urza.trail import Auditor

KERNELS = 10


def auditor(folder: Path, keys: Keys | None = None) -> Auditor:
    """With the key of the tests, and heads in ``folder``."""
    return Auditor(
        Signer(keys or KeyRing((KEY,), "the tests")), lambda: "user-test", KeptHeads(folder / "heads")
    )


def audited(url: str, folder: Path) -> KernelLibrary:
    return open_sealed(url, never_load, auditor=auditor(folder))


def change(library: KernelLibrary, count: int, seed: int = 0) -> None:
    """Make ``count`` changes of every kind, each of them one modification; the first store kernels."""
    chance = random.Random(seed)
    for number in range(min(count, KERNELS)):
        library.put(artefact(f"{seed}_{number}"))
    for number in range(KERNELS, count):
        kernel_id = f"kernel_{seed}_{number % KERNELS}"
        match chance.randrange(4):
            case 0:
                status = library.get(kernel_id).status
                library.set_status(kernel_id, "retired" if status == "validated" else "validated")
            case 1:
                library.remove(kernel_id)
                library.put(artefact(f"{seed}_{number % KERNELS}"))
            case 2:
                library.record_trial(report(kernel_id=kernel_id, started_epoch=number), f"run{seed}")
            case _:
                library.set_tags(kernel_id, [f"tag{number}"])


def changes_in(count: int, seed: int = 0) -> int:
    """How many modifications :func:`change` makes: taking out and putting back are two."""
    chance = random.Random(seed)
    return min(count, KERNELS) + sum(1 + (chance.randrange(4) == 1) for _ in range(KERNELS, count))


def tamper(database: Database, do: Callable[[Connection], Any]) -> None:
    """Do ``do`` behind the library's back."""
    with database.writing() as connection:
        do(connection)


def edit(column: str, number: int) -> Callable[[Connection], Any]:
    statement = f"UPDATE audit SET {column} = 'x' || substr({column}, 2) WHERE sequence = {number}"
    return lambda connection: connection.execute(text(statement))


def run(*statements: str) -> Callable[[Connection], Any]:
    return lambda connection: [connection.execute(text(statement)) for statement in statements]


def move(one: int, other: int) -> Callable[[Connection], Any]:
    """Exchange two entries, with all that they have but their numbers."""
    return run(
        f"UPDATE audit SET sequence = -1 WHERE sequence = {one}",
        f"UPDATE audit SET sequence = {one} WHERE sequence = {other}",
        f"UPDATE audit SET sequence = {other} WHERE sequence = -1",
    )


def insert(number: int) -> Callable[[Connection], Any]:
    """Put a copy of an entry in behind ``number``, and move on those that follow."""
    columns = "at, who, action, subject, before, after, detail, link, key_id, mac"
    return run(
        f"UPDATE audit SET sequence = -sequence WHERE sequence > {number}",
        "UPDATE audit SET sequence = 1 - sequence WHERE sequence < 0",
        f"INSERT INTO audit (sequence, {columns}) "
        f"SELECT {number + 1}, {columns} FROM audit WHERE sequence = {number}",
    )


def attacks(last: int) -> Iterator[tuple[str, Callable[[Connection], Any], int]]:
    """What is done to a trail of ``last`` entries, and the first entry that must be named."""
    middle = last // 2
    for column in ("at", "who", "action", "subject", "before", "after", "detail", "link", "mac", "key_id"):
        yield f"edit of {column}", edit(column, middle), middle
    yield "edit of the first", edit("who", 1), 1
    yield "edit of the last", edit("who", last), last
    yield "deletion", run(f"DELETE FROM audit WHERE sequence = {middle}"), middle
    yield "deletion of the first", run("DELETE FROM audit WHERE sequence = 1"), 1
    yield (
        "deletion of many",
        run(f"DELETE FROM audit WHERE sequence BETWEEN {middle} AND {middle + 5}"),
        middle,
    )
    yield "edit, links made anew", rechained(middle), middle
    yield "reorder", move(middle, middle + 1), middle
    yield "reorder from afar", move(2, last), 2
    yield "insertion", insert(middle), middle + 1
    yield "insertion at the end", insert(last), last + 1
    yield "tail cut", run(f"DELETE FROM audit WHERE sequence > {last - 3}"), last - 2
    yield "tail cut, head put back", cut_with_head(last - 3), last - 2
    yield "all gone", run("DELETE FROM audit", "DELETE FROM audit_head"), 1
    yield "head gone", run("DELETE FROM audit_head"), last
    yield "head edited", run("UPDATE audit_head SET sequence = sequence - 1"), last - 1


def rechained(number: int) -> Callable[[Connection], Any]:
    """Change an entry, and make all links from there on anew, which takes no key."""

    def do(connection: Connection) -> None:
        connection.execute(text(f"UPDATE audit SET who = 'user-else' WHERE sequence = {number}"))
        rows = connection.execute(
            text(f"SELECT * FROM audit WHERE sequence >= {number - 1} ORDER BY sequence")
        )
        link = ""
        for row in rows.mappings().all():
            entry = Entry(**row)
            link = link_of(link, entry.digest) if link else entry.link
            values = {"link": link, "sequence": entry.sequence}
            connection.execute(text("UPDATE audit SET link = :link WHERE sequence = :sequence"), values)
        connection.execute(text("UPDATE audit_head SET link = :link"), {"link": link})

    return do


def cut_with_head(number: int) -> Callable[[Connection], Any]:
    """Cut the trail behind ``number``, and put in the head that the library had then."""
    signer = Signer(KeyRing((KEY,), "the tests"))  # stands for whoever kept a copy of that row

    def do(connection: Connection) -> None:
        trail = connection.execute(text("SELECT trail FROM audit_head")).scalar_one()
        link = connection.execute(text(f"SELECT link FROM audit WHERE sequence = {number}")).scalar_one()
        head = signer.head(trail, number, link)
        connection.execute(text(f"DELETE FROM audit WHERE sequence > {number}"))
        values = {"sequence": number, "link": link, "mac": head.mac}
        connection.execute(
            text("UPDATE audit_head SET sequence = :sequence, link = :link, mac = :mac"), values
        )

    return do


def copied(database: Database, table: str) -> list[dict[str, object]]:
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()]


def put_back(database: Database, table: str, rows: list[dict[str, object]]) -> None:
    columns = list(rows[0])
    values = ", ".join(f":{column}" for column in columns)
    with database.writing() as connection:
        connection.execute(text(f"DELETE FROM {table}"))
        connection.execute(text(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"), rows)


WRITER = """
import sys
sys.path[:0] = sys.argv[3:4]
from pathlib import Path
from audit_support import audited, change
with audited(sys.argv[1], Path(sys.argv[2])) as library:
    print("open", flush=True)
    change(library, int(sys.argv[4]), seed=int(sys.argv[5]))
"""


def writer(url: str, folder: Path, count: int, seed: int) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c", WRITER, url, str(folder), tests, str(count), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def told(entries: Iterable[Entry], database: sqlite3.Connection) -> bool:
    """Whether what the entries tell is what there is: kernels, and how many trials."""
    kernels: set[str] = set()
    trials = 0
    for entry in entries:
        if entry.action == "kernel.stored":
            kernels.add(entry.subject)
        elif entry.action == "kernel.removed":
            kernels.remove(entry.subject)
        trials += entry.action == "trial.recorded"
    there = {row[0] for row in database.execute("SELECT kernel_id FROM kernels")}
    return there == kernels and trials == database.execute("SELECT count(*) FROM trials").fetchone()[0]
