"""A key ring as text, for the sources that keep one."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from esper.errors import SecurityError
from esper.security.keys import KEY_BYTES, Key, KeyRing
from esper.security.redaction import redact

_VERSION: Final = 1


def to_text(ring: KeyRing) -> str:
    """JSON of all keys, the primary first."""
    keys = [
        {"id": key.id, "made": key.made, "key": base64.b64encode(key.secret).decode()} for key in ring.keys
    ]
    return json.dumps({"version": _VERSION, "keys": keys}, indent=2) + "\n"


def from_text(text: str, origin: str) -> KeyRing:
    """The ring of :func:`to_text`; ``SecurityError`` for any other text, without a word of it."""
    try:
        document = json.loads(text)
        version = document["version"]
        keys = tuple(_key(entry) for entry in document["keys"]) if version == _VERSION else ()
    # What these carry is, in part, the text itself: none of it may reach a traceback or a log.
    except (ValueError, TypeError, KeyError, RecursionError):
        raise damaged(origin) from None
    if version != _VERSION:
        raise SecurityError(f"the keys of {origin} are of another version of Esper", hint="upgrade Esper")
    return KeyRing(keys, origin)


def secret_of(text: str) -> bytes:
    """The 32 bytes that ``text`` has in base64, or ``ValueError``."""
    secret = base64.b64decode(text, validate=True)
    if len(secret) != KEY_BYTES:
        raise ValueError
    return secret


def damaged(origin: str) -> SecurityError:
    """The error for keys that cannot be read."""
    return SecurityError(
        f"the keys of {origin} are damaged",
        hint="put your copy of them back; Esper never writes over keys that it cannot read",
    )


def _key(entry: dict[str, Any]) -> Key:
    redact.register(entry["key"])
    key = Key(secret_of(entry["key"]), None if entry["made"] is None else str(entry["made"]))
    if key.id != entry["id"]:
        raise ValueError
    return key
