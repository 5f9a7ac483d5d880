"""Keys by id: several can be read with, one seals."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from esper.errors import SecurityError, UnknownKey

KEY_BYTES: Final = 32


@dataclass(frozen=True)
class Key:
    """A key-encryption key of 32 bytes, and when it was made (ISO 8601, UTC) if that is known."""

    secret: bytes = field(repr=False)
    made: str | None = None
    id: str = field(init=False)
    """Derived from the key: two keys never share one, and a damaged key shows."""

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise SecurityError(f"a key has {KEY_BYTES} bytes, not {len(self.secret)}")
        object.__setattr__(self, "id", self.derived("key id", 8).hex())

    def derived(self, purpose: str, length: int = KEY_BYTES) -> bytes:
        """``length`` bytes that this key has for ``purpose`` alone (HKDF-SHA256)."""
        info = f"esper {purpose} 1".encode()
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(self.secret)


def new_key() -> Key:
    """A random key."""
    return Key(secrets.token_bytes(KEY_BYTES), datetime.now(UTC).isoformat(timespec="seconds"))


class Keys(Protocol):
    """What seals and what opens; both may raise ``SecurityError`` or ``StorageError``."""

    @property
    def primary(self) -> Key:
        """The key that seals."""
        ...

    def key(self, key_id: str) -> Key:
        """The key of that id, or ``UnknownKey``."""
        ...


@dataclass(frozen=True)
class KeyRing:
    """One key or more, the first of which is the primary, that seals; ``origin`` says where they lie."""

    keys: tuple[Key, ...]
    origin: str

    def __post_init__(self) -> None:
        ids = [key.id for key in self.keys]
        if not ids:
            raise SecurityError(f"{self.origin} holds no key")
        if len(set(ids)) < len(ids):
            raise SecurityError(f"{self.origin} holds a key twice")

    @property
    def primary(self) -> Key:
        """The key that seals."""
        return self.keys[0]

    @property
    def digest(self) -> str:
        """SHA-256 of which keys these are, in their order; it tells nothing of the keys themselves."""
        return sha256(" ".join(key.id for key in self.keys).encode()).hexdigest()

    def key(self, key_id: str) -> Key:
        """The key of that id, or ``UnknownKey``."""
        for key in self.keys:
            if key.id == key_id:
                return key
        raise UnknownKey(key_id, self.origin)

    def with_primary(self, key: Key) -> KeyRing:
        """These keys, and ``key`` before them."""
        return KeyRing((key, *self.keys), self.origin)

    def without(self, key_id: str) -> KeyRing:
        """The other keys; ``UnknownKey`` if there is none of that id."""
        gone = self.key(key_id)
        return KeyRing(tuple(key for key in self.keys if key is not gone), self.origin)
