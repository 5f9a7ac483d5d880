"""A backend of the keyring package, as its documentation has them written."""

import os
from pathlib import Path

import keyring.backend
from keyring.errors import PasswordDeleteError


class FolderBackend(keyring.backend.KeyringBackend):
    """Passwords in the folder that ``TEST_KEYRING`` names, a file each."""

    priority = 1  # type: ignore[assignment]

    def get_password(self, service: str, username: str) -> str | None:
        path = self._path(service, username)
        return path.read_text() if path.exists() else None

    def set_password(self, service: str, username: str, password: str) -> None:
        path = self._path(service, username)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(password)
        unfinished.replace(path)

    def delete_password(self, service: str, username: str) -> None:
        raise PasswordDeleteError

    def _path(self, service: str, username: str) -> Path:
        return Path(os.environ["TEST_KEYRING"], f"{service}-{username}")
