"""A Redis server killed, stopped, loading, cut off, slow or garbled: no call waits, no byte is ever wrong.

The limits on time here are those that a loaded machine keeps; docs/decisions/0092 has what was measured.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
import redis
from servers.proxy import Proxy
from servers.redis import RedisServer, started

from esper.errors import TierUnavailable
from esper.urza.breaker import CircuitBroken
from esper.urza.memory import MemoryTier
from esper.urza.redis import RedisTier
from esper.urza.tiers import MISSING, TieredStore, digest_of

LIMIT = 0.5
VALUE = bytes(range(256)) * 800  # more than one read of the driver's
DIGEST = digest_of(VALUE)


@contextmanager
def quick() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT


def fails(call: Callable[[], object]) -> str:
    """``call`` raises, in time; the message."""
    with quick(), pytest.raises(TierUnavailable) as caught:
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


def eventually(call: Callable[[], object], seconds: float = 5.0) -> object:
    """What ``call`` returns once it does not raise: a machine under load may miss a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except TierUnavailable:
            if time.monotonic() > deadline:
                raise


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


def test_a_stopped_server_holds_up_no_thread(own_redis: RedisServer, tier: RedisTier) -> None:
    own_redis.pause()
    with quick(), ThreadPoolExecutor(16) as pool:
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
        with closing(RedisTier(server.url)) as tier:
            eventually(lambda: tier.put(DIGEST, VALUE))
            with server.client() as client:
                client.mset({f"filler:{number}": b"x" * 100 for number in range(10_000)})
                client.save()
            server.kill()
            server.start(wait=False)
            refused = 0
            deadline = time.monotonic() + 30
            while True:
                with quick():
                    try:
                        assert tier.get(DIGEST) == VALUE
                        break
                    except TierUnavailable as error:
                        refused += "loading" in str(error).lower()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert refused > 10


def test_a_server_busy_with_something_else_is_not_waited_for(own_redis: RedisServer, tier: RedisTier) -> None:
    def be_busy() -> None:
        with redis.Redis(port=own_redis.port, socket_timeout=30) as client:
            client.execute_command("DEBUG", "SLEEP", "1")

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(be_busy)
        time.sleep(0.2)
        fails(lambda: tier.get(DIGEST))
        busy.result()
    assert eventually(lambda: tier.get(DIGEST)) == VALUE


def test_connections_closed_by_the_server_are_noticed_before_they_are_used(
    own_redis: RedisServer, tier: RedisTier
) -> None:
    with own_redis.client() as client:
        for _ in range(10):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert eventually(lambda: tier.get(DIGEST)) == VALUE


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

    with closing(RedisTier(proxy.url, seconds=0.02)) as tier:
        eventually(lambda: tier.put_many(dict(zip(digests, values, strict=True))))
        store = TieredStore([tier, record])
        proxy.garble = garble
        for step in range(300):
            wanted = step % len(values)
            with quick():
                if step % 3:
                    assert store.get(digests[wanted]) == values[wanted]
                else:
                    assert store.get_many(digests) == dict(zip(digests, values, strict=True))
        counts = store.tier_counts()["redis"]
        assert counts.errors + counts.misses > 100  # the proxy did garble
        proxy.heal()
        eventually(tier.ping)
        assert [store.get(digest) for digest in digests] == values


def test_what_is_left_of_a_refused_batch_is_not_taken_for_the_next_reply(
    own_redis: RedisServer, tier: RedisTier, proxy: Proxy
) -> None:
    tier.put("b", b"2")
    with own_redis.client() as client, closing(RedisTier(proxy.url, seconds=5)) as far:
        far.ping()
        client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~esper:b")
        proxy.drip = 0.005  # the refusal comes first, the second reply after the next question
        with pytest.raises(TierUnavailable, match="NoPermission"):
            far.put_many({"a": b"1", "b": b"3"})
        assert far.get("b") == b"3"


# The whole: a store that trains on


def test_a_store_goes_on_while_redis_is_gone_and_uses_it_again_within_5_seconds(
    own_redis: RedisServer,
) -> None:
    record = MemoryTier(2**24, name="record")
    values = {digest_of(str(number).encode()): str(number).encode() for number in range(2000)}
    record.put_many(values)
    with closing(RedisTier(own_redis.url)) as tier:
        breaker = CircuitBroken(tier, slow_seconds=0.2)
        store = TieredStore([breaker, record])
        digests = iter(values)

        def steps(seconds: float, done: Callable[[], bool] = lambda: False) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end and not done():
                digest = next(digests)
                with quick():
                    assert store.get(digest) == values[digest]
                time.sleep(0.005)

        steps(0.2)
        for away, back in ((own_redis.kill, own_redis.start), (own_redis.pause, own_redis.resume)):
            away()
            steps(5, lambda: breaker.state == "open")
            assert store.tier_counts()["redis"].state == "open"
            steps(0.3)
            back()
            steps(5, lambda: breaker.state == "closed")
            assert breaker.state == "closed"
        assert breaker.counts().opened >= 2
        assert breaker.counts().refused > 10


def test_threads_and_faults_together_never_give_a_wrong_byte(own_redis: RedisServer) -> None:
    values = {digest_of(value): value for value in (str(number).encode() * 50 for number in range(50))}
    digests = list(values)
    record = MemoryTier(2**24, name="record")
    record.put_many(values)
    stop = threading.Event()
    with closing(RedisTier(own_redis.url)) as tier:
        store = TieredStore([CircuitBroken(tier, cooldown=0.05), record])

        def fetch(seed: int) -> int:
            count = 0
            while not stop.is_set():
                digest = digests[(seed * 31 + count) % 50]
                with quick():
                    assert store.get(digest) == values[digest]
                count += 1
            return count

        with ThreadPoolExecutor(4) as pool:
            fetching = [pool.submit(fetch, seed) for seed in range(4)]
            try:
                for _ in range(3):
                    time.sleep(0.1)
                    own_redis.pause()
                    time.sleep(0.1)
                    own_redis.resume()
                    time.sleep(0.1)
                    own_redis.kill()
                    time.sleep(0.05)
                    own_redis.start()
            finally:
                stop.set()
            assert min(each.result() for each in fetching) > 10
        assert store.tier_counts()["redis"].hits > 0
