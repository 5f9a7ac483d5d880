"""The memory tier's own promises: the bound, and who goes first."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from esper.urza.memory import MemoryTier
from esper.urza.tiers import MISSING


def filled(*keys: str) -> MemoryTier:
    """Room for three entries of ten bytes: keys of one letter, values of nine."""
    tier = MemoryTier(30)
    for key in keys:
        tier.put(key, key.encode() * 9)
    return tier


def held(tier: MemoryTier) -> str:
    return "".join(key for key in "abcdefg" if tier.get(key) is not MISSING)


def test_the_one_that_was_put_first_goes_first() -> None:
    assert held(filled(*"abcd")) == "bcd"


def test_a_get_makes_it_recent() -> None:
    tier = filled(*"abc")
    tier.get("a")
    tier.put("d", b"d" * 9)
    assert held(tier) == "acd"


def test_a_put_makes_it_recent() -> None:
    tier = filled(*"abca")
    tier.put("d", b"d" * 9)
    assert held(tier) == "acd"


def test_one_large_entry_takes_the_room_of_several() -> None:
    tier = filled(*"abc")
    tier.put("d", b"d" * 19)
    assert held(tier) == "cd"
    assert tier.held_bytes == 30


def test_what_exceeds_the_bound_is_not_kept_and_costs_the_others_nothing() -> None:
    tier = filled(*"abc")
    tier.put("d", b"d" * 30)
    assert held(tier) == "abc"


def test_what_exceeds_the_bound_does_not_leave_an_older_value_behind() -> None:
    tier = filled("a")
    tier.put("a", b"x" * 30)
    assert tier.get("a") is MISSING
    assert tier.held_bytes == 0


def test_exactly_the_bound_fits() -> None:
    tier = MemoryTier(30)
    tier.put("a", b"x" * 29)
    assert tier.held_bytes == 30


def test_empty_values_are_bounded_by_their_keys() -> None:
    tier = MemoryTier(30)
    for number in range(100):
        tier.put(f"{number:03}", b"")
    assert tier.held_bytes == 30


def test_no_room_at_all_keeps_nothing() -> None:
    tier = MemoryTier(0)
    tier.put("a", b"")
    assert tier.get("a") is MISSING


def test_less_than_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        MemoryTier(-1)


class SlowToWeigh(bytes):
    """Bytes that let other threads run in the middle of an update of the sum."""

    def __len__(self) -> int:
        time.sleep(0.0005)
        return super().__len__()


def test_threads_in_the_middle_of_an_update_leave_the_sum_right() -> None:
    tier = MemoryTier(30)

    def churn(seed: int) -> None:
        for step in range(25):
            tier.put("abcdefg"[(step + seed) % 7], SlowToWeigh(b"x" * ((step * seed) % 9)))
            tier.delete("abcdefg"[step % 7])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(1, 5)))
    values = [tier.get(key) for key in "abcdefg"]
    assert tier.held_bytes == sum(1 + len(value) for value in values if value is not MISSING) <= 30


def test_readers_without_a_lock_never_see_what_was_not_put() -> None:
    tier = MemoryTier(40 * 110)
    keys = [f"{number:010}" for number in range(100)]
    start = threading.Barrier(8)

    def value(key: str, step: int) -> bytes:
        return key.encode() * (1 + step % 20)

    def write(seed: int) -> None:
        start.wait()
        for step in range(4000):
            key = keys[(step * 7 + seed) % 100]
            tier.put(key, value(key, step))
            if step % 11 == 0:
                tier.delete(keys[(step + seed) % 100])

    def read(seed: int) -> list[str]:
        start.wait()
        wrong = []
        for step in range(8000):
            key = keys[(step * 3 + seed) % 100]
            seen = tier.get(key)
            if seen is not MISSING and (not seen or seen != key.encode() * (len(seen) // 10)):
                wrong.append(f"{key}: {seen[:20]!r}")
        return wrong

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places as often as they can
    try:
        with ThreadPoolExecutor(8) as pool:
            writers = [pool.submit(write, seed) for seed in range(4)]
            readers = [pool.submit(read, seed) for seed in range(4)]
            assert [writer.result() for writer in writers] == [None] * 4
            assert [wrong for reader in readers for wrong in reader.result()] == []
    finally:
        sys.setswitchinterval(interval)
    values = tier.get_many(keys)
    assert 0 < tier.held_bytes == sum(len(key) + len(value) for key, value in values.items()) <= 4400
