"""Keys in the keyring of the operating system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

from esper.errors import SecurityError
from esper.security.kept_keys import KeptKeys

_ENTRY: Final = "keys"


class KeyringKeys(KeptKeys):
    """Keys in the entry ``keys`` of ``service``. A keyring has no lock; the file ``lock`` is one."""

    def __init__(self, service: str, lock: str) -> None:
        super().__init__(f"the OS keyring, service {service!r}", Path(lock))
        self._service = service

    def _read_text(self) -> str | None:
        with self._usable() as keyring:
            text: str | None = keyring.get_password(self._service, _ENTRY)
            return text

    def _write_text(self, text: str) -> None:
        with self._usable() as keyring:
            keyring.set_password(self._service, _ENTRY, text)
        if self._read_text() != text:
            raise SecurityError(f"{self.origin} did not keep the keys", hint="choose: security=file")

    @contextmanager
    def _usable(self) -> Iterator[ModuleType]:
        try:
            import keyring
            from keyring.errors import KeyringError
        except ImportError as error:
            raise SecurityError(
                "the package keyring is not installed", hint="pip install 'esper-morph[keyring]'"
            ) from error
        try:
            yield keyring
        except KeyringError as error:
            raise SecurityError(
                f"{self.origin} cannot be used: {error}", hint="choose: security=file"
            ) from error
