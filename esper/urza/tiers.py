"""Tiers of bytes, and the store that asks them in order.

A tier maps a key to bytes. The keys of the kernel library are the SHA-256 of the value in hexadecimal, which
is what lets :class:`TieredStore` tell a good copy from a damaged one without knowing what the bytes mean.
A miss is a value here, :data:`MISSING`; it becomes an error only at the edge of the library.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NoReturn, Protocol, TypeVar

from esper.errors import CorruptKernel, EsperError
from esper.urza.flights import Flights
from esper.urza.prefetch import Keys, Prefetcher
from esper.urza.tally import Tally

ABSENT_SECONDS: Final = 1.0
"""How long a key that no tier holds is not asked for again: less than it takes to compile a kernel."""

MOST_ABSENT: Final = 10_000
"""How many such keys are remembered."""


_T = TypeVar("_T")


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


@dataclass(frozen=True, slots=True)
class TierCounts:
    """What a tier was asked since its store was made; ``state`` is that of its circuit breaker, if any."""

    hits: int
    misses: int
    errors: int = 0
    state: str | None = None


class TieredStore:
    """Content-addressed bytes behind a sequence of tiers, nearest first; the last one is the record.

    A hit is checked against its key before it goes anywhere, then put into each earlier tier. A copy that
    fails the check in an earlier tier is dropped, counted as a miss, and the next tier is asked; in the
    record there is nothing left to ask. An earlier tier that fails is counted and passed over: no cache makes
    a fetch fail. Of many threads that miss the same key one fetches. Threads may share a store.
    """

    def __init__(
        self, tiers: Sequence[Tier], *, memory: Tier | None = None, absent_seconds: float = ABSENT_SECONDS
    ) -> None:
        """``tiers`` in the order to ask them; names must differ, or their counts would mix.

        ``memory`` is a tier of this process that this store alone fills, asked before the others. It holds
        only what was checked, and is not checked again. A key that no tier holds is not asked for again for
        ``absent_seconds``, unless it is put here.
        """
        names = [tier.name for tier in (*([memory] if memory else []), *tiers)]
        if not tiers or len(set(names)) != len(names):
            raise ValueError(f"a store needs one or more tiers of different names, not {names}")
        self._memory = memory
        self._caches = tuple(tiers[:-1])
        self._record = tiers[-1]
        self._counts = {name: _Counts() for name in names}
        self._memory_counts = self._counts[names[0]]
        self._absent_seconds = absent_seconds
        self._absent: dict[str, float] = {}
        self._flights = Flights()
        self._prefetcher = Prefetcher(self.get_many)
        self._lock = threading.Lock()

    def get(self, digest: str) -> bytes | Missing:
        """The bytes whose SHA-256 is ``digest``, or ``MISSING`` if no tier holds them.

        Raises:
            CorruptKernel: the record's own copy does not match its digest. It is left where it is.
            LibraryError, StorageError: the record cannot be read.
        """
        if self._memory is not None:
            value = self._memory.get(digest)
            if value is not MISSING:
                self._memory_counts.hits.add()
                return value
        return self._beyond_memory([digest]).get(digest, MISSING)

    def get_many(self, digests: Sequence[str]) -> dict[str, bytes]:
        """As :meth:`get` for each; every tier is asked once, for what those before it lack."""
        digests, found = list(dict.fromkeys(digests)), {}
        if self._memory is not None:
            found = self._memory.get_many(digests)
            for _ in found:
                self._memory_counts.hits.add()
        return found | self._beyond_memory([digest for digest in digests if digest not in found])

    def prefetch(self, digests: Keys) -> None:
        """Have ``digests()`` fetched into nearer tiers in the background; returns at once, never raises."""
        self._prefetcher.ask(digests)

    def put(self, digest: str, value: bytes) -> None:
        """Put ``value`` into the record and then into every cache; raises as the record does."""
        _check({digest: value})
        self._record.put(digest, value)
        self.remember(digest, value)

    def remember(self, digest: str, value: bytes) -> None:
        """Put what the record has just stored, in a transaction of its own, into every cache."""
        self.remember_many({digest: value})

    def remember_many(self, items: Mapping[str, bytes]) -> None:
        """As :meth:`remember` for each, at once; ``CorruptKernel`` if a value does not match its digest."""
        _check(items)
        self._fill(reversed(self._caches), items)
        self._forget(list(items))

    def evict(self, digest: str) -> None:
        """Drop ``digest`` from every tier but the record, whose transactions alone add and remove there."""
        if self._memory is not None:
            self._memory.delete(digest)
        for tier in self._caches:
            self._attempt(tier, tier.delete, digest)
        self._forget([digest])

    def forget_absent(self) -> None:
        """Ask again for every key, also for those that no tier held a moment ago."""
        with self._lock:
            self._absent.clear()

    def tier_counts(self) -> dict[str, TierCounts]:
        """What each tier was asked, in the order of the tiers."""
        states = {tier.name: getattr(tier, "state", None) for tier in (*self._caches, self._record)}
        return {
            name: TierCounts(each.hits.value, each.misses.value, each.errors.value, states.get(name))
            for name, each in self._counts.items()
        }

    def close(self) -> None:
        """End the background thread. The tiers are closed by whoever made them."""
        self._prefetcher.close()

    def _beyond_memory(self, digests: Sequence[str]) -> dict[str, bytes]:
        if self._memory is not None:
            for _ in digests:
                self._memory_counts.misses.add()
        if self._absent:
            now = time.monotonic()
            digests = [digest for digest in digests if self._absent.get(digest, 0.0) <= now]
        return self._flights.share(digests, self._fetch) if digests else {}

    def _fetch(self, digests: list[str]) -> dict[str, bytes]:
        # A flight that landed since memory was asked has put it there.
        found = {} if self._memory is None else self._memory.get_many(digests)
        working: list[Tier] = []
        for tier in (*self._caches, self._record):
            left = [digest for digest in digests if digest not in found]
            if not left:
                break
            held = self._held(tier, left)
            if held is None:
                continue  # nor is it given what the next one holds: a dead server costs one wait, not two
            self._fill(reversed(working), held)
            found |= held
            working.append(tier)
        else:
            self._note_absent([digest for digest in digests if digest not in found])
        return found

    def _held(self, tier: Tier, digests: list[str]) -> dict[str, bytes] | None:
        """What ``tier`` holds of ``digests``, checked; ``None`` if it is a cache that failed."""
        is_record = tier is self._record
        counts = self._counts[tier.name]
        try:
            if len(digests) == 1:
                value = tier.get(digests[0])
                held = {} if value is MISSING else {digests[0]: value}
            else:
                held = tier.get_many(digests)
        except EsperError:
            counts.errors.add()
            if is_record:
                raise
            return None
        good = {}
        for digest in digests:
            value = held.get(digest, MISSING)
            if value is not MISSING and digest_of(value) == digest:
                counts.hits.add()
                good[digest] = value
                continue
            counts.misses.add()
            if value is not MISSING:
                if is_record:
                    _refuse(digest)
                self._attempt(tier, tier.delete, digest)
        return good

    def _fill(self, tiers: Iterable[Tier], items: Mapping[str, bytes]) -> None:
        """Put ``items``, which were checked, into ``tiers`` and into memory."""
        if not items:
            return
        for tier in tiers:
            self._attempt(tier, tier.put_many, items)
        if self._memory is not None:
            self._memory.put_many(items)

    def _attempt(self, cache: Tier, change: Callable[[_T], None], what: _T) -> None:
        try:
            change(what)
        except EsperError:
            self._counts[cache.name].errors.add()

    def _note_absent(self, digests: Sequence[str]) -> None:
        if digests:
            with self._lock:
                if len(self._absent) > MOST_ABSENT:
                    self._absent.clear()
                until = time.monotonic() + self._absent_seconds
                self._absent |= dict.fromkeys(digests, until)

    def _forget(self, digests: Sequence[str]) -> None:
        with self._lock:
            for digest in digests:
                self._absent.pop(digest, None)
        self._flights.forget(digests)


class _Counts:
    def __init__(self) -> None:
        self.hits, self.misses, self.errors = Tally(), Tally(), Tally()


def _check(items: Mapping[str, bytes]) -> None:
    for digest, value in items.items():
        if digest_of(value) != digest:
            _refuse(digest)


def _refuse(digest: str) -> NoReturn:
    raise CorruptKernel(f"the bytes stored under sha256:{digest[:16]} do not match their digest")
