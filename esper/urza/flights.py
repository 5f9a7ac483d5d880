"""Fetches that are under way, so that whoever asks for the same waits instead of fetching again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future

_Flight = Future[bytes | None]
_Fetch = Callable[[list[str]], Mapping[str, bytes]]


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
            try:
                with self._lock:
                    others = {key: flight for key in left if (flight := self._flights.get(key))}
                    mine = {key: Future() for key in left if key not in others}
                    self._flights |= mine
                # First our own: two threads that wait for each other's keys then never wait for ever.
                found |= _lead(mine, fetch)
            finally:
                self._land(mine)
            left = []
            for key, flight in others.items():
                try:
                    value = flight.result()
                except CancelledError:
                    left.append(key)
                    continue
                if value is not None:
                    found[key] = value
        return found

    def forget(self, keys: Sequence[str]) -> None:
        """Let nobody join the fetches of ``keys`` any more: what they bring may be out of date."""
        with self._lock:
            for key in keys:
                self._flights.pop(key, None)

    def _land(self, mine: Mapping[str, _Flight]) -> None:
        with self._lock:
            for key, flight in mine.items():
                flight.cancel()  # still pending only if this thread was interrupted: others then fetch
                if self._flights.get(key) is flight:
                    del self._flights[key]


def _lead(mine: Mapping[str, _Flight], fetch: _Fetch) -> Mapping[str, bytes]:
    if not mine:
        return {}
    try:
        found = fetch(list(mine))
    except Exception as error:
        for flight in mine.values():
            flight.set_exception(error)
        raise
    for key, flight in mine.items():
        flight.set_result(found.get(key))
    return found
