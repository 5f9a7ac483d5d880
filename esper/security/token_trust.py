"""What a server trusts of tokens: public keys by id, and what was revoked; one file, and no secret in it."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from esper.errors import SecurityError
from esper.security.kept_files import is_small_file, read_bytes, state_of

MOST_REVOKED: Final = 8000
"""Names and ids, each; 1 MiB holds them."""

LOOK_SECONDS: Final = 0.5
"""How long a server goes by what it read last."""

_VERSION: Final = 1


@dataclass(frozen=True)
class Trusted:
    """Keys by id, the names' tokens of which only later ones are valid, and ids of revoked tokens.

    Times are in seconds since 1970. No token from before ``since`` is valid. An id is kept until its token
    has expired.
    """

    keys: Mapping[str, Ed25519PublicKey]
    since: int
    names: Mapping[str, int] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)

    def valid_from(self, name: str) -> int:
        """From when on a token for ``name`` has to be."""
        return max(self.since, self.names.get(name, 0))

    def is_revoked(self, token_id: str, name: str, issued: int) -> bool:
        """Whether that token is not valid any more."""
        return token_id in self.ids or issued < self.valid_from(name)

    def without_expired(self, now: int, longest: int) -> Trusted:
        """Without what no token can match any more, the longest of which lasts ``longest`` seconds."""
        names = {name: since for name, since in self.names.items() if since + longest > now}
        return replace(
            self, names=names, ids={name: until for name, until in self.ids.items() if until > now}
        )

    @property
    def digest(self) -> str:
        """SHA-256 of what was revoked."""
        revoked = [self.since, sorted(self.names.items()), sorted(self.ids.items())]
        return sha256(json.dumps(revoked).encode()).hexdigest()

    def to_text(self) -> str:
        """What :func:`parsed` reads."""
        keys = {name: base64.b64encode(key.public_bytes_raw()).decode() for name, key in self.keys.items()}
        fields = {"since": self.since, "names": dict(self.names), "ids": dict(self.ids)}
        return json.dumps({"version": _VERSION, "keys": keys, **fields}, indent=1) + "\n"


def read_trusted(path: Path) -> Trusted | None:
    """What the file says, or None if there is none; SecurityError if it cannot be trusted itself."""

    def trust(status: os.stat_result) -> None:
        if not is_small_file(status):
            raise SecurityError(f"{path} is no file of trusted keys")
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SecurityError(
                f"others can change {path}, which says what tokens are trusted",
                hint=f"if nobody has: chmod go-w {path}, as its owner",
            )

    data = read_bytes(path, trust, "cannot read")
    return None if data is None else parsed(data, str(path))


def parsed(data: bytes, origin: str) -> Trusted:
    """The inverse of :meth:`Trusted.to_text`; SecurityError for anything else."""
    try:
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise SecurityError(f"{origin} is of another version of Esper", hint="upgrade Esper")
        keys = {
            str(name): Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
            for name, text in document["keys"].items()
        }
        return Trusted(keys, int(document["since"]), _times(document["names"]), _times(document["ids"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise SecurityError(f"{origin} is damaged", hint="put your copy of it back") from None


class TrustedFile:
    """What the file at ``path`` says, at most ``LOOK_SECONDS`` ago. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._looked = -LOOK_SECONDS
        self._seen: tuple[int, ...] = ()
        self._trusted: Trusted | None = None

    def __call__(self) -> Trusted:
        """Raises SecurityError or StorageError: where nothing says what is trusted, nothing is."""
        with self._mutex:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._look()
                self._looked = time.monotonic()
            assert self._trusted is not None
            return self._trusted

    def _look(self) -> None:
        seen = state_of(self._path)
        if self._trusted is not None and seen == self._seen:
            return
        self._trusted = None
        trusted = read_trusted(self._path)
        if trusted is None:
            raise SecurityError(
                f"there is no {self._path}", hint="the first token makes it: esper token issue"
            )
        self._seen, self._trusted = seen, trusted


def _times(entries: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(moment) for name, moment in entries.items()}
