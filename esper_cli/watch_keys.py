"""Keys that are pressed in a terminal, without waiting for the end of a line."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any, Self

NAMES = {
    "\x1b[D": "left",
    "\x1bOD": "left",
    "\x1b[C": "right",
    "\x1bOC": "right",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "h": "left",
    "l": "right",
    "q": "q",
}
"""The keys that mean something, by what a terminal sends for them."""

_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)


class Keys:
    """The keys of stdin while it is entered, if that is a terminal; Ctrl-C and Ctrl-Z go on as they were."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin, termios.TCSANOW)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, self._before)
            self._before = None

    def within(self, seconds: float) -> Iterator[str]:
        """The names of the keys that are pressed first within ``seconds``, which pass if none is."""
        if self._before is None:
            time.sleep(seconds)
        elif select.select([sys.stdin], [], [], seconds)[0]:
            # Past the buffer of sys.stdin, of which select knows nothing.
            sent = os.read(sys.stdin.fileno(), 1024).decode(errors="replace")
            yield from (NAMES[key] for key in _SEQUENCE.findall(sent) if key in NAMES)
            if not sent:
                time.sleep(seconds)  # the terminal is gone; its signal comes
