"""The store that asks tiers in order: promotion, counts, and copies that do not match their digest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from esper.errors import CorruptKernel
from esper.urza.tiers import MISSING, Missing, TieredStore, digest_of

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

    def delete(self, key: str) -> None:
        self.calls.append("delete")
        self.held.pop(key, None)


def three(*holders: int, value: bytes = VALUE) -> tuple[TieredStore, list[DictTier]]:
    tiers = [DictTier(name) for name in ("near", "middle", "record")]
    for index in holders:
        tiers[index].held[DIGEST] = value
    return TieredStore(tiers), tiers


def test_digest_is_sha256_in_hexadecimal() -> None:
    assert digest_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_hit_in_the_record_is_put_into_each_earlier_tier() -> None:
    store, tiers = three(2)
    assert store.get(DIGEST) == VALUE
    assert [tier.held for tier in tiers] == [{DIGEST: VALUE}] * 3
    assert store.counts() == {"near": (0, 1), "middle": (0, 1), "record": (1, 0)}


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
    assert store.counts() == {"near": (1, 1), "middle": (0, 1), "record": (1, 0)}


def test_what_no_tier_holds_is_missing_and_no_tier_is_given_anything() -> None:
    store, tiers = three()
    assert store.get(DIGEST) is MISSING
    assert [tier.calls for tier in tiers] == [["get"]] * 3
    assert store.counts() == {"near": (0, 1), "middle": (0, 1), "record": (0, 1)}


def test_empty_bytes_are_a_hit() -> None:
    record = DictTier("record", **{digest_of(b""): b""})
    assert TieredStore([DictTier("near"), record]).get(digest_of(b"")) == b""


def test_a_damaged_copy_in_an_earlier_tier_is_replaced_from_the_next() -> None:
    store, (near, middle, _) = three(1, 2)
    near.held[DIGEST] = VALUE[:-1]
    assert store.get(DIGEST) == VALUE
    assert near.calls == ["get", "delete", "put"]
    assert near.held[DIGEST] == middle.held[DIGEST] == VALUE
    assert store.counts()["near"] == (0, 1)


def test_a_damaged_record_is_an_error_that_is_neither_spread_nor_removed() -> None:
    store, (near, middle, record) = three(2, value=VALUE + b"!")
    with pytest.raises(CorruptKernel, match=DIGEST[:16]):
        store.get(DIGEST)
    assert near.held == middle.held == {}
    assert record.held == {DIGEST: VALUE + b"!"}
    assert store.counts()["record"] == (0, 1)


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
    store, _ = three(2)
    store.get(DIGEST)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [store.get(DIGEST) for _ in range(500)], range(8)))
    assert store.counts()["near"] == (4000, 1)
