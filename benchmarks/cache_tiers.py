"""A get of 20 KB through three tiers, 90 % found in memory, 9 % in Redis, 1 % in SQLite, beside peers.

dogpile.cache and cashews are arranged alike: a region or cache in memory, one in Redis, the same record
behind them, and what is found goes into those before. diskcache is one tier on disk in place of memory and
Redis. Ours also checks against its digest what comes from outside memory, and counts; dogpile.cache is there
a second time with that check, which the library cannot do without. Goal: ahead of each.

Run: python benchmarks/cache_tiers.py [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol

import cashews
import diskcache
from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

from esper.urza.breaker import CircuitBroken
from esper.urza.database import open_database
from esper.urza.memory import MemoryTier
from esper.urza.redis import RedisTier
from esper.urza.sql import SqlTier
from esper.urza.tiers import TieredStore, digest_of

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from servers.redis import RedisServer

GETS = 1000
IN_REDIS, IN_SQL = GETS * 9 // 100, GETS // 100
VALUES = {digest_of(value): value for value in (os.urandom(20_000) for _ in range(200))}
KEYS = list(VALUES)
COLD, COLDEST = KEYS[:IN_REDIS], KEYS[IN_REDIS : IN_REDIS + IN_SQL]
HOT = KEYS[IN_REDIS + IN_SQL :]


class Way(Protocol):
    """One arrangement of tiers."""

    def prepare(self) -> None:
        """Have all but the cold keys in memory, all but the coldest in Redis."""

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Get each of ``keys`` in turn."""


class Ours:
    """The tiers as a library has them, the circuit breaker among them."""

    def __init__(self, server: RedisServer, folder: Path, stack: ExitStack) -> None:
        database = stack.enter_context(closing(open_database(f"sqlite:///{folder}/ours.db")))
        self.memory, self.record = MemoryTier(2**24), SqlTier(database)
        self.redis = stack.enter_context(closing(RedisTier(server.url, seconds=5)))
        self.record.put_many(VALUES)
        self.store = TieredStore([CircuitBroken(self.redis, slow_seconds=5), self.record], memory=self.memory)

    def prepare(self) -> None:
        """As the protocol says."""
        self.store.remember_many(VALUES)
        for key in (*COLD, *COLDEST):
            self.memory.delete(key)
        for key in COLDEST:
            self.redis.delete(key)

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As the protocol says."""
        get: Callable[[str], Any] = self.store.get
        return [get(key) for key in keys]


class Dogpile:
    """Two regions of dogpile.cache, then SQLite."""

    def __init__(self, server: RedisServer, select: Callable[[str], bytes], *, check: bool = False) -> None:
        self.memory = make_region().configure("dogpile.cache.memory")
        self.redis = make_region().configure(
            "dogpile.cache.redis", arguments={"host": "127.0.0.1", "port": server.port, "db": 2 + check}
        )
        self.select = select
        self.check = check

    def prepare(self) -> None:
        """As the protocol says."""
        for region in (self.memory, self.redis):
            region.set_multi(VALUES)
            region.delete_multi(COLDEST)
        self.memory.delete_multi(COLD)

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As the protocol says."""
        return [self.get(key) for key in keys]

    def get(self, key: str) -> bytes:
        """One of them."""
        value: Any = self.memory.get(key)
        if value is NO_VALUE:
            value = self.redis.get(key)
            if value is NO_VALUE:
                value = self.select(key)
                self.redis.set(key, value)
            if self.check and digest_of(value) != key:
                raise ValueError(key)
            self.memory.set(key, value)
        return value


class Cashews:
    """Two caches of cashews, then SQLite; all gets of a round in one run of the loop."""

    def __init__(self, server: RedisServer, select: Callable[[str], bytes]) -> None:
        self.loop = asyncio.new_event_loop()
        self.memory, self.redis = cashews.Cache(), cashews.Cache()
        self.memory.setup("mem://", size=1000)
        self.redis.setup(f"redis://127.0.0.1:{server.port}/1", client_side=False)
        self.select = select

    def prepare(self) -> None:
        """As the protocol says."""

        async def fill() -> None:
            for cache in (self.memory, self.redis):
                await cache.set_many(VALUES)
                await cache.delete_many(*COLDEST)
            await self.memory.delete_many(*COLD)

        self.loop.run_until_complete(fill())

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As the protocol says."""

        async def get(key: str) -> Any:
            value = await self.memory.get(key)
            if value is None:
                value = await self.redis.get(key)
                if value is None:
                    value = self.select(key)
                    await self.redis.set(key, value)
                await self.memory.set(key, value)
            return value

        async def all_of_them() -> list[bytes | None]:
            return [await get(key) for key in keys]

        return self.loop.run_until_complete(all_of_them())

    def close(self) -> None:
        """Close the connections and the loop."""

        async def end() -> None:
            await self.memory.close()
            await self.redis.close()

        self.loop.run_until_complete(end())
        self.loop.close()


class Disk:
    """diskcache, then SQLite."""

    def __init__(self, folder: Path, select: Callable[[str], bytes]) -> None:
        self.cache = diskcache.Cache(str(folder / "disk"))
        self.select = select

    def prepare(self) -> None:
        """As the protocol says, with one tier for two."""
        for key in HOT + COLD:
            self.cache.set(key, VALUES[key])
        for key in COLDEST:
            self.cache.delete(key)

    def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """As the protocol says."""
        return [self.get(key) for key in keys]

    def get(self, key: str) -> bytes:
        """One of them."""
        value: bytes | None = self.cache.get(key)
        if value is None:
            value = self.select(key)
            self.cache.set(key, value)
        return value


def main() -> None:
    """Compare, print, and exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    chance = random.Random(0)
    keys = [*COLD, *COLDEST, *(chance.choice(HOT) for _ in range(GETS - IN_REDIS - IN_SQL))]
    chance.shuffle(keys)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(closing(RedisServer()))
        server.start()
        ours = Ours(server, folder, stack)
        select: Callable[[str], Any] = ours.record.get
        ways: dict[str, Way] = {
            "ours": ours,
            "dogpile.cache": Dogpile(server, select),
            "dogpile.cache, checked": Dogpile(server, select, check=True),
            "cashews": stack.enter_context(closing(Cashews(server, select))),
            "diskcache": Disk(folder, select),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            # In another order each time: what one leaves behind, such as writes to disk, slows the next.
            order = chance.sample(list(ways), len(ways))
            for name in order:
                way = ways[name]
                way.prepare()
                began = time.perf_counter()
                values = way.read(keys)
                seconds[name].append(time.perf_counter() - began)
                assert values == [VALUES[key] for key in keys], name
        counts = ours.store.tier_counts()
        assert counts["redis"].hits == rounds * IN_REDIS, counts
        assert counts["sql"].hits == rounds * IN_SQL, counts
    print("gets of 20 KB, 90 % from memory, 9 % from Redis, 1 % from SQLite, median us a get by the wall")
    reached = True
    for name, times in seconds.items():
        ratio = statistics.median(own / peer for own, peer in zip(seconds["ours"], times, strict=True))
        print(f"  {name}: {1e6 * statistics.median(times) / GETS:.1f}, ours takes {ratio:.2f} of it")
        reached &= name == "ours" or ratio < 1
    print(f"  goal: ahead of each {'reached' if reached else 'MISSED'}")
    raise SystemExit(not reached)


if __name__ == "__main__":
    main()
