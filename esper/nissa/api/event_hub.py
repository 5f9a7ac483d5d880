"""The events of all runs as they are written, read once for everybody who follows them.

One task looks at the journals while anybody follows, and keeps the latest events for all. A follower is a
place among those, so a slow one costs nothing; one that falls behind what is kept is let go, and goes on from
the journals with the id that it saw last.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from esper.errors import StorageError
from esper.nissa.api.event_places import LATE_SECONDS, Places, scope_of
from esper.nissa.journal import JOURNAL_NAME, Event, dumps
from esper.nissa.journal_reader import JournalReader
from esper.nissa.run_parsing import parse_time
from esper.nissa.runs import RunStore

POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 10.0
MAX_FOLLOWERS = 100
MAX_OF_ONE = 50
"""Of these by one name: no token takes all places, nor who comes without one."""

MAX_KEPT = 20_000
MAX_KEPT_BYTES = 32 * 2**20
"""So many of the latest events are kept in memory, and so many bytes of them."""

_BATCH = 1000
_BATCH_BYTES = 2**20
_KIND = re.compile("[a-z_]{1,40}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Told:
    """One event: of which run, up to which byte of its journal, and its JSON with the run's id."""

    run_id: str
    end: int
    kind: str
    data: str


class EventHub:
    """Reads the journals of ``store``'s folder for any number of followers; used in one event loop.

    ``store`` is the hub's own.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._kept: deque[Told] = deque()
        self._kept_bytes = 0
        self._first = 0
        """The number of the oldest that is kept; they are numbered from the hub's beginning."""
        self._news = asyncio.Event()
        self._stopped = False
        self.followers = 0
        """How many follow now."""
        self._by_name: Counter[str] = Counter()
        self._beginning = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """End every stream now; called in the event loop."""
        self._stopped = True
        self._news.set()

    def is_full(self, who: str) -> bool:
        """Whether as many follow as may, or as many by that name."""
        return self.followers >= MAX_FOLLOWERS or self._by_name[who] >= MAX_OF_ONE

    async def follow(
        self,
        places: Places | None,
        *,
        run_id: str | None = None,
        kinds: Collection[str] = (),
        who: str = "",
    ) -> AsyncGenerator[tuple[Told, str] | None, None]:
        """Each event after ``places`` (None: from now on) with its id, and None when there was none for long.

        The first is None, too: what is written after it is told. Of ``run_id`` alone and of ``kinds`` alone,
        where they are given. Ends when the hub is stopped or is full, and when the follower is too slow.
        """
        if self.is_full(who):
            return
        self.followers += 1
        self._by_name[who] += 1
        try:
            await self._begin()
            number = self._first + len(self._kept)
            yield None
            seen: dict[str, int] = {}
            mine = places or Places(time.time())
            mine.scope = scope_of(run_id, kinds)
            if places is not None:
                backlog = _backlog(self._store, mine, run_id, seen)
                while not self._stopped and (batch := await run_in_threadpool(_some, backlog)):
                    for old in batch:
                        mine.move(old.run_id, old.end, time.time())
                        if not kinds or old.kind in kinds:
                            yield old, mine.text()
                mine.all_read(time.time())
            quiet_since = time.monotonic()
            async for told in self._live(number):
                new = told is not None and told.end > seen.get(told.run_id, -1)
                if told and new and run_id in (None, told.run_id) and (not kinds or told.kind in kinds):
                    mine.move(told.run_id, told.end, time.time())
                    mine.all_read(time.time())
                    yield told, mine.text()
                elif time.monotonic() - quiet_since < HEARTBEAT_SECONDS:
                    continue
                else:
                    yield None
                quiet_since = time.monotonic()
        finally:
            self.followers -= 1
            self._by_name -= Counter([who])
            if self.followers == 0 and self._reading is not None:
                self._reading.cancel()
                self._reading = None

    async def _live(self, number: int) -> AsyncGenerator[Told | None, None]:
        """What is kept from ``number`` on, as it comes; ends when that is kept no more."""
        while not self._stopped and number >= self._first and self._is_reading:
            news = self._news
            place = number - self._first
            if place < len(self._kept):
                for told in list(itertools.islice(self._kept, place, place + _BATCH)):
                    number += 1
                    yield told
                continue
            try:
                await asyncio.wait_for(news.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                yield None

    async def _begin(self) -> None:
        async with self._beginning:
            if not self._is_reading:
                self._first += len(self._kept)
                self._kept.clear()
                self._kept_bytes = 0
                tail = _Tail(self._store)
                await run_in_threadpool(tail.skip)
                self._reading = asyncio.create_task(self._read(tail))

    @property
    def _is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done()

    async def _read(self, tail: _Tail) -> None:
        while not self._stopped:
            told = await run_in_threadpool(tail.read)
            if told:
                self._keep(told)
                news, self._news = self._news, asyncio.Event()
                news.set()
            more = len(told) >= _BATCH or sum(len(each.data) for each in told) > _BATCH_BYTES
            await asyncio.sleep(0 if more else POLL_SECONDS)

    def _keep(self, told: list[Told]) -> None:
        self._kept += told
        self._kept_bytes += sum(len(each.data) for each in told)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft().data)
            self._first += 1


class _Tail:
    """What is written to any journal from now on."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._readers: dict[str, JournalReader] = {}

    def skip(self) -> None:
        """Pass over what is there already."""
        with contextlib.suppress(StorageError):
            for run_id in self._store.run_ids():
                path = self._store.root / run_id / JOURNAL_NAME
                with contextlib.suppress(OSError):
                    self._readers[run_id] = JournalReader(path, _end_of_lines(path))

    def read(self) -> list[Told]:
        """What was written since; of each run a batch, and the rest the next time."""
        told: list[Told] = []
        try:
            run_ids = self._store.run_ids()
        except StorageError as error:
            log.warning("events: %s", error)
            return told
        self._readers = {run_id: reader for run_id, reader in self._readers.items() if run_id in set(run_ids)}
        for run_id in run_ids:
            path = self._store.root / run_id / JOURNAL_NAME
            reader = self._readers.setdefault(run_id, JournalReader(path))
            with contextlib.suppress(StorageError, OSError):  # it is gone since, or /health says why not
                if path.stat().st_size != reader.offset + reader.torn:
                    told += _some(_told(run_id, reader))
        return told


def _backlog(store: RunStore, places: Places, run_id: str | None, seen: dict[str, int]) -> Iterator[Told]:
    """What the journals hold after ``places``; ``seen`` learns up to where each was read."""
    for each in store.run_ids() if run_id is None else [run_id]:
        path = store.root / each / JOURNAL_NAME
        end = places.end(each)
        with contextlib.suppress(StorageError, OSError):
            since = None if end is not None else places.at - LATE_SECONDS
            if since is not None and path.stat().st_mtime < since - LATE_SECONDS:
                continue
            reader = JournalReader(path, end or 0)
            yield from _told(each, reader, since)
            seen[each] = reader.offset


def _told(run_id: str, reader: JournalReader, since: float | None = None) -> Iterator[Told]:
    for event in reader.read():
        if since is None or _time_of(event) > since:
            line = dumps({"run_id": run_id, **_without_places(event)})
            # A name is a line of its own in a stream; who wrote the journal has not promised to keep to one.
            kind = event["event"] if _KIND.fullmatch(event["event"]) else "unknown"
            yield Told(run_id, reader.offset, kind, line)


def _some(told: Iterator[Told]) -> list[Told]:
    """The next of ``told``, as many as one has in memory at once; none at the end."""
    some: list[Told] = []
    size = 0
    for each in told:
        some.append(each)
        size += len(each.data)
        if len(some) == _BATCH or size > _BATCH_BYTES:
            break
    return some


def _time_of(event: Event) -> float:
    try:
        return parse_time(event["at"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return float("inf")


def _without_places(event: Event) -> Event:
    """``event`` without where on this machine something lies."""
    if event["event"] == "checkpoint":
        return {**event, "path": Path(str(event.get("path"))).name}
    if event["event"] == "run_finished" and isinstance(event.get("summary"), dict):
        summary: dict[str, Any] = event["summary"]
        return {**event, "summary": {name: value for name, value in summary.items() if name != "folder"}}
    return event


def _end_of_lines(path: Path) -> int:
    """The byte after the last whole line of ``path``."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        while end > 0:
            begin = max(0, end - 65536)
            file.seek(begin)
            place = file.read(end - begin).rfind(b"\n")
            if place >= 0:
                return begin + place + 1
            end = begin
    return 0
