"""Ctrl-C and SIGTERM, held back where they would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back within the block; they come at its end.

    For importing PyTorch: an interruption that falls into its import of NumPy is swallowed there, and leaves
    half a NumPy to whoever uses it next.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    caught: list[int] = []
    # Handlers, not a mask: a mask is the thread's own, and another thread would take the signal at once.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda caught_, _: caught.append(caught_)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
