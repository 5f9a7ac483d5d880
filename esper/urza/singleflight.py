"""A tier that many threads ask at once for the same key, and that is asked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esper.urza.flights import Flights
from esper.urza.tiers import MISSING, Missing, Tier
from esper.urza.wrapping import WrappedTier


class SingleFlight(WrappedTier):
    """A tier of which no two threads fetch the same key at the same time: one does, the others wait for it.

    An error of the fetch reaches all of them. Different keys do not wait for each other, except that keys
    asked for together arrive together. After a put or a delete nobody is given what was fetched before it.
    """

    def __init__(self, tier: Tier) -> None:
        """Over ``tier``, which whoever made it closes."""
        super().__init__(tier)
        self._flights = Flights()

    def get(self, key: str) -> bytes | Missing:
        """The value under ``key``, or ``MISSING``."""
        return self._flights.share([key], self._one).get(key, MISSING)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of ``keys`` that are held."""
        return self._flights.share(keys, self._tier.get_many)

    def put(self, key: str, value: bytes) -> None:
        """Hold ``value`` under ``key``."""
        try:
            self._tier.put(key, value)
        finally:
            self._flights.forget([key])

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """As :meth:`put` for each."""
        try:
            self._tier.put_many(items)
        finally:
            self._flights.forget(list(items))

    def delete(self, key: str) -> None:
        """Hold nothing under ``key``."""
        try:
            self._tier.delete(key)
        finally:
            self._flights.forget([key])

    def _one(self, keys: list[str]) -> dict[str, bytes]:
        value = self._tier.get(keys[0])
        return {} if value is MISSING else {keys[0]: value}
