"""Fetching ahead of need, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

Keys = Callable[[], Sequence[str]]
"""Says what to fetch; called in the background too, for finding out may take as long as fetching."""

WAITING = 64
"""How many calls may wait for their turn; more are dropped, since what is guessed must not pile up."""

CLOSE_SECONDS = 5.0


class Prefetcher:
    """Calls ``fetch`` in the background. Nothing it does raises into the caller; it counts instead."""

    def __init__(self, fetch: Callable[[Sequence[str]], object]) -> None:
        """``fetch`` is called with the keys of one call at a time. Its thread starts with the first."""
        self._fetch = fetch
        self._queue: queue.Queue[Keys | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()
        self.dropped = 0
        self.errors = 0

    def ask(self, keys: Keys) -> None:
        """Have ``keys()`` fetched soon, unless too many are waiting or it is closed."""
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="esper-prefetch", daemon=True)
                self._thread.start()
            try:
                self._queue.put_nowait(keys)
            except queue.Full:
                self.dropped += 1

    def wait(self) -> None:
        """Return when all that was asked so far has been dealt with."""
        self._queue.join()

    def close(self) -> None:
        """Drop what is waiting, and return when the thread has ended, or after a few seconds."""
        with self._lock:
            self._closed = True
            while not self._queue.empty():
                self._queue.get_nowait()
                self._queue.task_done()
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (keys := self._queue.get()) is not None:
            try:
                self._fetch(keys())
            except Exception:  # whoever needs the key will meet the error again, where it can be handled
                self.errors += 1
            self._queue.task_done()
        self._queue.task_done()
