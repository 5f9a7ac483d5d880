"""What every tier promises, whatever it is made of."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from esper.urza.tiers import MISSING, Tier


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_a_key_never_put_is_missing(tier: Tier) -> None:
    assert tier.get(key(0)) is MISSING


@pytest.mark.parametrize("value", [b"", b"\x00", bytes(range(256)), b"x" * 2**20], ids=len)
def test_a_value_comes_back_byte_for_byte(tier: Tier, value: bytes) -> None:
    tier.put(key(0), value)
    assert tier.get(key(0)) == value
    assert type(tier.get(key(0))) is bytes


def test_a_second_put_replaces_the_first(tier: Tier) -> None:
    tier.put(key(0), b"first")
    tier.put(key(0), b"second, longer")
    assert tier.get(key(0)) == b"second, longer"
    tier.put(key(0), b"")
    assert tier.get(key(0)) == b""


def test_a_deleted_key_is_missing_and_the_others_are_not(tier: Tier) -> None:
    tier.put(key(0), b"zero")
    tier.put(key(1), b"one")
    tier.delete(key(0))
    assert tier.get(key(0)) is MISSING
    assert tier.get(key(1)) == b"one"


def test_a_deleted_key_can_be_put_again(tier: Tier) -> None:
    tier.put(key(0), b"zero")
    tier.delete(key(0))
    tier.put(key(0), b"again")
    assert tier.get(key(0)) == b"again"


def test_deleting_what_is_not_there_is_no_error(tier: Tier) -> None:
    tier.delete(key(0))
    assert tier.get(key(0)) is MISSING


def test_of_many_keys_those_held_come_back_and_the_others_are_absent(tier: Tier) -> None:
    tier.put(key(0), b"zero")
    tier.put(key(1), b"")
    tier.put(key(2), b"two")
    assert tier.get_many([key(0), key(9), key(1), key(0)]) == {key(0): b"zero", key(1): b""}
    assert tier.get_many([key(8), key(9)]) == {}
    assert tier.get_many([]) == {}


def test_many_put_at_once_come_back_one_by_one_and_at_once(tier: Tier) -> None:
    items = {key(number): bytes([number]) * number for number in range(150)}
    tier.put(key(3), b"older")
    tier.put_many(items)
    tier.put_many({})
    assert {name: tier.get(name) for name in items} == items
    assert tier.get_many(list(items)) == items
    tier.delete(key(3))
    assert tier.get_many([key(3), key(4)]) == {key(4): items[key(4)]}


def test_it_has_a_name_to_be_counted_under(tier: Tier) -> None:
    assert tier.name
    assert tier.name == tier.name.lower().strip()


def test_threads_never_see_a_torn_value_or_that_of_another_key(tier: Tier) -> None:
    start = threading.Barrier(6)

    def work(seed: int) -> list[str]:
        start.wait()
        wrong = []
        for step in range(40):
            number = (seed * 7 + step) % 5
            tier.put(key(number), bytes([number]) * (1 + step))
            seen = tier.get(key((number + 1) % 5))
            if seen is not MISSING and set(seen) != {(number + 1) % 5}:
                wrong.append(f"key {number + 1}: {seen[:8]!r}")
            if step % 9 == 0:
                tier.delete(key(number))
        return wrong

    with ThreadPoolExecutor(6) as pool:
        assert [wrong for wrongs in pool.map(work, range(6)) for wrong in wrongs] == []
