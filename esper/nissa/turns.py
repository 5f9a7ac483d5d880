"""Long readings in threads of a process let short ones go first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_going_first: list[int] = []
_going_first_mutex = threading.Lock()
_nobody_goes_first = threading.Event()
_nobody_goes_first.set()


@contextmanager
def going_first() -> Iterator[None]:
    """Have readings in other threads of this process pause meanwhile; for what is done within a moment.

    A thread that computes gives the interpreter away every 5 ms. Whoever makes a thousand system calls beside
    it would wait that long after each.
    """
    with _going_first_mutex:
        _going_first.append(threading.get_ident())
        _nobody_goes_first.clear()
    try:
        yield
    finally:
        with _going_first_mutex:
            _going_first.remove(threading.get_ident())
            if not _going_first:
                _nobody_goes_first.set()


def let_others_first() -> None:
    """Wait for those that are ``going_first``, a second at most."""
    if not _nobody_goes_first.is_set() and threading.get_ident() not in _going_first:
        _nobody_goes_first.wait(1.0)
