"""Ctrl-C and SIGTERM, held back where they would be lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back within the block; they come at its end.

    For importing PyTorch: an interruption that falls into its import of NumPy is swallowed there, and leaves
    half a NumPy to whoever uses it next.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
