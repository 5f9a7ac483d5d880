"""Tiers of bytes, and the store that asks them in order.

A tier maps a key to bytes. The keys of the kernel library are the SHA-256 of the value in hexadecimal, which
is what lets :class:`TieredStore` tell a good copy from a damaged one without knowing what the bytes mean.
A miss is a value here, :data:`MISSING`; it becomes an error only at the edge of the library.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, Protocol

from esper.errors import CorruptKernel


class Missing(Enum):
    """The type of :data:`MISSING`; an enum, so that a type checker narrows on ``is MISSING``."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return self.value


MISSING: Final = Missing.MISSING
"""What :meth:`Tier.get` returns for a key that it does not hold; equal to no bytes, not even ``b""``."""


class Tier(Protocol):
    """A place that holds bytes under a key. Any number of threads may share one.

    Every method may raise ``StorageError`` (disk full, read-only, I/O error) or ``LibraryError`` (the place
    cannot be used); none raises for a key that is not there.
    """

    @property
    def name(self) -> str:
        """The name that its hits and misses are counted under."""
        ...

    def get(self, key: str) -> bytes | Missing:
        """The value last put under ``key`` and not yet dropped, or ``MISSING``."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Hold ``value`` under ``key``, in place of any other. A cache may drop it at any time."""
        ...

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of ``keys`` that are held, asked for at once; the others are absent."""
        ...

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """As :meth:`put` for each, at once. After an error a record holds none of them, a cache any."""
        ...

    def delete(self, key: str) -> None:
        """Hold nothing under ``key``."""
        ...


def digest_of(value: bytes) -> str:
    """The SHA-256 of ``value``, hexadecimal."""
    return hashlib.sha256(value).hexdigest()


class TieredStore:
    """Content-addressed bytes behind a sequence of tiers, nearest first; the last one is the record.

    A hit is checked against its key before it goes anywhere, then put into each earlier tier. A copy that
    fails the check in an earlier tier is dropped, counted as a miss, and the next tier is asked; in the
    record there is nothing left to ask. Threads may share a store.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        """``tiers`` in the order to ask them; names must differ, or their counts would mix."""
        names = [tier.name for tier in tiers]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a store needs one or more tiers of different names, not {names}")
        self._tiers = tuple(tiers)
        self._counts = {name: [0, 0] for name in names}
        self._lock = threading.Lock()

    def get(self, digest: str) -> bytes | Missing:
        """The bytes whose SHA-256 is ``digest``, or ``MISSING`` if no tier holds them.

        Raises:
            CorruptKernel: the record's own copy does not match its digest. It is left where it is.
        """
        for position, tier in enumerate(self._tiers):
            value = tier.get(digest)
            good = value is not MISSING and digest_of(value) == digest
            self._count(tier.name, good)
            if value is MISSING:
                continue
            if good:
                for earlier in self._tiers[:position]:
                    earlier.put(digest, value)
                return value
            if tier is self._tiers[-1]:
                raise CorruptKernel(f"the bytes stored under sha256:{digest[:16]} do not match their digest")
            tier.delete(digest)
        return MISSING

    def evict(self, digest: str) -> None:
        """Drop ``digest`` from every tier but the record, whose transactions alone add and remove there."""
        for tier in self._tiers[:-1]:
            tier.delete(digest)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Hits and misses of each tier since the store was made, in the order of the tiers."""
        with self._lock:
            return {name: (hits, misses) for name, (hits, misses) in self._counts.items()}

    def _count(self, name: str, hit: bool) -> None:
        with self._lock:
            self._counts[name][0 if hit else 1] += 1
