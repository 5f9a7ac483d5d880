"""Keys that Esper keeps as one text, wherever that text lies."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from pathlib import Path

from esper.errors import SecurityError
from esper.security.encoding import from_text, to_text
from esper.security.kept_files import locked, state_of
from esper.security.keys import Key, KeyRing, new_key
from esper.security.sources import Announce, unannounced


class KeptKeys(ABC):
    """A :class:`esper.security.sources.KeySource` over a text that can be read and replaced.

    ``lock`` is a file that is locked for a change. What cannot be read is never written over.
    """

    def __init__(self, origin: str, lock: Path) -> None:
        self._origin = origin
        self._lock = lock

    @property
    def origin(self) -> str:
        """The place, as a person calls it."""
        return self._origin

    @property
    def marker(self) -> Path:
        """The file that is another once the keys were changed: of a text that is no file, the lock."""
        return self._lock

    def state(self) -> Hashable:
        """See :class:`esper.security.sources.KeySource`."""
        return state_of(self.marker)

    def load(self) -> KeyRing:
        """The keys that are there, or ``SecurityError``."""
        ring = self._read()
        if ring is None:
            raise SecurityError(
                f"there are no keys in {self.origin}",
                hint="the first kernel that is stored makes them; if there were some, put your copy back",
            )
        return ring

    def load_or_make(
        self, make: Callable[[], Key] = new_key, announce: Announce = unannounced
    ) -> tuple[KeyRing, bool]:
        """The keys that are there, else the one that ``make`` makes, announced; and whether that was so."""
        ring = self._read()
        if ring is not None:
            return ring, False
        with locked(self._lock):
            ring = self._read()  # another process may have been first
            if ring is not None:
                return ring, False
            ring = KeyRing((make(),), self.origin)
            announce("", ring.digest)
            self._write_text(to_text(ring))
            return ring, True

    def change(self, change: Callable[[KeyRing], KeyRing], /) -> KeyRing:
        """Put ``change`` of the keys in their place, and return it."""
        with locked(self._lock):
            ring = change(self.load())
            self._write_text(to_text(ring))
            os.utime(self._lock)
            return ring

    @abstractmethod
    def _read_text(self) -> str | None:
        """The text, if there is any."""

    @abstractmethod
    def _write_text(self, text: str) -> None:
        """Replace the text, whole or not at all."""

    def _read(self) -> KeyRing | None:
        text = self._read_text()
        return None if text is None else from_text(text, self.origin)
