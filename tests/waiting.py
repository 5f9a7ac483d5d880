"""Waits that no busy machine cuts short: their time only bounds a hang, and is no part of what is tested."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONG = 120.0
"""Seconds after which what has not come is taken not to come."""


def until(condition: Callable[[], T | None], instead: Callable[[], object] = str) -> T:
    """What ``condition`` gives once it is true; if it never is, an AssertionError that tells ``instead``."""
    deadline = time.monotonic() + LONG
    while not (given := condition()):
        assert time.monotonic() < deadline, f"it does not come about: {instead()}"
        time.sleep(0.01)
    return given
