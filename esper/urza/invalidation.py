"""Telling other processes that a kernel was changed or removed, over Redis's publish and subscribe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from redis.client import PubSub

from esper.errors import TierUnavailable
from esper.urza.redis_client import CALL_SECONDS, BoundedRedis

TICK_SECONDS: Final = 0.25
"""How long the listener waits for a message before it looks whether it is to end."""

SILENCE_SECONDS: Final = 2.0
"""After so long without a message the server is asked for one; after twice that it is connected to anew."""

RETRY_SECONDS: Final = 0.5
"""How long to wait before connecting again, and after a failure before telling anybody again."""

_EVERYTHING: Final = b""


class Invalidation:
    """The messages of one library, known by its ``prefix``, between the processes that share a Redis server.

    Messages may be lost while the server is away, so everybody is told that everything may have changed once
    it is back. Threads may share it. Nothing here raises for a server that fails: ``errors`` counts.
    """

    def __init__(self, url: str, *, prefix: str = "esper:", seconds: float = CALL_SECONDS) -> None:
        """``url`` and ``seconds``, the most that :meth:`publish` takes, are those of ``BoundedRedis``.

        Connects to nothing yet; ``ConfigError`` if ``url`` is none.
        """
        self._server = BoundedRedis(url, seconds)
        self._channel = f"{prefix}changed"
        self._telling = threading.Lock()
        self._untold = False
        self._quiet_until = 0.0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.errors = 0
        self.listening = False

    def publish(self, kernel_id: str) -> None:
        """Tell every listener, this process's own too, that ``kernel_id`` has changed or is gone.

        If the server does not answer, they are told later that everything has.
        """
        self._tell(kernel_id.encode())

    def listen(self, on_change: Callable[[str | None], None]) -> None:
        """Call ``on_change`` in a thread of its own from now on, with a kernel's id, or ``None`` for all.

        ``None`` comes first, and after every time that the connection was made anew. To be called once.
        """
        self._thread = threading.Thread(
            target=self._run, args=(on_change,), name="esper-invalidation", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the thread, tell what is still to be told if the server answers, and close the connections."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._quiet_until = 0.0
        self._tell_untold()
        self._server.close()

    def _tell(self, message: bytes) -> None:
        with self._telling:
            if time.monotonic() >= self._quiet_until:
                try:
                    with self._server.call():
                        self._server.ask("PUBLISH", self._channel, _EVERYTHING if self._untold else message)
                    self._untold = False
                    return
                except TierUnavailable:
                    self._quiet_until = time.monotonic() + RETRY_SECONDS
            self._untold = True
            self.errors += 1

    def _tell_untold(self) -> None:
        if self._untold:
            self._tell(_EVERYTHING)

    def _run(self, on_change: Callable[[str | None], None]) -> None:
        while not self._closed.is_set():
            try:
                with self._server.subscription() as subscription:
                    self._listen(subscription, on_change)
            except TierUnavailable:
                self.errors += 1
            finally:
                self.listening = False
            self._closed.wait(RETRY_SECONDS)

    def _listen(self, subscription: PubSub, on_change: Callable[[str | None], None]) -> None:
        """Until it is closed, or the connection fails."""
        with self._server.call():
            subscription.subscribe(self._channel)
        heard = time.monotonic()
        asked = False
        while not self._closed.is_set():
            with self._server.call(TICK_SECONDS + SILENCE_SECONDS):
                message = subscription.get_message(timeout=TICK_SECONDS)
            if message is not None:
                heard, asked = time.monotonic(), False
                self._deliver(message, on_change)
            elif time.monotonic() - heard > 2 * SILENCE_SECONDS:
                raise self._server.unavailable("it is silent")
            elif time.monotonic() - heard > SILENCE_SECONDS and not asked:
                asked = True
                with self._server.call():
                    subscription.ping()
            self._tell_untold()

    def _deliver(self, message: dict[str, object], on_change: Callable[[str | None], None]) -> None:
        data = message.get("data")
        if message.get("type") == "subscribe":
            self.listening = True
            on_change(None)
        elif message.get("type") == "message" and isinstance(data, bytes):
            on_change(data.decode(errors="replace") if data != _EVERYTHING else None)
