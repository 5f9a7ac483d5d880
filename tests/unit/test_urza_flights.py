"""Fetches under way: whoever asks for the same waits for them instead of fetching again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from waiting import LONG, until

from esper.errors import LibraryError
from esper.urza.flights import Flights


class GatedFetch:
    """Holds every fetch until ``gate`` is open; then raises ``error`` if there is one."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.error: BaseException | None = None
        self.calls = 0
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.before: Callable[[], None] = self.wait

    def wait(self) -> None:
        self.entered.release()
        assert self.gate.wait(LONG)

    def __call__(self, keys: list[str]) -> dict[str, bytes]:
        self.calls += 1
        self.before()
        if self.error is not None:
            raise self.error
        return {key: self.held[key] for key in keys if key in self.held}


class CountedLock:
    """A lock that knows who has come to it, as ``with`` does."""

    def __init__(self) -> None:
        lock = threading.Lock()
        self.acquire, self.release = lock.acquire, lock.release
        self.entering: list[int] = []

    def __enter__(self) -> None:
        self.entering.append(threading.get_ident())
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.urza.flights.threading", SimpleNamespace(Lock=CountedLock))


@pytest.fixture
def fetch() -> Iterator[GatedFetch]:
    gated = GatedFetch()
    yield gated
    gated.gate.set()


def at_once(fetch: GatedFetch, count: int) -> list[object]:
    """What ``count`` threads get that ask for "a" together: one fetches, the others wait behind it."""
    flights, ready = Flights(), threading.Barrier(count)

    def ask() -> dict[str, bytes]:
        ready.wait(LONG)
        return flights.share(["a"], fetch)

    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(ask) for _ in range(count)]
        assert fetch.entered.acquire(timeout=LONG)
        under_way = flights._flights["a"].lock
        assert isinstance(under_way, CountedLock)
        until(lambda: len(under_way.entering) == count - 1)  # the others wait
        fetch.gate.set()
        return [call.exception(LONG) or call.result(LONG) for call in calls]


def test_a_hundred_at_once_make_one_fetch(fetch: GatedFetch) -> None:
    fetch.held["a"] = b"1"
    assert at_once(fetch, 100) == [{"a": b"1"}] * 100
    assert fetch.calls == 1


def test_an_error_reaches_everybody_who_waits(fetch: GatedFetch) -> None:
    fetch.error = LibraryError("gone")
    assert at_once(fetch, 20) == [fetch.error] * 20
    assert fetch.calls == 1


def test_a_miss_is_shared_too(fetch: GatedFetch) -> None:
    assert at_once(fetch, 20) == [{}] * 20
    assert fetch.calls == 1


def test_nothing_is_kept_of_a_fetch_that_is_over(fetch: GatedFetch) -> None:
    fetch.gate.set()
    flights = Flights()
    fetch.error = LibraryError("gone")
    with pytest.raises(LibraryError):
        flights.share(["a"], fetch)
    fetch.error = None
    assert flights.share(["a"], fetch) == {}
    fetch.held["a"] = b"1"
    assert flights.share(["a"], fetch) == {"a": b"1"}


def test_different_keys_do_not_wait_for_each_other(fetch: GatedFetch) -> None:
    flights = Flights()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(flights.share, [key], fetch) for key in "ab"]
        assert fetch.entered.acquire(timeout=LONG)
        assert fetch.entered.acquire(timeout=LONG)
        fetch.gate.set()
        assert [call.result(LONG) for call in calls] == [{}, {}]


def test_of_many_keys_those_under_way_are_waited_for_and_the_others_fetched(fetch: GatedFetch) -> None:
    fetch.held = {key: key.encode() for key in "abc"}
    flights = Flights()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(flights.share, ["a", "b"], fetch)
        assert fetch.entered.acquire(timeout=LONG)
        other = pool.submit(flights.share, ["b", "c", "x"], fetch)
        assert fetch.entered.acquire(timeout=LONG)
        fetch.gate.set()
        assert one.result(LONG) == {"a": b"a", "b": b"b"}
        assert other.result(LONG) == {"b": b"b", "c": b"c"}
    assert fetch.calls == 2


def test_a_fetch_that_is_forgotten_is_joined_by_nobody(fetch: GatedFetch) -> None:
    flights = Flights()
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(flights.share, ["a"], fetch)
        assert fetch.entered.acquire(timeout=LONG)
        fetch.before = lambda: None
        flights.forget(["a"])
        assert flights.share(["a"], lambda _: {"a": b"new"}) == {"a": b"new"}
        fetch.gate.set()
        assert early.result(LONG) == {}


def test_who_waits_for_an_interrupted_fetch_fetches_for_itself(fetch: GatedFetch) -> None:
    fetch.held["a"] = b"1"
    flights = Flights()

    def interrupted() -> None:
        fetch.before = lambda: None
        fetch.wait()
        raise KeyboardInterrupt

    fetch.before = interrupted
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(flights.share, ["a"], fetch)
        assert fetch.entered.acquire(timeout=LONG)
        under_way = flights._flights["a"].lock
        assert isinstance(under_way, CountedLock)
        follower = pool.submit(flights.share, ["a"], fetch)
        until(lambda: under_way.entering)  # it waits
        fetch.gate.set()
        assert type(leader.exception(LONG)) is KeyboardInterrupt
        assert follower.result(LONG) == {"a": b"1"}
    assert fetch.calls == 2
