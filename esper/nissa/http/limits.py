"""How much one client may ask for: requests a second, and connections at a time."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Final

MOST_KEYS: Final = 10_000
"""Whom a limit remembers; beyond that, those that have been quiet longest are forgotten."""


class RateLimit:
    """A token bucket for each key: ``burst`` requests at once, then ``per_second``. For one thread."""

    def __init__(self, per_second: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str) -> float:
        """0 if ``key`` may go on, else the seconds until it may ask again."""
        now = self._clock()
        left, since = self._buckets.pop(key, (float(self._burst), now))
        left = min(self._burst, left + (now - since) * self._per_second)
        allowed = left >= 1
        self._buckets[key] = (left - allowed, now)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_second


class ConnectionLimit:
    """At most ``most`` connections, and ``most_per_address`` from each that is not loopback."""

    def __init__(self, most: int = 1024, most_per_address: int = 64) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._open: Counter[str] = Counter()
        self._total = 0

    def admit(self, address: str) -> str | None:
        """Count one more connection, and say as what to ``release`` it; None if there may be none."""
        key = client_key(address)
        if self._total >= self._most:
            return None
        if self._open[key] >= self._most_per_address and not is_loopback_address(address):
            return None
        self._total += 1
        self._open[key] += 1
        return key

    def release(self, key: str) -> None:
        """Count one less."""
        self._total -= 1
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


@lru_cache(maxsize=1024)
def client_key(address: str) -> str:
    """What a client is counted as: its address, or of IPv6 the 64 bits that it has been given."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


@lru_cache(maxsize=1024)
def is_loopback_address(address: str) -> bool:
    """Whether ``address`` is one that only this machine can have."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
