"""Keys in an environment variable, for machines whose secrets somebody else keeps."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable

from esper.errors import SecurityError
from esper.security.encoding import secret_of
from esper.security.keys import Key, KeyRing
from esper.security.redaction import redact


class EnvironmentKeys:
    """Keys in the variable ``variable``: 32 bytes each in base64, with commas between, the first seals.

    Esper reads them and never changes them.
    """

    def __init__(self, variable: str) -> None:
        self._variable = variable

    @property
    def origin(self) -> str:
        """The variable's name."""
        return f"${self._variable}"

    def state(self) -> Hashable:
        """Always the same: nobody else sets the variables of a process."""
        return None

    def load(self) -> KeyRing:
        """The keys in the variable; see :class:`esper.security.sources.KeySource`."""
        text = os.environ.get(self._variable, "").strip()
        hint = "a key is the output of: openssl rand -base64 32; several stand with commas between"
        if not text:
            raise SecurityError(f"{self.origin} is not set, or empty", hint=hint)
        try:
            redact.register(text, *text.split(","))
            return KeyRing(tuple(Key(secret_of(part.strip())) for part in text.split(",")), self.origin)
        except ValueError:
            raise SecurityError(f"{self.origin} does not hold 32 bytes in base64", hint=hint) from None

    def load_or_make(self) -> tuple[KeyRing, bool]:
        """The keys in the variable, which are made by whoever sets it."""
        return self.load(), False

    def change(self, _change: Callable[[KeyRing], KeyRing], /) -> KeyRing:
        """Refused: what Esper set would end with its process."""
        raise SecurityError(
            f"Esper cannot change {self.origin}",
            hint="set it anew where it comes from: the key that is to seal first, the older ones behind it",
        )
