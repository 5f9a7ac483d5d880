"""What tests of telemetry share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def everything(_: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Lets every field leave."""
    return fields


def within(seconds: float, condition: Callable[[], bool]) -> None:
    """Wait until ``condition``; an AssertionError if it does not come about in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)
