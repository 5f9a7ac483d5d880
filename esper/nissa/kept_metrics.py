"""A Monitor whose metrics are computed once for all who ask for them within a moment."""

from __future__ import annotations

import threading
import time
from typing import Any, Final

from esper.nissa.monitor import Monitor

KEPT_SECONDS: Final = 0.25


class KeptMetrics(Monitor):
    """At most ``KEPT_SECONDS`` old; however many ask, one computes and the others wait for it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._computing = threading.Lock()
        self._kept: dict[bool, tuple[float, tuple[bytes, str]]] = {}

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """As :meth:`Monitor.metrics`."""
        kind = "application/openmetrics-text" in accept
        kept = self._kept.get(kind)
        if kept is None or time.monotonic() >= kept[0]:
            with self._computing:
                kept = self._kept.get(kind)
                if kept is None or time.monotonic() >= kept[0]:
                    kept = self._kept[kind] = (time.monotonic() + KEPT_SECONDS, super().metrics(accept))
        return kept[1]
