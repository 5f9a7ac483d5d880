"""Runs of another host, told through real Redis and PostgreSQL servers, are seen here as they are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from telemetry_support import everything
from waiting import until

from esper.assembly.telemetry import TelemetryDatabase
from esper.errors import RunError
from esper.nissa.control import ask
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.journal_reader import read_journal
from esper.nissa.run_records import RunStatus
from esper.nissa.runs import RunStore
from esper.nissa.telemetry.messages import Message, Sink, SinkCounts
from esper.nissa.telemetry.mirror import RunMirror, Source
from esper.nissa.telemetry.postgres import EventTable, PostgresRuns
from esper.nissa.telemetry.redis_runs import RedisRuns
from esper.nissa.telemetry.redis_stream import RedisStreams, keys_of
from esper.nissa.telemetry.telemetry import Telemetry
from esper.urza.database import open_database
from esper.urza.redis_client import BoundedRedis

RUN, OTHER = "20261128-120000-there-0001", "20261128-120000-here-0002"


class RunWriter(Journal):
    """A journal with a method for each event that these runs have."""

    sink_counts: Callable[[], Mapping[str, SinkCounts]]

    def started(self, resumed_from_epoch: int | None = None) -> None:
        layers = {"stage1": {"kind": "conv2d", "seeds": 1}}
        self.write("run_started", experiment="there", layers=layers, resumed_from_epoch=resumed_from_epoch)

    def epoch(self, epoch: int) -> None:
        metrics = {"stage1": {"seed_states": ["TRAINING"]}}
        packet = {"epoch": epoch, "loss": float("nan"), "accuracy": 0.5, "layer_metrics": metrics}
        self.write("epoch", packet=packet, seconds=1.5, samples_per_second=1e3, training_flops=1e9)

    def decision(self, epoch: int) -> None:
        decision = {
            "adaptation_type": "add_seed",
            "target_component": "stage1",
            "parameters": {"seed_idx": 0},
        }
        decision |= {"confidence": 0.5, "expected_impact": 0.1, "reason": "plateau"}
        outcome = {"status": "grafted", "kernel_id": "kernel_a", "reason": ""}
        self.write("decision", epoch=epoch, decision=decision, outcome=outcome)


@dataclass
class Place:
    """Where runs are told: how to make a sink for one, and what a mirror reads."""

    sink: Callable[[str], Sink]
    source: Callable[[], Source]


def redis_place(server: RedisServer) -> Place:
    return Place(
        lambda run_id: RedisStreams(BoundedRedis(server.url), run_id),
        lambda: RedisRuns(BoundedRedis(server.url)),
    )


def postgres_place(url: str) -> Place:
    return Place(
        lambda run_id: EventTable(TelemetryDatabase(url), run_id),
        lambda: PostgresRuns(TelemetryDatabase(url)),
    )


@pytest.fixture(params=["redis", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "redis":
        return redis_place(request.getfixturevalue("redis_server"))
    url = request.getfixturevalue("postgres_url")
    return Place(
        lambda run_id: EventTable(TelemetryDatabase(url), run_id),
        lambda: PostgresRuns(TelemetryDatabase(url)),
    )


@contextmanager
def told(place: Place, root: Path, run_id: str = RUN) -> Iterator[RunWriter]:
    """A run below ``root`` that tells ``place`` what it writes."""
    (root / run_id).mkdir(parents=True, exist_ok=True)
    with RunWriter(root / run_id / JOURNAL_NAME, fsync=False) as journal:
        telemetry = Telemetry([place.sink(run_id)], journal.path, lambda: journal.end, allow=everything)
        journal.sink_counts = telemetry.counts
        try:
            yield journal
        finally:
            telemetry.close()


@contextmanager
def mirror_into(place: Place, root: Path) -> Iterator[RunStore]:
    with closing(RunMirror(place.source(), root)) as mirror:
        mirror.start()
        yield RunStore(root)


def status(store: RunStore, run_id: str = RUN) -> RunStatus | None:
    return {view.run_id: view.status for view in store.views()}.get(run_id)


def epochs(store: RunStore) -> int:
    return len(store.open(RUN).epochs) if RUN in store.run_ids() else 0


def test_a_run_of_another_host_is_seen_live_and_after(place: Place, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with mirror_into(place, here) as store:
        with told(place, there) as journal:
            journal.started()
            journal.epoch(0)
            until(lambda: epochs(store) == 1 and status(store) is RunStatus.RUNNING)
            with pytest.raises(RunError, match="is a copy"):
                ask(here / RUN, "pause")
            journal.decision(0)
            journal.write("message_of_a_fault", text="a \0 that no text of PostgreSQL holds")
            journal.epoch(1)
            journal.write("run_finished", summary={"run_id": RUN})
        until(lambda: status(store) is RunStatus.FINISHED)
    seen, lived = RunStore(here).open(RUN), RunStore(there).open(RUN)
    for what in ("epochs", "adaptations", "seeds", "started_at", "updated_at", "layers", "seconds"):
        assert repr(getattr(seen, what)) == repr(getattr(lived, what)), what  # a NaN is no other's equal
    assert len(seen.epochs) == 2
    assert seen.damaged == 0


def test_a_run_whose_process_is_gone_has_stopped(place: Place, tmp_path: Path) -> None:
    with mirror_into(place, tmp_path / "here") as store:
        with told(place, tmp_path / "there") as journal:
            journal.started()
            until(lambda: status(store) is RunStatus.RUNNING)
        until(lambda: status(store) is RunStatus.STOPPED)
        with told(place, tmp_path / "there") as journal:  # it is resumed
            journal.started(resumed_from_epoch=-1)
            until(lambda: status(store) is RunStatus.RUNNING)


def test_copies_survive_a_restart_and_a_server_that_forgot(own_redis: RedisServer, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with told(redis_place(own_redis), tmp_path / "there") as journal:
        journal.started()
        journal.epoch(0)
        with mirror_into(redis_place(own_redis), here) as store:
            until(lambda: epochs(store) == 1)
        journal.epoch(1)
        with mirror_into(redis_place(own_redis), here) as store:
            until(lambda: epochs(store) == 2)
            own_redis.kill()
            own_redis.start()
            journal.epoch(2)
            until(lambda: epochs(store) == 3)
    names = [event["event"] for event in read_journal(here / RUN / JOURNAL_NAME)[0]]
    assert names == ["run_started", "epoch", "epoch", "epoch"]


def test_runs_of_this_host_and_names_that_are_none_are_left_alone(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with told(
        redis_place(redis_server), tmp_path, OTHER
    ) as journal:  # told, and mirrored into the very same folder
        journal.started()
        written = journal.end
        with redis_server.client() as client, mirror_into(redis_place(redis_server), tmp_path) as store:
            client.zadd("esper:runs", {"../escape": 1, "": 1, "a/b": 1, b"\xff": 1})
            for name in ("name", "at", "place"):  # entries that are no events
                client.xadd(keys_of("esper:", RUN)[0], {name: "x", "fields": "["})
            client.zadd("esper:runs", {RUN: time.time()})  # a sink removes old ones
            until(lambda: (tmp_path / RUN).exists())
            time.sleep(0.6)
            assert status(store, OTHER) is RunStatus.RUNNING
            assert journal.end == written == (tmp_path / OTHER / JOURNAL_NAME).stat().st_size
            journal.close()  # nobody holds it any more, and it is a run of this host all the same
            time.sleep(1.2)
    assert (tmp_path / OTHER / JOURNAL_NAME).stat().st_size == written
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([OTHER, RUN])
    assert read_journal(tmp_path / RUN / JOURNAL_NAME)[0] == []
    assert not (tmp_path.parent / "escape").exists()


def test_a_server_that_is_gone_is_said(tmp_path: Path, own_redis: RedisServer) -> None:
    with closing(RunMirror(redis_place(own_redis).source(), tmp_path)) as mirror:
        mirror.start()
        until(lambda: mirror.check() == "0 copied, 0 go on")
        own_redis.kill()

        def said() -> bool:
            try:
                mirror.check()
            except Exception as error:
                return "did not answer as it should" in str(error)
            return False

        until(said)


def test_events_are_in_the_table_once_though_the_server_dies(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = own_postgres.url()
    place = Place(
        lambda run_id: EventTable(TelemetryDatabase(url), run_id),
        lambda: PostgresRuns(TelemetryDatabase(url)),
    )

    def rows() -> list[int]:
        with own_postgres.connect() as connection:
            found = connection.execute("SELECT place FROM esper_telemetry.events ORDER BY place").fetchall()
        return [row[0] for row in found]

    with told(place, tmp_path) as journal:
        places = [(journal.epoch(n), journal.end)[1] for n in range(3)]
        until(lambda: _or_none(rows) == places)
        own_postgres.kill()
        places += [(journal.epoch(n), journal.end)[1] for n in range(3, 50)]
        until(lambda: journal.sink_counts()["postgres"].state == "down")
        own_postgres.start()
        until(lambda: _or_none(rows) == places)


def _or_none(call: Callable[[], list[int]]) -> list[int] | None:
    try:
        return call()
    except Exception:  # the table is not there yet, or the server is starting
        return None


def test_the_kernel_library_can_be_in_the_same_database(postgres_url: str) -> None:
    with closing(postgres_place(postgres_url).sink(RUN)) as sink:
        assert sink.position() == 0
        for _ in range(2):  # as after a commit of which no word came back
            sink.write([Message("event", "seed", 0.0, 7, {"n": 0})])
        assert sink.position() == 7
    open_database(postgres_url).close()  # which refuses a database of something else
