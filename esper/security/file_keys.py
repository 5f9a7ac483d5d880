"""Keys in a file that its owner alone can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from esper.errors import SecurityError, StorageError
from esper.security.encoding import damaged
from esper.security.kept_keys import KeptKeys

_MOST_BYTES: Final = 2**20
"""Far above what a file of keys holds; what is larger is another file."""


class FileKeys(KeptKeys):
    """Keys in the file ``path``, of mode 0600; one that others can read, or that is not ours, is refused."""

    def __init__(self, path: str) -> None:
        # A link is followed once: replacing it would leave the keys that it points to behind.
        self._path = Path(os.path.realpath(path))
        super().__init__(str(self._path), self._beside("lock"))

    def _read_text(self) -> str | None:
        try:
            # Not to wait for a writer, should the path be a pipe.
            fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError.from_os(error, self._path, "cannot read the keys of") from error
        try:
            self._trust(os.fstat(fd))
            return os.read(fd, _MOST_BYTES).decode()
        except UnicodeDecodeError:
            raise damaged(self.origin) from None  # the error of Python holds the bytes
        finally:
            os.close(fd)

    def _trust(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
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
        unfinished = self._beside("new")  # a name that is free: the caller holds the lock
        try:
            unfinished.unlink(missing_ok=True)  # of a process that was killed
            fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            unfinished.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageError.from_os(error, self._path, "cannot write the keys to") from error

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{ending}")
