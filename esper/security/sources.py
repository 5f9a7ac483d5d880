"""Where keys lie, and keys that are read from there when the first of them is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Protocol

from esper.errors import SecurityError, StorageError, UnknownKey
from esper.security.keys import Key, KeyRing

Announce = Callable[[str, str], None]
"""Is told the digests of what there is and of what is to be, just before and while nobody else changes it.

What it raises leaves everything as it is."""

log = logging.getLogger(__name__)


def unannounced(_before: str, _after: str, /) -> None:
    """For whom nobody is to be told."""


class KeySource(Protocol):
    """A place of keys that processes share. Each method may raise ``SecurityError`` or ``StorageError``."""

    @property
    def origin(self) -> str:
        """The place, as a person calls it."""
        ...

    def state(self) -> Hashable:
        """What differs once the keys were changed, as far as that shows without reading them; cheap."""
        ...

    def load(self) -> KeyRing:
        """The keys that are there; ``SecurityError`` if there are none, or they cannot be trusted."""
        ...

    def load_or_make(self) -> tuple[KeyRing, bool]:
        """The keys that are there, else a new one; and whether this call made it. Of many, one call does."""
        ...

    def change(self, change: Callable[[KeyRing], KeyRing], /) -> KeyRing:
        """Put ``change`` of the keys in their place, and return it; no other change falls in between."""
        ...


def changed(source: KeySource, change: Callable[[KeyRing], KeyRing], announce: Announce) -> KeyRing:
    """As ``source.change``, announced."""

    def announced(ring: KeyRing) -> KeyRing:
        after = change(ring)
        announce(ring.digest, after.digest)
        return after

    return source.change(announced)


class StoredKeys:
    """The keys of a source: read when first needed, made when the first is to seal, read again when changed.

    So a process that goes on while another one rotates seals with the newer key from then on. Where the keys
    of before cannot be read any more it goes on with them, and warns. Threads may share it.
    """

    def __init__(self, source: KeySource, on_made: Callable[[str], None] = lambda _: None) -> None:
        """``on_made`` is told the place of a key that was made."""
        self._source = source
        self._on_made = on_made
        self._ring: KeyRing | None = None
        self._state: Hashable = None

    @property
    def primary(self) -> Key:
        """The key that seals, made if the source has none."""
        state = self._source.state()  # before the keys, so that what changes meanwhile is seen the next time
        if self._ring is None:
            self._ring, made = self._source.load_or_make()
            if made:
                self._on_made(self._source.origin)
            state = self._source.state() if made else state
        elif state != self._state:
            try:
                self._ring = self._source.load()
            except (SecurityError, StorageError) as error:
                log.warning("%s; the keys of before are used still", error)
        self._state = state
        return self._ring.primary

    def key(self, key_id: str) -> Key:
        """The key of that id, or ``UnknownKey``; another process may have added it since the last look."""
        if self._ring is not None:
            try:
                return self._ring.key(key_id)
            except UnknownKey:
                pass
        self._ring = self._source.load()
        return self._ring.key(key_id)
