"""The backends that each contract suite runs on, bare and wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from servers.redis import RedisServer
from waiting import LONG

from esper.security.envelope import Envelope
from esper.security.keys import KeyRing, new_key
from esper.urza.breaker import CircuitBroken
from esper.urza.database import open_database
from esper.urza.encrypted import Encrypted
from esper.urza.measured import Measured
from esper.urza.memory import MemoryTier
from esper.urza.redis import RedisTier
from esper.urza.sql import SqlTier
from esper.urza.tiers import Tier


def encrypted(tier: Tier) -> Tier:
    return Encrypted(tier, Envelope(KeyRing((new_key(),), "this test")))


def broken_if_it_fails(tier: Tier) -> Tier:
    return CircuitBroken(tier, slow_seconds=60)


def as_a_cache(tier: Tier) -> Tier:
    return encrypted(broken_if_it_fails(Measured(tier)))


WRAPPERS: dict[str, Callable[[Tier], Tier]] = {
    "measured": Measured,
    "circuit-broken": broken_if_it_fails,
    "encrypted": encrypted,
    "all": as_a_cache,
}
BARE = ["memory", "sqlite-file", "sqlite-memory", "redis", "redis-unix", "redis-tls"]
WRAPPED = [f"{name} memory" for name in WRAPPERS] + ["encrypted sqlite-file", "all redis", "all redis-tls"]


@pytest.fixture(params=BARE + WRAPPED)
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tier]:
    wrapper, _, place = request.param.rpartition(" ")
    with ExitStack() as stack:
        bare: Tier
        if place == "memory":
            bare = MemoryTier(2**26)
        elif place.startswith("redis"):
            wanted = "redis_tls_server" if place == "redis-tls" else "redis_server"
            server: RedisServer = request.getfixturevalue(wanted)
            url = server.unix_url if place == "redis-unix" else server.url
            # What is promised of time has tests of its own; here the machine may be as slow as it likes.
            bare = stack.enter_context(closing(RedisTier(url, seconds=LONG)))
        else:
            url = f"sqlite:///{tmp_path}/blobs.db" if place == "sqlite-file" else "sqlite://"
            bare = SqlTier(stack.enter_context(closing(open_database(url))))
        yield WRAPPERS[wrapper](bare) if wrapper else bare
