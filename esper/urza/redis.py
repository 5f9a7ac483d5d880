"""The middle tier: bytes in Redis or Valkey, shared by processes and machines, and never waited for long."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

from esper.urza.redis_client import CALL_SECONDS, BoundedRedis
from esper.urza.tiers import MISSING, Missing

TTL_SECONDS: Final = 86_400.0
"""How long Redis holds an entry, give or take a tenth, so that what was put together does not go together."""

MAX_VALUE_BYTES: Final = 4 * 2**20
"""Larger values are not put into Redis: they would hold up everybody on the same server."""


class RedisTier:
    """Entries of one Redis server under a prefix. Threads may share it, and forked children too.

    Every method raises ``TierUnavailable``, and nothing else, when the server does not do as asked within
    ``seconds``; after that its connection is dropped, so no late reply is ever taken for another's.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "esper:",
        seconds: float = CALL_SECONDS,
        ttl: float = TTL_SECONDS,
        max_value_bytes: int = MAX_VALUE_BYTES,
        name: str = "redis",
    ) -> None:
        """``url`` and ``seconds``, the time a call may take, are those of :class:`BoundedRedis`.

        ``prefix`` keeps libraries that share a server apart. Connects to nothing yet; ``ConfigError`` if
        ``url`` is none.
        """
        self._server = BoundedRedis(url, seconds)
        self._prefix = prefix
        self._ttl = ttl
        self._max_value_bytes = max_value_bytes
        self._name = name

    @property
    def name(self) -> str:
        """The name that its hits and misses are counted under."""
        return self._name

    def __repr__(self) -> str:
        return f"RedisTier({self._server.where!r})"

    def get(self, key: str) -> bytes | Missing:
        """The value under ``key``, or ``MISSING``."""
        with self._server.call():
            value = self._server.ask("GET", self._prefix + key)
        return MISSING if value is None else self._checked(value)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of ``keys`` that are held, by one command."""
        if not keys:
            return {}
        with self._server.call():
            values = self._server.ask("MGET", *[self._prefix + key for key in keys])
        if not isinstance(values, list) or len(values) != len(keys):
            raise self._server.unavailable("a reply of the wrong shape")
        return {
            key: self._checked(value) for key, value in zip(keys, values, strict=True) if value is not None
        }

    def put(self, key: str, value: bytes) -> None:
        """Hold ``value`` under ``key`` for about ``ttl``, unless it is too large: then hold nothing."""
        self.put_many({key: value})

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """As :meth:`put` for each, in one exchange."""
        if not items:
            return
        with self._server.call():
            replies = self._server.ask_all([self._holding(key, value) for key, value in items.items()])
        if any(reply != b"OK" and type(reply) is not int for reply in replies):
            raise self._server.unavailable("a reply of the wrong type")

    def delete(self, key: str) -> None:
        """Hold nothing under ``key``."""
        with self._server.call():
            self._server.ask("DEL", self._prefix + key)

    def ping(self) -> None:
        """Ask the server for a sign of life; raises as every method does."""
        with self._server.call():
            self._server.ask("PING")

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _holding(self, key: str, value: bytes) -> tuple[str | bytes | int, ...]:
        """The command after which Redis holds ``value`` under ``key``, or nothing if it is too large."""
        if len(value) > self._max_value_bytes:
            return "DEL", self._prefix + key
        milliseconds = max(1, int(1000 * self._ttl * random.uniform(0.9, 1.1)))
        return "SET", self._prefix + key, value, "PX", milliseconds

    def _checked(self, value: object) -> bytes:
        if type(value) is not bytes:
            raise self._server.unavailable("a reply of the wrong type")
        return value
