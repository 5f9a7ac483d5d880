"""A tier whose calls are counted and timed."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from esper.urza.tiers import Tier
from esper.urza.wrapping import AroundEachCall, T

BOUNDS: Final = tuple(2.0**power / 1e6 for power in range(24))
"""Upper bounds of the buckets in seconds: 1 us, doubled up to 8 s."""


@dataclass(frozen=True, slots=True)
class OperationTimes:
    """How often an operation was called, raised, and how long it took, ``seconds`` in all.

    ``buckets[i]`` of them took up to ``BOUNDS[i]`` and longer than the bound before; the last has the rest.
    """

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)


class Measured(AroundEachCall):
    """A tier with counts and a histogram of latencies for each operation."""

    def __init__(self, tier: Tier, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """``clock`` gives seconds."""
        super().__init__(tier)
        self._clock = clock
        self._operations: dict[str, _Operation] = defaultdict(_Operation)
        self._lock = threading.Lock()

    def times(self) -> dict[str, OperationTimes]:
        """What was measured of each operation that was called at least once."""
        with self._lock:
            return {
                name: OperationTimes(each.calls, each.errors, each.seconds, tuple(each.buckets))
                for name, each in self._operations.items()
            }

    def _around(self, operation: str, call: Callable[[], T]) -> T:
        began = self._clock()
        failed = True
        try:
            result = call()
            failed = False
            return result
        finally:
            seconds = self._clock() - began
            with self._lock:
                self._operations[operation].add(seconds, failed)


class _Operation:
    def __init__(self) -> None:
        self.calls = self.errors = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BOUNDS) + 1)

    def add(self, seconds: float, failed: bool) -> None:
        self.calls += 1
        self.errors += failed
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
