"""The store that asks tiers in order: promotion, counts, and copies that do not match their digest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from waiting import LONG, until

from esper.errors import CorruptKernel, EsperError, LibraryError, SecurityError, StorageError, TierUnavailable
from esper.urza.breaker import CircuitBroken
from esper.urza.memory import MemoryTier
from esper.urza.prefetch import WAITING
from esper.urza.tiers import MISSING, Missing, TierCounts, TieredStore, digest_of

VALUE = b"a kernel's program"
DIGEST = digest_of(VALUE)


class DictTier:
    """A tier in a dictionary that remembers what it was asked."""

    def __init__(self, name: str, **held: bytes) -> None:
        self.name = name
        self.held = dict(held)
        self.calls: list[str] = []

    def get(self, key: str) -> bytes | Missing:
        self.calls.append("get")
        return self.held.get(key, MISSING)

    def put(self, key: str, value: bytes) -> None:
        self.calls.append("put")
        self.held[key] = value

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        self.calls.append("get_many")
        return {key: self.held[key] for key in keys if key in self.held}

    def put_many(self, items: Mapping[str, bytes]) -> None:
        self.calls.append("put_many")
        self.held |= items

    def delete(self, key: str) -> None:
        self.calls.append("delete")
        self.held.pop(key, None)


def three(*holders: int, value: bytes = VALUE) -> tuple[TieredStore, list[DictTier]]:
    tiers = [DictTier(name) for name in ("near", "middle", "record")]
    for index in holders:
        tiers[index].held[DIGEST] = value
    return TieredStore(tiers), tiers


def hits_and_misses(store: TieredStore) -> dict[str, tuple[int, int]]:
    return {name: (tier.hits, tier.misses) for name, tier in store.tier_counts().items()}


def test_digest_is_sha256_in_hexadecimal() -> None:
    assert digest_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_hit_in_the_record_is_put_into_each_earlier_tier() -> None:
    store, tiers = three(2)
    assert store.get(DIGEST) == VALUE
    assert [tier.held for tier in tiers] == [{DIGEST: VALUE}] * 3
    assert hits_and_misses(store) == {"near": (0, 1), "middle": (0, 1), "record": (1, 0)}


def test_a_hit_half_way_goes_up_and_asks_no_further() -> None:
    store, (near, middle, record) = three(1)
    assert store.get(DIGEST) == VALUE
    assert near.held == {DIGEST: VALUE}
    assert middle.calls == ["get"]
    assert record.calls == []


def test_the_second_time_the_nearest_answers_alone() -> None:
    store, (_, middle, record) = three(2)
    store.get(DIGEST)
    middle.calls.clear()
    record.calls.clear()
    assert store.get(DIGEST) == VALUE
    assert middle.calls == record.calls == []
    assert hits_and_misses(store) == {"near": (1, 1), "middle": (0, 1), "record": (1, 0)}


def test_what_no_tier_holds_is_missing_and_no_tier_is_given_anything() -> None:
    store, tiers = three()
    assert store.get(DIGEST) is MISSING
    assert [tier.calls for tier in tiers] == [["get"]] * 3
    assert hits_and_misses(store) == {"near": (0, 1), "middle": (0, 1), "record": (0, 1)}


def test_empty_bytes_are_a_hit() -> None:
    record = DictTier("record", **{digest_of(b""): b""})
    assert TieredStore([DictTier("near"), record]).get(digest_of(b"")) == b""


def test_a_damaged_copy_in_an_earlier_tier_is_replaced_from_the_next() -> None:
    store, (near, middle, _) = three(1, 2)
    near.held[DIGEST] = VALUE[:-1]
    assert store.get(DIGEST) == VALUE
    assert near.calls == ["get", "delete", "put_many"]
    assert near.held[DIGEST] == middle.held[DIGEST] == VALUE
    assert hits_and_misses(store)["near"] == (0, 1)


def test_a_damaged_record_is_an_error_that_is_neither_spread_nor_removed() -> None:
    store, (near, middle, record) = three(2, value=VALUE + b"!")
    with pytest.raises(CorruptKernel, match=DIGEST[:16]):
        store.get(DIGEST)
    assert near.held == middle.held == {}
    assert record.held == {DIGEST: VALUE + b"!"}
    assert hits_and_misses(store)["record"] == (0, 1)


def test_evict_leaves_the_record_alone() -> None:
    store, (near, middle, record) = three(0, 1, 2)
    store.evict(DIGEST)
    assert near.held == middle.held == {}
    assert record.held == {DIGEST: VALUE}


@pytest.mark.parametrize("names", [[], ["memory", "memory"]])
def test_tiers_that_cannot_be_counted_apart_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="different names"):
        TieredStore([DictTier(name) for name in names])


def test_no_count_is_lost_between_threads() -> None:
    store, (near, _, _) = three()
    near.held = dict(MANY)  # a key for each thread: those who ask for the same at once share one call
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda digest: [store.get(digest) for _ in range(500)], MANY))
    assert hits_and_misses(store)["near"] == (3000, 0)


# A memory of its own


def remembering(*tiers: DictTier, absent_seconds: float = 60.0) -> tuple[TieredStore, MemoryTier]:
    memory = MemoryTier(2**20)
    return TieredStore(tiers, memory=memory, absent_seconds=absent_seconds), memory


def test_what_memory_holds_was_checked_and_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    record = DictTier("record", **{DIGEST: VALUE})
    store, memory = remembering(record)
    store.get(DIGEST)
    record.calls.clear()
    monkeypatch.setattr("esper.urza.tiers.digest_of", lambda value: pytest.fail("checked again"))
    assert store.get(DIGEST) == store.get_many([DIGEST])[DIGEST] == VALUE
    assert record.calls == []
    assert hits_and_misses(store) == {"memory": (2, 1), "record": (1, 0)}
    assert memory.get(DIGEST) == VALUE


def test_a_damaged_copy_never_reaches_memory() -> None:
    cache, record = DictTier("cache", **{DIGEST: b"damaged"}), DictTier("record", **{DIGEST: VALUE})
    store, memory = remembering(cache, record)
    assert store.get(DIGEST) == VALUE
    assert memory.get(DIGEST) == cache.held[DIGEST] == VALUE


def test_no_hit_of_memory_is_lost_between_threads() -> None:
    store, _ = remembering(DictTier("record", **{DIGEST: VALUE}))
    store.get(DIGEST)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [store.get(DIGEST) for _ in range(2000)], range(8)))
    assert hits_and_misses(store)["memory"] == (16_000, 1)
    assert hits_and_misses(store)["memory"] == (16_000, 1)  # reading the count does not count


def test_its_name_must_differ_too() -> None:
    with pytest.raises(ValueError, match="different names"):
        TieredStore([DictTier("memory")], memory=MemoryTier(1))


# Many at once

MANY = {digest_of(bytes([number])): bytes([number]) for number in range(6)}
DIGESTS = list(MANY)


def test_each_tier_is_asked_once_for_what_those_before_it_lack() -> None:
    near, middle, record = (DictTier(name) for name in ("near", "middle", "record"))
    near.held = {DIGESTS[0]: MANY[DIGESTS[0]]}
    middle.held = {digest: MANY[digest] for digest in DIGESTS[1:3]}
    record.held = dict(list(MANY.items())[:5])
    store, memory = remembering(near, middle, record)
    memory.put(DIGESTS[5], MANY[DIGESTS[5]])
    unknown = digest_of(b"nowhere")
    assert store.get_many([*DIGESTS, unknown, DIGESTS[0]]) == MANY
    assert [call for call in near.calls if call == "get_many"] == ["get_many"]
    assert [call for call in middle.calls if call == "get_many"] == ["get_many"]
    assert record.calls == ["get_many"]
    assert near.held == dict(list(MANY.items())[:5])
    assert middle.held == dict(list(MANY.items())[1:5])
    assert memory.get_many(DIGESTS) == MANY
    assert hits_and_misses(store) == {"memory": (1, 6), "near": (1, 5), "middle": (2, 3), "record": (2, 1)}


def test_a_damaged_copy_among_many_is_replaced_and_in_the_record_an_error() -> None:
    near, record = DictTier("near"), DictTier("record")
    near.held, record.held = MANY | {DIGESTS[1]: b"damaged"}, dict(MANY)
    store = TieredStore([near, record])
    assert store.get_many(DIGESTS) == MANY
    assert near.held == MANY
    near.held, record.held = {}, MANY | {DIGESTS[1]: b"damaged"}
    with pytest.raises(CorruptKernel, match=DIGESTS[1][:16]):
        store.get_many(DIGESTS)
    assert b"damaged" not in near.held.values()


# Tiers that fail


class FailingTier(DictTier):
    """Raises ``error`` whatever it is asked."""

    def __init__(self, name: str, error: EsperError) -> None:
        super().__init__(name)
        self.error = error

    def _raise(self, call: str) -> None:
        self.calls.append(call)
        raise self.error

    def get(self, key: str) -> bytes | Missing:
        self._raise("get")
        return MISSING

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        self._raise("get_many")
        return {}

    def put(self, key: str, value: bytes) -> None:
        self._raise("put")

    def put_many(self, items: Mapping[str, bytes]) -> None:
        self._raise("put_many")

    def delete(self, key: str) -> None:
        self._raise("delete")


ERRORS = [LibraryError("gone"), StorageError("full"), TierUnavailable("late"), SecurityError("no key")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failing_cache_is_counted_and_passed_over(error: EsperError) -> None:
    cache, record = FailingTier("cache", error), DictTier("record", **{DIGEST: VALUE})
    store = TieredStore([cache, record])
    assert store.get(DIGEST) == VALUE
    assert cache.calls == ["get"]  # nor is it given the value: that would be another wait
    assert store.get_many([DIGEST, DIGESTS[0]]) == {DIGEST: VALUE}
    assert store.tier_counts()["cache"] == TierCounts(hits=0, misses=0, errors=2, state=None)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failing_record_is_an_error_and_is_not_remembered_as_a_miss(error: EsperError) -> None:
    record = FailingTier("record", error)
    store = TieredStore([DictTier("cache"), record])
    for _ in range(2):
        with pytest.raises(type(error)):
            store.get(DIGEST)
        with pytest.raises(type(error)):
            store.get_many([DIGEST, DIGESTS[0]])
        with pytest.raises(type(error)):
            store.put(DIGEST, VALUE)
    assert store.tier_counts()["record"].errors == 4


def test_no_change_fails_for_a_cache() -> None:
    cache, record = FailingTier("cache", LibraryError("gone")), DictTier("record")
    store, memory = remembering(cache, record)
    store.put(DIGEST, VALUE)
    store.remember_many(MANY)
    store.evict(DIGESTS[0])
    assert record.held == {DIGEST: VALUE}
    assert memory.get(DIGEST) == VALUE
    assert memory.get(DIGESTS[0]) is MISSING
    assert store.tier_counts()["cache"].errors == 3


def test_the_state_of_a_breaker_is_shown_with_the_counts() -> None:
    cache = CircuitBroken(FailingTier("cache", LibraryError("gone")), failures=1)
    store = TieredStore([cache, DictTier("record", **{DIGEST: VALUE})])
    assert store.tier_counts()["cache"].state == "closed"
    store.get(DIGEST)
    assert store.tier_counts()["cache"].state == "open"
    assert store.tier_counts()["record"].state is None


# Writing through


def test_put_goes_to_the_record_first_then_from_the_farthest_cache_to_the_nearest() -> None:
    order: list[str] = []

    class Noting(DictTier):
        def put(self, key: str, value: bytes) -> None:
            order.append(self.name)

        def put_many(self, items: Mapping[str, bytes]) -> None:
            order.append(self.name)

    store = TieredStore([Noting("near"), Noting("middle"), Noting("record")])
    store.put(DIGEST, VALUE)
    assert order == ["record", "middle", "near"]


def test_what_the_record_has_stored_itself_goes_to_the_caches_only() -> None:
    store, (near, middle, record) = three()
    store.remember(DIGEST, VALUE)
    store.remember_many(MANY)
    assert near.held == middle.held == MANY | {DIGEST: VALUE}
    assert record.calls == []


def test_what_does_not_match_its_digest_is_put_nowhere() -> None:
    store, tiers = three()
    with pytest.raises(CorruptKernel):
        store.put(DIGEST, VALUE + b"!")
    with pytest.raises(CorruptKernel):
        store.remember_many(MANY | {DIGEST: VALUE + b"!"})
    assert [tier.calls for tier in tiers] == [[], [], []]


# What no tier holds


def test_a_key_that_no_tier_holds_is_not_asked_for_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    record = DictTier("record")
    store, _ = remembering(record)
    now = [100.0]
    monkeypatch.setattr("esper.urza.tiers.time", SimpleNamespace(monotonic=lambda: now[0]))
    assert store.get(DIGEST) is MISSING
    record.held[DIGEST] = VALUE
    now[0] += 59
    assert store.get(DIGEST) is MISSING
    assert store.get_many([DIGEST]) == {}
    assert record.calls == ["get"]
    now[0] += 2
    assert store.get(DIGEST) == VALUE


CHANGES: list[Callable[[TieredStore], None]] = [
    lambda store: store.put(DIGEST, VALUE),
    lambda store: store.remember(DIGEST, VALUE),
    lambda store: store.forget_absent(),
]


@pytest.mark.parametrize("change", CHANGES, ids=["put", "remember", "forget_absent"])
def test_it_is_asked_for_again_at_once_after(change: Callable[[TieredStore], None]) -> None:
    record = DictTier("record")
    store = TieredStore([record], absent_seconds=60)
    assert store.get(DIGEST) is MISSING
    change(store)
    record.held[DIGEST] = VALUE
    assert store.get(DIGEST) == VALUE


def test_the_keys_remembered_as_absent_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.urza.tiers.MOST_ABSENT", 10)
    record = DictTier("record")
    store = TieredStore([record], absent_seconds=60)
    for number in range(100):
        store.get(digest_of(str(number).encode()))
    record.calls.clear()
    for number in range(100):
        store.get(digest_of(str(number).encode()))
    assert len(record.calls) >= 85


# Many threads, and the background


class SlowTier(DictTier):
    """Takes a while for each fetch."""

    def get(self, key: str) -> bytes | Missing:
        time.sleep(0.05)
        return super().get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        time.sleep(0.05)
        return super().get_many(keys)


def test_a_hundred_misses_at_once_make_one_fetch() -> None:
    record = SlowTier("record", **{DIGEST: VALUE})
    store, _ = remembering(record)
    ready = threading.Barrier(100)

    def ask(_: int) -> bytes | Missing:
        ready.wait(LONG)
        return store.get(DIGEST)

    with ThreadPoolExecutor(100) as pool:
        assert list(pool.map(ask, range(100))) == [VALUE] * 100
    assert record.calls == ["get"]
    assert hits_and_misses(store)["record"] == (1, 0)


def test_a_prefetch_returns_at_once_and_fills_the_nearer_tiers() -> None:
    record = SlowTier("record", **MANY)
    store, memory = remembering(record)
    returned = threading.Event()
    store.prefetch(lambda: DIGESTS if returned.wait(LONG) else [])
    returned.set()
    until(lambda: memory.get_many(DIGESTS) == MANY)
    assert record.calls == ["get_many"]
    store.close()


def test_a_prefetch_that_fails_is_silent_and_the_next_one_works() -> None:
    record = FailingTier("record", LibraryError("gone"))
    store, memory = remembering(record, DictTier("farther", **MANY))
    failing, _ = remembering(FailingTier("record", LibraryError("gone")))
    for each in (failing, store):
        each.prefetch(lambda: [DIGEST])
        each.prefetch(lambda: DIGESTS)
    until(lambda: memory.get_many(DIGESTS) == MANY)
    until(lambda: failing.tier_counts()["record"].errors == 2)
    failing.close()
    store.close()


def test_more_prefetches_than_may_wait_are_dropped_and_closing_waits_for_one_only() -> None:
    others = set(threading.enumerate())
    store, _ = remembering(DictTier("record", **MANY))
    begun, goes_on = threading.Event(), threading.Event()
    asked: list[str] = []

    def first() -> list[str]:
        begun.set()
        goes_on.wait(LONG)
        asked.append("first")
        return []

    store.prefetch(first)
    assert begun.wait(LONG)
    for _ in range(5000):
        store.prefetch(lambda: asked.append("another") or [])
    assert store._prefetcher.dropped == 5000 - WAITING
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(store.close)
        until(lambda: store._prefetcher._queue.qsize() <= 1)  # none waits, but the end
        goes_on.set()
        closing.result()
    store.prefetch(lambda: asked.append("later") or [])
    assert asked == ["first"]
    assert "esper-prefetch" not in {thread.name for thread in set(threading.enumerate()) - others}
