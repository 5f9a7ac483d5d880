"""Counting on a path that is too short for a lock."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable


class Tally:
    """A count that any number of threads add one to by calling ``add``, without a lock and without a loss.

    ``add`` is one call into C, which the lock of CPython's interpreter makes whole. A build without that lock
    does not promise it.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self.add: Callable[[], object] = self._numbers.__next__
        self._reads = 0
        self._reading = threading.Lock()

    @property
    def value(self) -> int:
        """How often ``add`` was called."""
        with self._reading:
            # Reading counts as well, so what was read before is taken off.
            counted = next(self._numbers) - self._reads
            self._reads += 1
            return counted
