"""Keys in a file that its owner alone can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from esper.errors import SecurityError
from esper.security.encoding import damaged
from esper.security.kept_files import beside, is_small_file, read_bytes, replace_text
from esper.security.kept_keys import KeptKeys


class FileKeys(KeptKeys):
    """Keys in the file ``path``, of mode 0600; one that others can read, or that is not ours, is refused."""

    def __init__(self, path: str) -> None:
        # A link is followed once: replacing it would leave the keys that it points to behind.
        self._path = Path(os.path.realpath(path))
        super().__init__(str(self._path), beside(self._path, "lock"))

    @property
    def marker(self) -> Path:
        """The file itself, which somebody may also put there."""
        return self._path

    def _read_text(self) -> str | None:
        data = read_bytes(self._path, self._trust, "cannot read the keys of")
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError:
            raise damaged(self.origin) from None  # the error of Python holds the bytes

    def _trust(self, status: os.stat_result) -> None:
        if not is_small_file(status):
            raise SecurityError(
                f"{self.origin} is no file of keys", hint="name another with: security.path=FILE"
            )
        if status.st_uid != os.geteuid():
            raise SecurityError(
                f"the keys of {self.origin} belong to another user (uid {status.st_uid})",
                hint="copy the file, or name another with: security.path=FILE",
            )
        if status.st_mode & 0o077:
            raise SecurityError(
                f"the keys of {self.origin} can be used by others (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"if nobody has seen them: chmod 600 {self.origin}",
            )

    def _write_text(self, text: str) -> None:
        replace_text(self._path, text, 0o600, "cannot write the keys to")
