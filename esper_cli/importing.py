"""Around the import of PyTorch, which takes seconds: what would harm it, and what would slow it down."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing_pytorch() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back within the block, and look for no garbage; what came comes at its end.

    An interruption that falls into the import of NumPy within PyTorch's is swallowed there, and leaves half a
    NumPy to whoever uses it next. Nothing has begun that could be saved, so Ctrl-C after another signal ends
    the process at once.
    """
    with _interrupts_held(), _garbage_left():
        yield


@contextmanager
def _interrupts_held() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread alone
        return
    caught: list[int] = []

    def hold(number: int, _frame: object) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends a process within a call of C, too

    # Handlers, not a mask: a mask is the thread's own, and another thread would take the signal at once.
    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


@contextmanager
def _garbage_left() -> Iterator[None]:
    """Imports make a million objects and hardly any garbage: to look for it is a fifth of their time."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is imported stays: nobody needs to look through it again
        gc.enable()
