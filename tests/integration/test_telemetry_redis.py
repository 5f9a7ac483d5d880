"""Redis Streams as a sink, on a real server that dies, stops and forgets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from servers.redis import RedisServer
from telemetry_support import everything
from waiting import until

from esper.messages import SeedState
from esper.nissa.journal import Journal
from esper.nissa.telemetry.health_record import pack, unpack
from esper.nissa.telemetry.redis_stream import RedisStreams, keys_of
from esper.nissa.telemetry.telemetry import Telemetry
from esper.urza.redis_client import BoundedRedis

RUN = "20261128-120000-test-0001"
EVENTS, SIGNALS, ALIVE = keys_of("esper:", RUN)
RECORD = pack("stage1", 0, 8, 2, [SeedState.TRAINING], np.ones((1, 6), np.float32))


@contextmanager
def telemetry_to(server: RedisServer, folder: Path) -> Iterator[tuple[Journal, Telemetry]]:
    with Journal(folder / "journal.jsonl", fsync=False) as journal:
        sink = RedisStreams(BoundedRedis(server.url), RUN)
        telemetry = Telemetry([sink], journal.path, lambda: journal.end, allow=everything)
        try:
            yield journal, telemetry
        finally:
            telemetry.close()


def entries(server: RedisServer, stream: str) -> list[dict[bytes, bytes]]:
    with server.client() as client:
        return [fields for _, fields in client.xrange(stream)]


def alive(server: RedisServer) -> bool:
    with server.client() as client:
        return bool(client.exists(ALIVE))


def counted(server: RedisServer) -> list[int]:
    """Events by their number. What a stopped server had swallowed may come twice; its place tells."""
    places, numbers = [0], []
    for entry in entries(server, EVENTS):
        if int(entry[b"place"]) > places[-1]:
            places.append(int(entry[b"place"]))
            numbers.append(json.loads(entry[b"fields"])["n"])
    return numbers


def test_events_and_signals_arrive_in_their_streams(redis_server: RedisServer, tmp_path: Path) -> None:
    began = time.time()
    with telemetry_to(redis_server, tmp_path) as (journal, telemetry):
        until(lambda: alive(redis_server))  # a sign of life comes first, and finds no stream
        journal.write("seed", n=0, layer="stage1")
        telemetry.step({"epoch": 0, "step": 8, "loss": float("nan")})
        telemetry.health(RECORD)
        until(lambda: len(entries(redis_server, SIGNALS)) == 2)
        with redis_server.client() as client:
            assert 0 < client.ttl(ALIVE) <= 15
            assert client.ttl(EVENTS) > 0
            assert client.ttl(SIGNALS) > 0
            assert client.zrange("esper:runs", 0, -1) == [RUN.encode()]
        place = journal.end
    (event,), (step, health) = entries(redis_server, EVENTS), entries(redis_server, SIGNALS)
    assert event[b"name"] == b"seed"
    assert began - 1 < int(event[b"at"]) / 1000 <= time.time()
    assert json.loads(event[b"fields"]) == {"n": 0, "layer": "stage1"}
    assert int(event[b"place"]) == int(step[b"place"]) == place
    assert json.loads(step[b"fields"]) == {"epoch": 0, "step": 8, "loss": "NaN"}
    assert unpack(health[b"record"]).layer == "stage1"
    with redis_server.client() as client:
        assert not client.exists(ALIVE)  # the run has ended


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_server_that_is_gone_delays_nothing_and_is_written_to_soon_after(
    own_redis: RedisServer, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing: set[int] = set()
    send = BoundedRedis.send

    def noted(server: BoundedRedis, commands: bytes, replies: int) -> None:
        writing.add(threading.get_ident())
        send(server, commands, replies)

    monkeypatch.setattr(BoundedRedis, "send", noted)
    with telemetry_to(own_redis, tmp_path) as (journal, telemetry):
        journal.write("seed", n=0)
        until(lambda: counted(own_redis) == [0])
        own_redis.kill() if fault == "killed" else own_redis.pause()
        for n in range(1, 300):
            journal.write("seed", n=n)
            telemetry.health(RECORD)
        until(lambda: telemetry.counts()["redis"].state == "down")
        assert len(writing - {threading.get_ident()}) == len(writing) == 1  # nobody who tells
        own_redis.start() if fault == "killed" else own_redis.resume()
        until(lambda: telemetry.counts()["redis"].state == "up")
        until(lambda: telemetry.counts()["redis"].behind == 0)
        # What was killed has forgotten everything, and gets it all again.
        assert counted(own_redis) == list(range(300))
        assert len(entries(own_redis, SIGNALS)) >= 299
        assert telemetry.counts()["redis"].dropped == 0


def test_a_run_that_goes_on_adds_only_what_is_new(redis_server: RedisServer, tmp_path: Path) -> None:
    for n in range(3):
        with telemetry_to(redis_server, tmp_path) as (journal, _):
            journal.write("seed", n=n)
    assert counted(redis_server) == [0, 1, 2]


def test_a_server_that_refuses_is_told_of_and_tried_again(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.client() as client, telemetry_to(redis_server, tmp_path) as (journal, telemetry):
        client.set(SIGNALS, "not a stream")
        telemetry.health(RECORD)
        journal.write("seed", n=0)
        until(lambda: telemetry.counts()["redis"].state == "down")
        assert "WRONGTYPE" in telemetry.counts()["redis"].reason
        client.delete(SIGNALS)
        until(lambda: telemetry.counts()["redis"].state == "up")
        until(lambda: len(entries(redis_server, SIGNALS)) == 1)
    assert counted(redis_server) == [0]
