"""Ctrl-C and SIGTERM while kernels are compiled: noted when they come, handled where nothing is half done.

Python runs a signal's handler between any two steps of the main thread. What it raises is lost where nobody
can hand it on, as in what runs when the garbage collector frees something; becomes another error where C++ or
Rust called Python; and leaves a lock held that was just taken.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_noting: list[Callable[[], None]] = []
"""How the main thread looks for what was noted; one at most."""


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], None]]:
    """Have SIGINT and SIGTERM handled only where the block calls what it is given, or at its end.

    They are handled as outside it, commonly by raising KeyboardInterrupt; a second one at once, wherever the
    block is. Such a block within another leaves all to the outer one. In other threads, which get no signals,
    nothing changes; nor does what the system does with a signal that has no handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    if _noting:
        yield _noting[0]
        return
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(handler := signal.getsignal(number))
    }
    noted: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append((number, frame))
        if len(noted) > 1:
            handlers[number](number, frame)

    def look() -> None:
        if noted:
            number, frame = noted.pop(0)
            handlers[number](number, frame)

    _noting.append(look)
    for number in handlers:
        signal.signal(number, note)
    try:
        yield look
    except KeyboardInterrupt:
        noted.clear()  # that is what came of it
        raise
    finally:
        _noting.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        look()
