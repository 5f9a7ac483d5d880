"""A Monitor whose metrics are computed once for all who ask for them within a moment."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from esper.nissa.api.monitor import Monitor

KEPT_SECONDS: Final = 0.25

REPEATABLE: Final = "esper.repeatable"
"""In the scope of a request whose answer may be repeated to the same bytes over the same connection: to be
called with the time (``time.monotonic``) until which it holds, before it is sent."""


class KeptMetrics(Monitor):
    """At most ``KEPT_SECONDS`` old; however many ask, one computes and the others wait for it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._computing = threading.Lock()
        self._kept: dict[bool, tuple[float, tuple[bytes, str]]] = {}

    def kept_metrics(self, accept: str, /) -> tuple[float, tuple[bytes, str]] | None:
        """What was computed within the last moment, if anything, and until when (monotonic) it holds."""
        kept = self._kept.get(_format(accept))
        return kept if kept is not None and time.monotonic() < kept[0] else None

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """As :meth:`Monitor.metrics`."""
        with self._computing:
            kept = self.kept_metrics(accept)
            if kept is None:
                answer = super().metrics(accept)
                kept = self._kept[_format(accept)] = time.monotonic() + KEPT_SECONDS, answer
            return kept[1]


def _format(accept: str) -> bool:
    """Which of the two that there are, whatever clients send."""
    return "application/openmetrics-text" in accept
