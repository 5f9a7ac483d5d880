"""Every deliberate error of Esper, in one tree.

::

    EsperError                  exit code 1   base: something the user can act on
    ├── ConfigError                       2   unknown experiment or key, wrong type, wrong flag
    ├── DataError                         3   data set missing, truncated, of another format
    ├── BlueprintError                    4   a blueprint unreadable, invalid, or over a budget
    ├── CompilationError                  5   a valid blueprint that failed in a stage of its compilation
    ├── LibraryError                      6   the kernel library cannot be used
    │   ├── KernelNotFound                6   no kernel of that id
    │   ├── CorruptKernel                 6   stored bytes do not match their digest
    │   ├── RefusedProgram                6   a compiled kernel from elsewhere that may do harm
    │   └── TierUnavailable               6   a cache that does not answer in time, or not as it should
    ├── RunError                          7   a run that cannot be found, resumed or exported
    │   ├── CheckpointError               7   a checkpoint that is missing, damaged or of another network
    │   └── ProcessLost                   7   of many processes that train together, one is gone
    ├── GraftError                        8   a layer that cannot be wrapped, a kernel that does not fit, a
    │                                         lifecycle transition that is not allowed
    ├── Instability                       9   training diverged and could not be recovered
    ├── StorageError                     10   disk full, read-only folder, I/O error
    │   └── SinkUnavailable              10   telemetry cannot be written where it should go, for now
    ├── ServerError                      11   the HTTP server cannot start (port in use)
    └── SecurityError                    12   keys that cannot be had or used
        ├── UnknownKey                   12   bytes sealed with a key that is not at hand
        ├── AuditError                   12   an audit trail that is not whole
        ├── SealBroken                   12   sealed bytes or a record that a holder of the key did not write
        └── TokenRefused                 12   a token that is not valid, or not any more

Exit code 0 is success; 130 is an interruption by the user (Ctrl-C) and 143 a SIGTERM, both after a clean
save.
The command line catches the root once and prints ``message`` and ``hint`` in one line.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, ClassVar


class EsperError(Exception):
    """What went wrong and where (``message``), and what to do next (``hint``)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own calls the class with args alone, and more than one here takes others.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[EsperError], args: tuple[Any, ...], fields: dict[str, Any]) -> EsperError:
    """The error that was pickled, in another process."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ConfigError(EsperError):
    """An unknown experiment or key, a value of the wrong type, a wrong flag."""

    exit_code = 2


class DataError(EsperError):
    """A data set that is missing, truncated or of another format."""

    exit_code = 3


class BlueprintError(EsperError):
    """A blueprint that cannot be read, is not valid, or exceeds a budget."""

    exit_code = 4


class CompilationError(EsperError):
    """A valid blueprint that failed in ``stage`` of its compilation."""

    exit_code = 5

    def __init__(self, message: str, *, stage: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage


class LibraryError(EsperError):
    """The kernel library cannot be used: unreadable, foreign or of a newer version."""

    exit_code = 6


class KernelNotFound(LibraryError):
    """No kernel of that id is in the library."""

    def __init__(self, kernel_id: str) -> None:
        super().__init__(f"no kernel {kernel_id!r} in the library", hint="list them with: esper kernels ls")
        self.kernel_id = kernel_id


class CorruptKernel(LibraryError):
    """The stored bytes of a kernel do not match their digest; nothing was loaded."""


class RefusedProgram(LibraryError):
    """A compiled kernel from elsewhere that cannot be loaded under limits, or holds what no kernel needs."""


class TierUnavailable(LibraryError):
    """A tier, such as a Redis cache, does not answer in time, or not as it should."""


class RunError(EsperError):
    """A run that cannot be found, resumed or exported."""

    exit_code = 7


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged, or of another network."""


class ProcessLost(RunError):
    """Of many processes that train together, one is gone."""


class GraftError(EsperError):
    """A layer that cannot be wrapped, a kernel that does not fit, a transition that is not allowed."""

    exit_code = 8


class Instability(EsperError):
    """Training diverged and could not be recovered."""

    exit_code = 9


class StorageError(EsperError):
    """Disk full, read-only folder, I/O error."""

    exit_code = 10

    @classmethod
    def from_os(cls, error: OSError, path: Path | str, doing: str) -> StorageError:
        """The error for ``error`` met while ``doing`` something at ``path``, with its next step."""
        hints = {
            errno.ENOSPC: "free some space and run the command again",
            errno.EDQUOT: "free some of your quota and run the command again",
            errno.EACCES: "check the permissions of that folder, or choose another",
            errno.EROFS: "that file system is read-only; choose another folder",
            errno.EEXIST: "a file is there; choose another folder",
            errno.ENOTDIR: "a file is there; choose another folder",
        }
        reason = error.strerror or str(error)
        return cls(f"{doing} {path}: {reason}", hint=hints.get(error.errno or 0))


class SinkUnavailable(StorageError):
    """A sink of telemetry takes nothing for now: a server is gone, a file system is full."""


class ServerError(EsperError):
    """The HTTP server cannot start."""

    exit_code = 11


class SecurityError(EsperError):
    """Keys that cannot be had or used: missing, damaged, open to others, not ours to change."""

    exit_code = 12


class UnknownKey(SecurityError):
    """Bytes sealed, or a record signed, with the key ``key_id``, which is not among those of ``origin``."""

    def __init__(self, key_id: str, origin: str) -> None:
        super().__init__(
            f"no key {key_id} in {origin}",
            hint="what it sealed can be read when your copy of it is back; esper keys ls lists the keys",
        )
        self.key_id = key_id


class AuditError(SecurityError):
    """An audit trail that is not whole, or cannot be told to be."""


class SealBroken(SecurityError):
    """Sealed bytes or a record were changed, cut or put under another name; no byte of them was used."""


class TokenRefused(SecurityError):
    """A token that is not valid; ``expired`` if that is all that is wrong with it. Nothing of it is told."""

    def __init__(
        self, reason: str, *, expired: bool = False, hint: str | None = "another: esper token issue"
    ) -> None:
        super().__init__(f"the token is refused: {reason}", hint=hint)
        self.reason = reason
        self.expired = expired
