"""A Redis server killed, stopped, loading, cut off, slow or garbled: no call waits, no byte is ever wrong.

A call that waited for such a server would not fail: it would not end, or end well. How soon it fails was
measured, in docs/decisions/0092.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import cycle

import pytest
from servers.proxy import Proxy
from servers.redis import RedisServer, started
from waiting import LONG, until

from esper.errors import TierUnavailable
from esper.urza import redis_client
from esper.urza.breaker import CircuitBroken
from esper.urza.memory import MemoryTier
from esper.urza.redis import RedisTier
from esper.urza.tiers import MISSING, TieredStore, digest_of

VALUE = bytes(range(256)) * 800  # more than one read of the driver's
DIGEST = digest_of(VALUE)


def fails(call: Callable[[], object]) -> str:
    """``call`` raises; the message."""
    with pytest.raises(TierUnavailable) as caught:
        call()
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every_operation(tier: RedisTier) -> list[Callable[[], object]]:
    return [
        lambda: tier.get(DIGEST),
        lambda: tier.get_many([DIGEST, "b"]),
        lambda: tier.put("b", b"2"),
        lambda: tier.put_many({"b": b"2", "c": b"3"}),
        lambda: tier.delete("b"),
        tier.ping,
    ]


@pytest.fixture
def tier(own_redis: RedisServer) -> Iterator[RedisTier]:
    with closing(RedisTier(own_redis.url)) as tier:
        eventually(lambda: tier.put(DIGEST, VALUE))
        yield tier


def eventually(call: Callable[[], object]) -> object:
    """What ``call`` returns once it does not raise: a machine under load may miss a deadline."""
    returned: list[object] = []

    def returns() -> bool:
        with suppress(TierUnavailable):
            returned.append(call())
        return bool(returned)

    until(returns)
    return returned[0]


# The server


def test_a_killed_server_fails_every_operation_at_once(own_redis: RedisServer, tier: RedisTier) -> None:
    own_redis.kill()
    for operation in every_operation(tier):
        assert f"127.0.0.1:{own_redis.port}" in fails(operation)


def test_a_stopped_server_fails_every_operation_in_time_and_its_late_replies_are_nobodys(
    own_redis: RedisServer, tier: RedisTier
) -> None:
    own_redis.pause()
    for operation in every_operation(tier):
        fails(operation)
    own_redis.resume()
    assert eventually(lambda: tier.get(DIGEST)) == VALUE
    assert eventually(lambda: tier.get("never put")) is MISSING


def test_threads_that_wait_for_a_reply_do_not_take_turns(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_wait = threading.Barrier(16)

    def silence(*_: object) -> int:
        all_wait.wait(LONG)
        raise TimeoutError

    monkeypatch.setattr(redis_client._BoundedSocket, "recv_into", silence)
    with closing(RedisTier(redis_server.url, seconds=LONG)) as tier, ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(tier.get, DIGEST) for _ in range(16)]
        assert {type(call.exception()) for call in calls} == {TierUnavailable}


def test_a_stopped_server_over_tls_cannot_hold_up_the_greeting() -> None:
    for server in started(RedisServer(tls=True)):
        with closing(RedisTier(server.url)) as tier:
            eventually(lambda: tier.put(DIGEST, VALUE))
            server.pause()
            for _ in range(3):  # the second has to greet anew
                fails(lambda: tier.get(DIGEST))
            server.resume()
            assert eventually(lambda: tier.get(DIGEST)) == VALUE


def test_a_server_that_loads_refuses_and_is_used_again_when_it_is_done() -> None:
    slow = ("--key-load-delay", "300", "--loading-process-events-interval-bytes", "1024")
    for server in started(RedisServer(*slow)):
        with closing(RedisTier(server.url, seconds=LONG)) as tier:
            tier.put(DIGEST, VALUE)
            with server.client() as client:
                client.mset({f"filler:{number}": b"x" * 100 for number in range(10_000)})
                client.save()
            server.kill()
            server.start(wait=False)
            until(lambda tier=tier: "loading" in fails(lambda: tier.get(DIGEST)).lower())
            assert eventually(lambda: tier.get(DIGEST)) == VALUE


def test_connections_closed_by_the_server_are_noticed_before_they_are_used(own_redis: RedisServer) -> None:
    with own_redis.client() as client, closing(RedisTier(own_redis.url, seconds=LONG)) as tier:
        tier.put(DIGEST, VALUE)
        for _ in range(10):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert tier.get(DIGEST) == VALUE


# The network


@pytest.fixture
def proxy(own_redis: RedisServer) -> Iterator[Proxy]:
    with Proxy(own_redis.port) as proxy:
        yield proxy


@pytest.fixture
def far(tier: RedisTier, proxy: Proxy) -> Iterator[RedisTier]:
    """The same entries, seen through the proxy."""
    with closing(RedisTier(proxy.url)) as far:
        assert eventually(lambda: far.get(DIGEST)) == VALUE
        yield far


FAULTS: dict[str, Callable[[Proxy], None]] = {
    "late": lambda proxy: setattr(proxy, "delay", 1.0),
    "by drops": lambda proxy: setattr(proxy, "drip", 0.02),
    "cut at once": lambda proxy: proxy.cut_after(0),
    "cut in the length": lambda proxy: proxy.cut_after(3),
    "cut half-way": lambda proxy: proxy.cut_after(100_000),
    "silent at once": lambda proxy: proxy.stall_after(0),
    "silent half-way": lambda proxy: proxy.stall_after(100_000),
    "of another protocol": lambda proxy: setattr(proxy, "garble", lambda piece: b"HTTP/1.1 400 No\r\n\r\n"),
    "more than one": lambda proxy: setattr(proxy, "garble", lambda piece: b"$1\r\nx\r\n$1\r\ny\r\n"),
    "an integer": lambda proxy: setattr(proxy, "garble", lambda piece: b":7\r\n"),
    "a list": lambda proxy: setattr(proxy, "garble", lambda piece: b"*1\r\n$1\r\nx\r\n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reply_that_is(fault: str, far: RedisTier, proxy: Proxy) -> None:
    FAULTS[fault](proxy)
    fails(lambda: far.get(DIGEST))
    fails(lambda: far.get_many([DIGEST, "b"]))
    proxy.heal()
    assert eventually(lambda: far.get(DIGEST)) == VALUE
    assert eventually(lambda: far.get_many([DIGEST, "b"])) == {DIGEST: VALUE}


def test_what_is_told_to_another_protocol_fails_as_what_is_asked(far: RedisTier, proxy: Proxy) -> None:
    def tell() -> None:
        with far._server.call():
            far._server.send(b"PING\r\n", 1)

    eventually(tell)
    FAULTS["of another protocol"](proxy)
    fails(tell)


def test_of_garbled_replies_the_store_returns_no_wrong_byte(proxy: Proxy, own_redis: RedisServer) -> None:
    values = [os.urandom(size) for size in (1, 10, 100, 1000, 100_000)]
    digests = [digest_of(value) for value in values]
    record = MemoryTier(2**24, name="record")
    record.put_many(dict(zip(digests, values, strict=True)))
    chance = random.Random(7)

    def garble(piece: bytes) -> bytes:
        changed = bytearray(piece)
        for _ in range(chance.choice([1, 1, 3])):
            place = chance.randrange(min(len(changed), chance.choice([4, 40, 10**6])))
            changed[place] = chance.choice([*b"$*+-:0123456789\r\n", chance.randrange(256)])
        return bytes(changed) if chance.random() < 0.9 else bytes(changed[: len(changed) // 2])

    with closing(RedisTier(own_redis.url, seconds=LONG)) as near:
        near.put_many(dict(zip(digests, values, strict=True)))
    with closing(RedisTier(proxy.url, seconds=0.02)) as tier:
        store = TieredStore([tier, record])
        proxy.garble = garble
        for step in range(300):
            wanted = step % len(values)
            if step % 3:
                assert store.get(digests[wanted]) == values[wanted]
            else:
                assert store.get_many(digests) == dict(zip(digests, values, strict=True))
        counts = store.tier_counts()["redis"]
        assert counts.errors + counts.misses > 100  # the proxy did garble
        proxy.heal()
        assert [store.get(digest) for digest in digests] == values


def test_what_is_left_of_a_refused_batch_is_not_taken_for_the_next_reply(
    own_redis: RedisServer, tier: RedisTier, proxy: Proxy
) -> None:
    eventually(lambda: tier.put("b", b"2"))
    with own_redis.client() as client, closing(RedisTier(proxy.url, seconds=LONG)) as far:
        far.ping()
        client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~esper:b")
        proxy.drip = 0.005  # the refusal comes first, the second reply after the next question
        with pytest.raises(TierUnavailable, match="NOPERM"):
            far.put_many({"a": b"1", "b": b"3"})
        assert far.get("b") == b"3"


# The whole: a store that trains on


def test_a_store_goes_on_while_redis_is_gone_and_uses_it_again(own_redis: RedisServer) -> None:
    record = MemoryTier(2**24, name="record")
    values = {digest_of(str(number).encode()): str(number).encode() for number in range(2000)}
    record.put_many(values)
    with closing(RedisTier(own_redis.url)) as tier:
        breaker = CircuitBroken(tier, slow_seconds=0.2)
        store = TieredStore([breaker, record])
        digests = cycle(values)

        def goes_on_until(true: Callable[[], bool]) -> None:
            def step() -> bool:
                digest = next(digests)
                assert store.get(digest) == values[digest]
                return true()

            until(step)

        for away, back in ((own_redis.kill, own_redis.start), (own_redis.pause, own_redis.resume)):
            goes_on_until(lambda: breaker.state == "closed")
            away()
            goes_on_until(lambda: store.tier_counts()["redis"].state == "open")
            refused = breaker.counts().refused
            goes_on_until(lambda refused=refused: breaker.counts().refused > refused + 10)
            back()
        goes_on_until(lambda: breaker.state == "closed")


def test_threads_and_faults_together_never_give_a_wrong_byte(own_redis: RedisServer) -> None:
    values = {digest_of(value): value for value in (str(number).encode() * 50 for number in range(50))}
    digests = list(values)
    record = MemoryTier(2**24, name="record")
    record.put_many(values)
    stop = threading.Event()
    with closing(RedisTier(own_redis.url)) as tier:
        store = TieredStore([CircuitBroken(tier, cooldown=0.05), record])

        done = [0] * 4

        def fetch(seed: int) -> None:
            while not stop.is_set():
                digest = digests[(seed * 31 + done[seed]) % 50]
                assert store.get(digest) == values[digest]
                done[seed] += 1

        def each_gets_on() -> None:
            before = list(done)
            until(lambda: all(now > then + 10 for now, then in zip(done, before, strict=True)))

        with ThreadPoolExecutor(4) as pool:
            fetching = [pool.submit(fetch, seed) for seed in range(4)]
            try:
                for _ in range(3):
                    for happens in (own_redis.pause, own_redis.resume, own_redis.kill, own_redis.start):
                        each_gets_on()
                        happens()
                until(lambda: store.tier_counts()["redis"].hits > 0)
            finally:
                stop.set()
            for each in fetching:
                each.result()
