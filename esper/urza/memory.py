"""The nearest tier: bytes in this process, least recently used out first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from esper.urza.tiers import MISSING, Missing


class MemoryTier:
    """A least-recently-used cache bounded in bytes. Threads may share it.

    An entry weighs its key and its value, so that many empty values are bounded too. One that weighs more
    than the whole bound is not kept, rather than emptying the cache for something that will not fit.

    Reading takes no lock: each step is one call into C, which the lock of CPython's interpreter makes whole.
    So this is not made for a build without that lock.
    """

    def __init__(self, max_bytes: int, *, name: str = "memory") -> None:
        """``max_bytes`` bounds the sum over entries of ``len(key) + len(value)``; 0 keeps nothing."""
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be 0 or more, not {max_bytes}")
        self._max_bytes = max_bytes
        self._name = name
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name that its hits and misses are counted under."""
        return self._name

    @property
    def held_bytes(self) -> int:
        """The weight of all entries, at most ``max_bytes``."""
        return self._held

    def get(self, key: str) -> bytes | Missing:
        """The value under ``key``, which is now the most recently used, or ``MISSING``."""
        value = self._entries.get(key, MISSING)
        if value is not MISSING:
            try:
                self._entries.move_to_end(key)
            except KeyError:  # another thread has dropped it since; it was held when it was asked for
                return value
        return value

    def put(self, key: str, value: bytes) -> None:
        """Hold ``value`` under ``key``, dropping the least recently used until everything fits."""
        weight = len(key) + len(value)
        with self._lock:
            self._drop(key)
            if weight > self._max_bytes:
                return
            while self._held + weight > self._max_bytes:
                oldest, dropped = self._entries.popitem(last=False)
                self._held -= len(oldest) + len(dropped)
            self._entries[key] = value
            self._held += weight

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of ``keys`` that are held, which are now the most recently used."""
        return {key: value for key in keys if (value := self.get(key)) is not MISSING}

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """As :meth:`put` for each, in the order of ``items``."""
        for key, value in items.items():
            self.put(key, value)

    def delete(self, key: str) -> None:
        """Hold nothing under ``key``."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        value = self._entries.pop(key, None)
        if value is not None:
            self._held -= len(key) + len(value)
