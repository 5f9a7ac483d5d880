"""What was read of kernels, for as long as nobody can have changed it on record."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")

MAX_AGE: Final = 1.0
"""Seconds that something counts as current where nothing tells of changes."""

MOST: Final = 10_000
"""Kernels that are remembered; the least recently used are forgotten."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A moment before a read: what was read may be remembered unless something has changed since."""

    version: int | None
    generation: int


class Known(Generic[_T]):
    """Values by kernel id. Threads may share it.

    ``version`` gives a number that is another one after the record was changed by anybody, or None where
    that cannot be told. Then values are current for ``MAX_AGE`` seconds, or while ``told`` says that changes
    are told: whoever hears of one calls ``forget``.
    """

    def __init__(self, version: Callable[[], int | None], told: Callable[[], bool] = lambda: False) -> None:
        self._version = version
        self._told = told
        self._values: OrderedDict[str, tuple[_T, int | None, float]] = OrderedDict()
        self._generation = 0
        self._lock = threading.Lock()

    def ticket(self) -> Ticket:
        """To be taken before the record is read, and given to ``put``."""
        return Ticket(self._version(), self._generation)

    def get(self, kernel_id: str) -> _T | None:
        """The value of ``kernel_id`` if it is current."""
        found = self._values.get(kernel_id)
        if found is None:
            return None
        value, version, at = found
        now = self._version()
        current = version == now if now is not None else self._told() or time.monotonic() - at < MAX_AGE
        return value if current else None

    def put(self, kernel_id: str, value: _T, ticket: Ticket) -> None:
        """Remember ``value``, which was read after ``ticket`` was taken."""
        with self._lock:
            if ticket.generation != self._generation:
                return
            self._values[kernel_id] = (value, ticket.version, time.monotonic())
            self._values.move_to_end(kernel_id)
            while len(self._values) > MOST:
                self._values.popitem(last=False)

    def forget(self, kernel_id: str | None = None) -> None:
        """Forget one kernel, or all; what is being read at this moment is not remembered either."""
        with self._lock:
            self._generation += 1
            if kernel_id is None:
                self._values.clear()
            else:
                self._values.pop(kernel_id, None)
