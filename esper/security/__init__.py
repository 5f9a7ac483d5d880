"""Keys and sealed bytes: what is stored at rest can be read and changed by holders of a key only."""

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
