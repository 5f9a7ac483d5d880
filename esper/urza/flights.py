"""Fetches that are under way, so that whoever asks for the same waits instead of fetching again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

_Fetch = Callable[[list[str]], Mapping[str, bytes]]


class _Flight:
    """One key's fetch, its lock held until it is over: cheaper than an event, and seldom waited for."""

    __slots__ = ("error", "landed", "lock", "value")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.landed = False
        self.value: bytes | None = None
        self.error: Exception | None = None


class Flights:
    """Makes one fetch of many at once for the same key. Threads share it; that is what it is for."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}
        self._lock = threading.Lock()

    def share(self, keys: Sequence[str], fetch: _Fetch) -> dict[str, bytes]:
        """What ``fetch`` finds for ``keys``; those that another thread is fetching are waited for instead.

        ``fetch`` is called with the others, at once, and its error reaches everybody who waits for them.
        """
        found: dict[str, bytes] = {}
        left = list(dict.fromkeys(keys))
        while left:
            mine: dict[str, _Flight] = {}
            others: dict[str, _Flight] = {}
            try:
                with self._lock:
                    for key in left:
                        if flight := self._flights.get(key):
                            others[key] = flight
                        else:
                            mine[key] = self._flights[key] = _Flight()
                # First our own: two threads that wait for each other's keys then never wait for ever.
                found |= _lead(mine, fetch)
            finally:
                self._land(mine)
            left = []
            for key, flight in others.items():
                with flight.lock:
                    pass
                if flight.error is not None:
                    raise flight.error
                if not flight.landed:
                    left.append(key)
                elif flight.value is not None:
                    found[key] = flight.value
        return found

    def forget(self, keys: Sequence[str]) -> None:
        """Let nobody join the fetches of ``keys`` any more: what they bring may be out of date."""
        with self._lock:
            for key in keys:
                self._flights.pop(key, None)

    def _land(self, mine: Mapping[str, _Flight]) -> None:
        with self._lock:
            for key, flight in mine.items():
                flight.lock.release()  # one that has not landed was interrupted: who waited then fetches
                if self._flights.get(key) is flight:
                    del self._flights[key]


def _lead(mine: Mapping[str, _Flight], fetch: _Fetch) -> Mapping[str, bytes]:
    if not mine:
        return {}
    try:
        found = fetch(list(mine))
    except Exception as error:
        for flight in mine.values():
            flight.error = error
        raise
    for key, flight in mine.items():
        flight.value, flight.landed = found.get(key), True
    return found
