"""How much of what is to be compiled waits, told while it is worked on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from operator import length_hint
from typing import Any, Generic, TypeVar

from esper.messages import CompileQueue
from esper.tezzeret.jobs import Outcome

T = TypeVar("T")

TELL_SECONDS = 1.0
"""No more often than that."""

TellQueue = Callable[[CompileQueue], None]


class Depth(Generic[T]):
    """What is left of some work, to be asked from another thread than the one that does it.

    That one takes from ``left``, has in ``under_way`` what it has asked others for, and sets ``here`` while
    it works itself. ``workers`` says how many there are.
    """

    def __init__(self, work: Sequence[T], workers: Callable[[], int]) -> None:
        self.left = iter(work)
        self.under_way: deque[tuple[Any, Future[Outcome]]] = deque()
        self.here = False
        self._workers = workers
        self._began = datetime.now(UTC).isoformat(timespec="milliseconds")

    def __call__(self) -> CompileQueue:
        """As of now."""
        asked = [future for _, future in self.under_way.copy() if not future.done()]
        compiling = sum(future.running() for future in asked)
        waiting = length_hint(self.left) + len(asked) - compiling
        oldest = self._began if waiting else None
        return CompileQueue(waiting, compiling + self.here, self._workers(), oldest)


@contextmanager
def told(depth: Callable[[], CompileQueue], tell: TellQueue) -> Iterator[None]:
    """Tells ``tell`` the depth at once, at the end that nothing is left, and meanwhile what has changed.

    In a thread of its own, so that a worker that takes long does not keep it from being told.
    """
    last = depth()
    tell(last)
    ended = threading.Event()

    def follow() -> None:
        nonlocal last
        while not ended.wait(TELL_SECONDS):
            if (now := depth()) != last:
                last = now
                tell(now)

    thread = threading.Thread(target=follow, name="compile queue", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell(replace(last, waiting=0, compiling=0, oldest=None))
