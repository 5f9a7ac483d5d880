"""Keys and sealed bytes: what is stored at rest can be read and changed by holders of a key only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from esper.security.envelope import Envelope
    from esper.security.environment_keys import EnvironmentKeys
    from esper.security.file_keys import FileKeys
    from esper.security.keyring_keys import KeyringKeys
    from esper.security.keys import Key, KeyRing, Keys, new_key
    from esper.security.sources import KeySource, StoredKeys

__all__ = [
    "Envelope",
    "EnvironmentKeys",
    "FileKeys",
    "Key",
    "KeyRing",
    "KeySource",
    "KeyringKeys",
    "Keys",
    "StoredKeys",
    "new_key",
]

_MODULES: Final = {
    "Envelope": "envelope",
    "EnvironmentKeys": "environment_keys",
    "FileKeys": "file_keys",
    "Key": "keys",
    "KeyRing": "keys",
    "KeySource": "sources",
    "KeyringKeys": "keyring_keys",
    "Keys": "keys",
    "StoredKeys": "sources",
    "new_key": "keys",
}


def __getattr__(name: str) -> Any:
    # Redaction is part of every command, and importing cryptography takes longer than many of them.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
