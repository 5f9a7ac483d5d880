"""Find, rank and list among 100,000 kernels, on SQLite and PostgreSQL, beside one hand-written statement.

The peer asks the bare driver for what a plain library would rank by: the twenty best of the slot by the rank
column, with their tags. Ours ranks by context besides. Prints medians, what the plans read, and what a put
takes with and without the indexes that lists are read from. Exits 1 beyond 10 ms for a find, beyond 20 ms for
a page of 50 at the start or in the middle, or when a plan reads a whole table.

    python benchmarks/library_find.py [--kernels 100000] [--rounds 200]
"""

from __future__ import annotations

import argparse
import random
import re
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from sqlalchemy import Select, event, func, insert, select

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from servers.postgres import PostgresServer

from esper.messages import KernelArtefact, KernelMetadata, Slot
from esper.urza.database import Database, open_database
from esper.urza.query import SORT_KEYS, KernelQuery, cursor_after, matching
from esper.urza.ranking import TrialContext, Wanted, ranking
from esper.urza.records import KernelRecords
from esper.urza.schema import BlobRow, KernelRow, KernelTagRow, TrialRow
from esper.urza.tags import is_scarce
from esper.urza.tiers import digest_of

GOAL_MS, PAGE_GOAL_MS = 10.0, 20.0
SLOTS = [
    Slot(layout, size, size) for layout in ("features", "tokens", "channels") for size in (16, 32, 64, 128)
]
TAGS = [f"tag{number}" for number in range(20)]
KINDS, TASKS = ("linear", "conv", "attention"), ("digits", "fashion", "text")
LISTS = [index.name for index in KernelRow.__table__.indexes if "latency_ratio" in index.columns]
LISTS.remove("ix_kernels_slot")
SLOT, CONTEXT = Slot("tokens", 64, 64), TrialContext("attention", "text")
COLUMNS = (
    "in_features = {0} AND out_features = {0} AND stride = {0} AND layout IN ({0}, {0}) AND status = {0}"
)
VALUES = (64, 64, 1, "features", "tokens", "validated")


def fill(database: Database, count: int) -> None:
    """``count`` kernels over all slots, three tags each, and trials of a tenth of them."""
    draw = random.Random(0)
    with database.writing() as connection:
        connection.execute(insert(BlobRow), [{"digest": "0" * 64, "data": b"x"}])
        for start in range(0, count, 10_000):
            kernels, tags, trials = [], [], []
            for number in range(start, min(start + 10_000, count)):
                kernel_id = f"kernel_{number:06d}"
                tried = draw.randrange(1, 5) if draw.random() < 0.1 else 0
                slot = draw.choice(SLOTS)
                place = {
                    name: getattr(slot, name) for name in ("layout", "in_features", "out_features", "stride")
                }
                verdicts = [draw.choice(("kept", "culled")) for _ in range(tried)]
                kernels.append(kernel_row(kernel_id, place, draw, verdicts))
                tags += [
                    place | {"kernel_id": kernel_id, "tag": tag, "position": position}
                    for position, tag in enumerate(
                        [
                            *draw.sample(TAGS, 2),
                            *(["rare"] if number % 1000 == 0 else []),
                            *(["images"] if slot.layout == "channels" else []),
                        ]
                    )
                ]
                trials += [
                    trial_row(kernel_id, place, draw, f"{number}-{trial}", verdict)
                    for trial, verdict in enumerate(verdicts)
                ]
            connection.execute(insert(KernelRow), kernels)
            connection.execute(insert(KernelTagRow), tags)
            connection.execute(insert(TrialRow), trials)
    with database.reading("statement") as connection:
        if connection.dialect.name == "postgresql":  # which does so by itself, a minute later
            connection.exec_driver_sql("VACUUM ANALYZE")


def kernel_row(
    kernel_id: str, place: dict[str, Any], draw: random.Random, verdicts: list[str]
) -> dict[str, Any]:
    return place | {
        "kernel_id": kernel_id,
        "blueprint_id": f"blueprint_{draw.randrange(500)}",
        "name": f"name {kernel_id}",
        "target": "torchscript",
        "device": "cpu",
        "dtype": "float32",
        "status": "validated",
        "parameters": draw.randrange(10**6),
        "compilation_time": 0.1,
        "performance_score": round(draw.random(), 2),
        "latency_ms": 0.1,
        "latency_ratio": round(draw.random(), 2),
        "program_digest": "0" * 64,
        "weights_digest": "0" * 64,
        "blueprint_digest": "0" * 64,
        "program_bytes": 20_000,
        "weights_bytes": 10_000,
        "created_at": f"2026-01-{draw.randrange(1, 29):02d}T00:00:00+00:00",
        "trial_count": len(verdicts),
        "kept_count": verdicts.count("kept"),
    }


def trial_row(
    kernel_id: str, place: dict[str, Any], draw: random.Random, run: str, verdict: str
) -> dict[str, Any]:
    numbers = ("expected_impact", "gain", "gain_error", "threshold", "loss_before", "loss_after")
    return (
        place
        | dict.fromkeys((*numbers, "accuracy_before", "accuracy_after"), 0.5)
        | {
            "run_id": run,
            "task": draw.choice(TASKS),
            "layer": "layer",
            "layer_kind": draw.choice(KINDS),
            "seed_idx": 0,
            "site": "series",
            "kernel_id": kernel_id,
            "blueprint_id": "blueprint",
            "started_epoch": 1,
            "ended_epoch": 2,
            "verdict": verdict,
            "reason": "",
            "parameters": 100,
        }
    )


def median_ms(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def by_hand(execute: Callable[..., Any], mark: str) -> Callable[[], object]:
    """The twenty best of the slot by the rank column, and their tags."""
    best = (
        f"SELECT * FROM kernels WHERE {COLUMNS.format(mark)} "
        "ORDER BY rank DESC, latency_ratio, kernel_id LIMIT 20"
    )

    def call() -> object:
        ids = [row[0] for row in execute(best, VALUES).fetchall()]
        marks = ", ".join([mark] * len(ids))
        return execute(f"SELECT kernel_id, tag FROM kernel_tags WHERE kernel_id IN ({marks})", ids).fetchall()

    return call


def plan(database: Database, statement: Select[Any]) -> list[str]:
    """The steps of the statement's plan."""
    with database.reading() as connection:
        explain = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        connection = connection.execution_options(compiled_cache=None)

        @event.listens_for(connection, "before_cursor_execute", retval=True)
        def explained(_: Any, __: Any, text: str, parameters: Any, *___: Any) -> tuple[str, Any]:
            return explain + text, parameters

        return [str(row[-1]).strip() for row in connection.execute(statement)]


def reads(steps: list[str]) -> str:
    """What a plan looks into, by which indexes; whole tables in capitals."""
    found: dict[str, None] = {}
    for step in steps:
        scan = re.match(r"SCAN (kernels|kernel_tags|trials)(?!.* USING )|.*Seq Scan on", step)
        if scan is not None:
            found[f"ALL OF {step}"] = None
        elif index := re.search(r"(ix_\w+|pk_\w+|sqlite_autoindex_\w+)", step):
            found[index[1]] = None
    return ", ".join(found)


def compare(name: str, database: Database, execute: Callable[..., Any], mark: str, rounds: int) -> bool:
    """Print the times of one database; whether all are within the goal and no plan reads a table."""
    records = KernelRecords(database)
    print(f"{name}: by hand, by the rank column alone {median_ms(by_hand(execute, mark), rounds):.2f} ms")
    good = True
    for what, wanted in {
        "in a context": Wanted(SLOT, CONTEXT),
        "in a context, one tag of twenty": Wanted(SLOT, CONTEXT, tags=("tag3",)),
        "in a context, a rare tag": Wanted(SLOT, CONTEXT, tags=("rare",)),
        "in a context, a tag of other slots": Wanted(SLOT, CONTEXT, tags=("images",)),
        "in a context, 200 wanted": Wanted(SLOT, CONTEXT, limit=200),
        "without a context": Wanted(SLOT),
    }.items():
        with database.reading() as connection:
            scarce = is_scarce(connection, wanted.tags, wanted.slot)
        good &= show(
            f"find and rank {what}",
            lambda wanted=wanted: len(records.rank(wanted)),
            reads(plan(database, ranking(wanted, scarce))),
            GOAL_MS,
            rounds,
        )
    queries = {f"by {sort}": KernelQuery(sort=sort, limit=50) for sort in SORT_KEYS}
    queries["by rank, one tag of twenty"] = KernelQuery(tags=("tag3",), limit=50)
    queries["by rank, a rare tag"] = KernelQuery(tags=("rare",), limit=50)
    for what, query in queries.items():
        rare = query.tags if query.tags == ("rare",) else None
        start, middle = replace(query, limit=50), replace(query, after=place(database, query, rare))
        for where, each in (("", start), (", in the middle", middle)):
            good &= show(
                f"a page {what}{where}",
                lambda each=each: len(records.page(each).kernels),
                reads([step for part in matching(each, rare) for step in plan(database, part.limit(50))]),
                PAGE_GOAL_MS,
                max(rounds // 10, 5),
            )
    with_indexes = put_ms(records)
    with database.writing() as connection:
        for index in LISTS:
            connection.exec_driver_sql(f"DROP INDEX {index}")
    without = put_ms(records)
    print(f"  a put of a small kernel: {with_indexes:.2f} ms; without the indexes of lists {without:.2f} ms")
    return good


def put_ms(records: KernelRecords) -> float:
    """A put of a kernel with three tags, which no other has bytes in common with but for its blueprint."""
    draw = random.Random()

    def put() -> None:
        program, weights = draw.randbytes(2000), draw.randbytes(1000)
        metadata = KernelMetadata(
            f"kernel_{draw.randrange(16**16):016x}",
            "blueprint",
            (64,),
            (64,),
            0.1,
            draw.random(),
            ("tag1", "tag2", "tag3"),
            "a name",
            "tokens",
            parameters=draw.randrange(10**6),
            program_digest=digest_of(program),
            weights_digest=digest_of(weights),
            created_at="2026-02-01T00:00:00+00:00",
        )
        records.put(KernelArtefact(metadata, "{}", program, weights))

    return median_ms(put, 200)


def show(what: str, call: Callable[[], int], read: str, goal: float, rounds: int) -> bool:
    found, took = call(), median_ms(call, rounds)
    print(f"  {what}: {took:.2f} ms, {found} found; reads {read}")
    return took <= goal and "ALL OF" not in read


def place(database: Database, query: KernelQuery, rare: tuple[str, ...] | None) -> str:
    """The cursor of the row in the middle of a list."""
    (statement,) = matching(query, rare)
    with database.reading() as connection:
        ids = select(statement.order_by(None).subquery()).with_only_columns(func.count())
        count = connection.scalar(ids) or 0
        row = connection.execute(statement.offset(count // 2).limit(1)).mappings().one()
        return cursor_after(query, row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=200)
    chosen = parser.parse_args()
    server = PostgresServer()
    with TemporaryDirectory() as folder, closing(server):
        path = Path(folder) / "kernels.db"
        with closing(open_database(f"sqlite:///{path}")) as database:
            fill(database, chosen.kernels)
            with closing(sqlite3.connect(path)) as bare:
                good = compare("SQLite", database, bare.execute, "?", chosen.rounds)
        server.start()
        url = server.url(server.new_database())
        with closing(open_database(url, seconds=300)) as database:
            fill(database, chosen.kernels)
            with psycopg.connect(url, autocommit=True) as bare_postgres:
                good &= compare("PostgreSQL", database, bare_postgres.execute, "%s", chosen.rounds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
