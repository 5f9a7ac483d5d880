"""Events of runs as they come, over real connections: none missed, none twice, whoever stops and begins."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers.api import served_in_a_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from waiting import LONG, until

from esper.nissa.api import event_hub
from esper.nissa.api.application import create_app
from esper.nissa.api.catalogue import BoundedLibrary
from esper.nissa.api.endpoints import CALLER
from esper.nissa.api.event_hub import EventHub
from esper.nissa.api.monitor import Monitor
from esper.nissa.api.reads import Reads
from esper.nissa.http.guard import Caller
from esper.nissa.http.server import HEAD_SECONDS, MetricsServer
from esper.nissa.journal import JOURNAL_NAME, Journal
from esper.nissa.runs import RunStore


@dataclass
class Serving:
    """A server, and the hub that reads the journals for it."""

    url: str
    hub: event_hub.EventHub
    server: MetricsServer


@contextmanager
def serving(root: Path) -> Iterator[Serving]:
    app = create_app(Monitor(RunStore(root), lambda: []))
    with served_in_a_thread(app) as server:
        yield Serving(server.url, app.state.hub, server)


def journal(root: Path, run_id: str) -> Journal:
    (root / run_id).mkdir(parents=True, exist_ok=True)
    return Journal(root / run_id / JOURNAL_NAME, fsync=False)


@dataclass
class Event:
    id: str
    kind: str
    data: dict[str, Any]


def events(lines: Iterator[str]) -> Iterator[Event]:
    """As a browser reads them."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line and "data" in fields:
            yield Event(fields["id"], fields["event"], json.loads(fields["data"]))
        if not line:
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


@contextmanager
def following(url: str, after: str | None = None, **query: str) -> Iterator[Iterator[Event]]:
    headers = {} if after is None else {"Last-Event-ID": after}
    address = f"{url}/api/v1/events"
    with httpx.stream("GET", address, params=query, headers=headers, timeout=LONG) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in answer.headers
        yield events(answer.iter_lines())


def wait_for_follower(there: Serving, followers: int = 1) -> None:
    """So many follow, and of what is written from now on they miss nothing."""
    until(lambda: there.hub.followers == followers and there.hub._is_reading == (followers > 0))


def test_events_come_as_they_are_written_with_the_run_and_without_places(tmp_path: Path) -> None:
    with journal(tmp_path, "a") as a, serving(tmp_path) as there:
        a.write("message", n=0)
        with following(there.url) as told:
            wait_for_follower(there)
            a.write("checkpoint", path="/home/alice/runs/a/checkpoints/step-1", step=1)
            with journal(tmp_path, "b") as b:
                b.write("run_started", n=2)
                seen = [next(told), next(told)]
        assert {each.kind for each in seen} == {"checkpoint", "run_started"}
        assert {each.data["run_id"] for each in seen} == {"a", "b"}
        assert "alice" not in str(seen)
        wait_for_follower(there, 0)  # that it has left is noticed


def test_a_stream_goes_on_after_any_event_of_it_exactly(tmp_path: Path) -> None:
    """Three runs write, a client leaves at some event, and the server is another one when it comes back."""
    over = threading.Event()

    def write(name: str) -> None:
        with journal(tmp_path, name) as run:
            for number in range(150):
                run.write("step", n=number)
                time.sleep(0.004)
            over.wait()

    with journal(tmp_path, "ended") as ended:
        ended.write("step", n=-1)
    writers = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
    seen: list[tuple[str, int]] = []
    last = "start"
    for writer in writers:
        writer.start()
    try:
        for stay in (3, 40, 1, 100, 7, 150, 10**6):
            with serving(tmp_path) as there, following(there.url, after=last) as told:
                for number, event in enumerate(told, 1):
                    seen.append((event.data["run_id"], event.data["n"]))
                    last = event.id
                    if number == stay or len(seen) >= 451:
                        break
            if len(seen) >= 451:
                break
    finally:
        over.set()
        for writer in writers:
            writer.join()
    for name in ("a", "b", "c"):
        assert [n for run, n in seen if run == name] == list(range(150))
    assert seen.count(("ended", -1)) == 1
    assert len(last) < 200


def test_an_event_that_was_on_its_way_when_a_client_left_is_told_once(tmp_path: Path) -> None:
    def line(n: int, seconds_ago: float) -> bytes:
        at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
        return json.dumps({"event": "step", "at": at.isoformat(), "n": n}).encode() + b"\n"

    slow = tmp_path / "slow" / JOURNAL_NAME
    with journal(tmp_path, "a") as a, journal(tmp_path, "slow"), serving(tmp_path) as there:
        slow.write_bytes(line(0, 60))
        with following(there.url) as told:
            wait_for_follower(there)
            a.write("step", n=1)
            last = next(told).id
        with slow.open("ab") as file:
            file.write(line(2, 3))
        with following(there.url, after=last) as told:
            first = next(told)
            a.write("step", n=3)
            assert [first.data["n"], next(told).data["n"]] == [2, 3]


def test_one_run_and_some_kinds_alone(tmp_path: Path) -> None:
    with (
        journal(tmp_path, "20261128-a") as a,
        journal(tmp_path, "20261128-b") as b,
        serving(tmp_path) as there,
    ):
        for number in range(5):
            a.write("epoch", n=number)
            a.write("cache", n=number)
            b.write("epoch", n=100 + number)
        query = {"run": "20261128-a", "types": "epoch,decision", "after": "start"}
        with following(there.url, **query) as told:
            first = [next(told) for _ in range(5)]
            a.write("cache", n=5)
            b.write("epoch", n=105)
            a.write("epoch", n=5)
            assert [each.data["n"] for each in (*first, next(told))] == list(range(6))
        for query, status in {"run=none": 404, "types=A": 400, "after=x": 400, "what=1": 400}.items():
            assert httpx.get(f"{there.url}/api/v1/events?{query}").status_code == status
        bad = httpx.get(f"{there.url}/api/v1/events", headers={"Last-Event-ID": "nonsense"})
        assert bad.status_code == 400
        assert httpx.head(f"{there.url}/api/v1/events").status_code == 200


def test_names_that_nobody_foresaw_do_no_harm(tmp_path: Path) -> None:
    with journal(tmp_path, "\u00fc x") as odd, serving(tmp_path) as there:
        odd.write("a\nid: 1\ndata: forged", n=1)
        odd.write("\u00e9", n=2)
        with following(there.url, after="start") as told:
            seen = [next(told), next(told)]
        assert [each.kind for each in seen] == ["unknown"] * 2
        assert [each.data["n"] for each in seen] == [1, 2]
        address = f"{there.url}/api/v1/runs/%C3%BC%20x"
        assert httpx.get(address).json()["run_id"] == "\u00fc x"
        asked = httpx.post(f"{address}/pause")
        assert asked.status_code == 202
        assert there.url + asked.headers["location"] == address


def test_a_quiet_stream_stays_and_ends_at_once_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "HEARTBEAT_SECONDS", 0.5)
    over = threading.Event()

    def write() -> None:  # what was not asked for breaks no silence
        with journal(tmp_path, "a") as a:
            while not over.wait(0.1):
                a.write("epoch")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with serving(tmp_path) as there:
            address = f"{there.url}/api/v1/events?types=decision"
            with httpx.stream("GET", address) as answer:
                began = time.monotonic()
                beats = 0
                for line in answer.iter_lines():  # which raises if the stream is cut off
                    beats += line.startswith(":")
                    if time.monotonic() - began > HEAD_SECONDS + 1:  # a silent client is gone by then
                        there.server.stop()
            assert beats >= 3
    finally:
        over.set()
        writer.join()


def test_followers_share_the_reading_and_are_so_many_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "MAX_FOLLOWERS", 5)
    read: list[event_hub.JournalReader] = []
    begin = event_hub.JournalReader.read
    monkeypatch.setattr(event_hub.JournalReader, "read", lambda reader: read.append(reader) or begin(reader))
    with journal(tmp_path, "a") as a, serving(tmp_path) as there:
        got: list[list[int]] = []

        def follow() -> None:
            with following(there.url) as told:
                got.append([next(told).data["n"] for _ in range(20)])

        clients = [threading.Thread(target=follow) for _ in range(5)]
        for number, client in enumerate(clients, 1):
            client.start()
            wait_for_follower(there, number)
        refused = httpx.get(f"{there.url}/api/v1/events")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        for number in range(20):
            a.write("step", n=number)
        for client in clients:
            client.join(LONG)
    assert got == [list(range(20))] * 5
    assert len({id(reader) for reader in read}) == 1, "each follower read the journal for itself"


def test_nobody_takes_the_places_of_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "MAX_OF_ONE", 2)

    async def follow() -> None:
        hub = EventHub(RunStore(tmp_path))
        scopes = [{CALLER: Caller(name, "viewer")} for name in ("anna", "anna", "bob")]
        streams = [await events_of(hub, scope) for scope in scopes]
        for stream in streams:
            await anext(stream)
        assert [hub.is_full(name) for name in ("anna", "bob")] == [True, False]
        with pytest.raises(HTTPException, match="too many clients follow"):
            await events_of(hub, scopes[0])
        for stream in streams:
            await stream.aclose()
        assert not hub.is_full("anna")

    asyncio.run(follow())


async def events_of(hub: EventHub, scope: dict[str, Any]) -> Any:
    """What the endpoint streams to who asks with that scope."""
    asked = Request({"type": "http", "method": "GET", "query_string": b"", "headers": [], **scope})
    monitor = Monitor(RunStore(Path()), lambda: [])
    answer: Any = await Reads(monitor, BoundedLibrary(None), hub).events(asked)
    return answer._told


def test_a_follower_that_is_too_slow_is_let_go_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "MAX_KEPT", 50)
    text = "x" * 200_000  # more than the buffers between server and client hold
    with journal(tmp_path, "a") as a, serving(tmp_path) as there:
        seen: list[int] = []
        with following(there.url, after="start") as told:
            a.write("step", n=0, text=text)
            first = next(told)
            seen.append(first.data["n"])
            for number in range(1, 300):
                a.write("step", n=number, text=text)
            until(lambda: json.loads(there.hub._kept[-1].data)["n"] == 299)  # all is read, and little kept
            for last in told:
                seen.append(last.data["n"])
                assert len(seen) < 300, "it was not let go"
        with following(there.url, after=last.id) as told:
            while len(seen) < 300:
                seen.append(next(told).data["n"])
    assert seen == list(range(300))
