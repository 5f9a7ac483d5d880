"""What the tiers that wrap another tier have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from esper.urza.tiers import Missing, Tier

T = TypeVar("T")


class WrappedTier:
    """What wraps another tier has its name, and says what it knows of its state."""

    def __init__(self, tier: Tier) -> None:
        """Over ``tier``, which whoever made it closes."""
        self._tier = tier
        self._name = tier.name  # asked for at every get

    @property
    def name(self) -> str:
        """The name that its hits and misses are counted under."""
        return self._name

    @property
    def state(self) -> str | None:
        """That of a circuit breaker in here, if there is one."""
        return getattr(self._tier, "state", None)


class AroundEachCall(WrappedTier):
    """The wrapped tier's methods; a subclass says in :meth:`_around` what happens around every call."""

    def get(self, key: str) -> bytes | Missing:
        """The value under ``key``, or ``MISSING``."""
        return self._around("get", partial(self._tier.get, key))

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of ``keys`` that are held."""
        return self._around("get_many", partial(self._tier.get_many, keys))

    def put(self, key: str, value: bytes) -> None:
        """Hold ``value`` under ``key``."""
        self._around("put", partial(self._tier.put, key, value))

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """As :meth:`put` for each."""
        self._around("put_many", partial(self._tier.put_many, items))

    def delete(self, key: str) -> None:
        """Hold nothing under ``key``."""
        self._around("delete", partial(self._tier.delete, key))

    def _around(self, operation: str, call: Callable[[], T]) -> T:
        """Make ``call``, a call of the tier's ``operation``, and return what it returns."""
        raise NotImplementedError
