"""The backends that each contract suite runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from servers.redis import RedisServer

from esper.urza.database import open_database
from esper.urza.memory import MemoryTier
from esper.urza.redis import RedisTier
from esper.urza.sql import SqlTier
from esper.urza.tiers import Tier


@pytest.fixture(params=["memory", "sqlite-file", "sqlite-memory", "redis", "redis-unix", "redis-tls"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tier]:
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryTier(2**26)
        elif request.param.startswith("redis"):
            wanted = "redis_tls_server" if request.param == "redis-tls" else "redis_server"
            server: RedisServer = request.getfixturevalue(wanted)
            url = server.unix_url if request.param == "redis-unix" else server.url
            # What is promised of time has tests of its own; here the machine may be as slow as it likes.
            yield stack.enter_context(closing(RedisTier(url, seconds=10)))
        else:
            url = f"sqlite:///{tmp_path}/blobs.db" if request.param == "sqlite-file" else "sqlite://"
            yield SqlTier(stack.enter_context(closing(open_database(url))))
