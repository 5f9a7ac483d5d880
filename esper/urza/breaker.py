"""A tier that is left alone while it fails, so that nobody waits for a server that is gone.

::

    closed --failures in a row, or one slow call--> open --cooldown--> half-open --success--> closed
                                                      \\________failure________/
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from esper.errors import LibraryError, StorageError, TierUnavailable
from esper.urza.tiers import Tier
from esper.urza.wrapping import AroundEachCall, T

State = Literal["closed", "open", "half-open"]

FAILURES: Final = 3
"""How many failures in a row open the circuit."""

SLOW_SECONDS: Final = 0.04
"""A call that takes longer opens it at once. Less than the time-out of a Redis tier: one step waits once."""

COOLDOWN_SECONDS: Final = 1.0
"""How long nobody calls once it is open. A server that is back is used again within this and one call."""

_MANY: Final = ("get_many", "put_many")


@dataclass(frozen=True, slots=True)
class BreakerCounts:
    """``failures`` of all calls, ``refused`` calls that were not made, how often the circuit ``opened``."""

    failures: int
    refused: int
    opened: int


class CircuitBroken(AroundEachCall):
    """A tier behind a circuit breaker. While the circuit is open every call raises ``TierUnavailable``.

    After the cooldown one caller, and only one at a time, is let through; the others are still refused.
    ``LibraryError`` and ``StorageError`` are failures. A slow call for many keys is none if it succeeds.
    """

    def __init__(
        self,
        tier: Tier,
        *,
        failures: int = FAILURES,
        slow_seconds: float = SLOW_SECONDS,
        cooldown: float = COOLDOWN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Over ``tier``; the defaults say what each number is. ``clock`` gives seconds."""
        super().__init__(tier)
        self._limit = failures
        self._slow = slow_seconds
        self._cooldown = cooldown
        self._clock = clock
        self._opened_at: float | None = None
        self._probing = False
        self._in_a_row = 0
        self._failures = self._refused = self._opened = 0
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """Whether calls are made (closed), refused (open), or one is being tried (half-open)."""
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "half-open" if self._probing else "open"

    def counts(self) -> BreakerCounts:
        """What has happened since it was made."""
        with self._lock:
            return BreakerCounts(self._failures, self._refused, self._opened)

    def _around(self, operation: str, call: Callable[[], T]) -> T:
        probe = self._opened_at is not None and self._admit()
        good: bool | None = None
        began = self._clock()
        try:
            result = call()
            good = True
            return result
        except (LibraryError, StorageError):
            good = False
            raise
        finally:
            slow = self._clock() - began > self._slow and not (good and operation in _MANY)
            self._finish(probe, good, slow)

    def _admit(self) -> bool:
        """Whether this call is the one that tries an open circuit; raises if it may not be made."""
        with self._lock:
            if self._opened_at is None:
                return False
            left = self._opened_at + self._cooldown - self._clock()
            if left <= 0 and not self._probing:
                self._probing = True
                return True
            self._refused += 1
        raise TierUnavailable(
            f"the tier {self.name!r} has failed and is not asked for {max(left, 0):.1f} s",
            hint="it is tried again by itself",
        )

    def _finish(self, probe: bool, good: bool | None, slow: bool) -> None:
        """Draw the conclusion from a call; ``good`` is ``None`` if it was interrupted and shows nothing."""
        if good and not (slow or probe or self._in_a_row):
            return  # as nearly always
        with self._lock:
            self._failures += good is False
            if probe:
                self._probing = False
            elif self._opened_at is not None:
                return  # begun before the circuit opened, so it says nothing of the server now
            if good is None:
                return
            self._in_a_row = 0 if good else self._in_a_row + 1
            if slow or self._in_a_row >= self._limit or (probe and not good):
                self._opened_at = self._clock()
                self._opened += 1
                self._in_a_row = 0
            else:
                self._opened_at = None
