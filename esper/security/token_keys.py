"""The keys that tokens are signed with, and what is published of them for servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from esper.errors import SecurityError, UnknownKey
from esper.security.file_keys import FileKeys
from esper.security.kept_files import beside, locked, replace_text
from esper.security.keys import Key, KeyRing
from esper.security.sources import Announce, changed, unannounced
from esper.security.token_trust import MOST_REVOKED, Trusted, read_trusted

LONGEST_SECONDS: Final = 24 * 3600
"""No token lasts longer, whatever a configuration says; what was revoked is remembered for as long."""


@dataclass(frozen=True)
class SigningKey:
    """The key that signs, by its id."""

    id: str
    private: Ed25519PrivateKey = field(repr=False)


class TokenAuthority:
    """Signs, and says what is trusted.

    ``keys`` is a file of secrets, as :class:`esper.security.FileKeys` keeps them; ``trusted`` is all that a
    server needs, and no secret. Each method may raise SecurityError or StorageError.
    """

    def __init__(self, keys: Path, trusted: Path) -> None:
        self._path = keys
        self._source = FileKeys(str(keys))
        self._trusted = trusted

    def has_keys(self) -> bool:
        """Whether there is any that signs."""
        return self._path.exists()

    def begin(self, key: Key, announce: Announce = unannounced) -> None:
        """Sign with ``key``, if there is none yet."""
        self._source.load_or_make(lambda: key, announce)

    def signing_key(self) -> tuple[SigningKey, Trusted]:
        """The key that signs now, made if there is none, and what is trusted beside it."""
        ring, _ = self._source.load_or_make()
        return SigningKey(ring.primary.id, _private(ring.primary)), self._publish()

    def keys(self) -> KeyRing:
        """Those whose tokens are valid, the one that signs first."""
        if not self.has_keys():
            raise SecurityError(
                f"there are no keys in {self._path}", hint="esper token issue makes the first"
            )
        return self._source.load()

    def rotate(self, key: Key, announce: Announce = unannounced) -> KeyRing:
        """Sign with ``key``, a new one, from now on; tokens of the older ones stay valid."""
        self.keys()
        ring = changed(self._source, lambda ring: ring.with_primary(key), announce)
        self._publish()
        return ring

    def retire(self, key_id: str, announce: Announce = unannounced) -> None:
        """Forget a key that does not sign any more: no token of it is valid from now on."""

        def without(ring: KeyRing) -> KeyRing:
            if key_id == ring.primary.id:
                raise SecurityError(
                    f"key {key_id} is the one that signs", hint="first: esper token keys rotate"
                )
            return ring.without(key_id)

        self.keys()
        try:
            changed(self._source, without, announce)
        except UnknownKey:
            if key_id not in self.published():  # by a process that was killed before it published that
                raise
        finally:
            self._publish()

    def published(self) -> Collection[str]:
        """The ids of the keys whose tokens servers take for valid."""
        trusted = self.trusted()
        return () if trusted is None else trusted.keys

    def trusted(self) -> Trusted | None:
        """What servers are told, if anything."""
        return read_trusted(self._trusted)

    def revoke(self, token_id: str, announce: Announce = unannounced) -> None:
        """Have the token of that id be valid no more."""
        now = int(time.time())

        def without(trusted: Trusted | None) -> Trusted:
            known = self._known(trusted, now)
            return replace(known, ids={**known.ids, token_id: now + LONGEST_SECONDS})

        self._change(without, announce)

    def revoke_all(self, name: str, announce: Announce = unannounced) -> None:
        """Have no token be valid that was issued for ``name`` until now."""
        now = int(time.time())

        def later(trusted: Trusted | None) -> Trusted:
            known = self._known(trusted, now)
            return replace(known, names={**known.names, name: now + 1})

        self._change(later, announce)

    def _publish(self) -> Trusted:
        def current(trusted: Trusted | None) -> Trusted:
            # Read only now: whoever publishes later has read no older keys.
            keys = {key.id: _private(key).public_key() for key in self._source.load().keys}
            # Where what was revoked is lost, no older token is trusted.
            return Trusted(keys, int(time.time())) if trusted is None else replace(trusted, keys=keys)

        return self._change(current)

    def _known(self, trusted: Trusted | None, now: int) -> Trusted:
        if trusted is None:
            raise SecurityError(f"there is no {self._trusted}, hence no token to revoke")
        return trusted.without_expired(now, LONGEST_SECONDS)

    def _change(
        self, change: Callable[[Trusted | None], Trusted], announce: Announce = unannounced
    ) -> Trusted:
        with locked(beside(self._trusted, "lock")):
            before = self.trusted()
            after = change(before)
            if max(len(after.names), len(after.ids)) > MOST_REVOKED:
                raise SecurityError(
                    f"more than {MOST_REVOKED} tokens are revoked",
                    hint="invalidate all at once: esper token keys rotate, then retire the older key",
                )
            if after != before:
                announce("" if before is None else before.digest, after.digest)
                replace_text(self._trusted, after.to_text(), 0o644, "cannot write")
            return after


def _private(key: Key) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(key.derived("token signature"))
