"""What this machine has seen of each trail: its newest number, apart from the trail itself.

Whoever can cut the end of a trail, and put an older head in the place of the newer, does not reach this.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from esper.errors import AuditError, StorageError
from esper.security.audit import Head

_FIELDS: Final = {"trail": str, "sequence": int, "link": str, "key_id": str, "mac": str}
_LENGTH: Final = 512
"""Bytes that a head takes, blanks at its end: one write in its place, which no death of a process cuts."""


class KeptHeads:
    """A file a trail in ``folder``, called after the place of the trail. Processes may share the folder.

    Each method may raise AuditError for a file that is damaged, StorageError for one that cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, place: str) -> Path:
        """The file for the trail of ``place``."""
        return self._folder / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"

    def read(self, place: str) -> Head | None:
        """What was seen of the trail of ``place``, if anything; unauthenticated."""
        return read_head(self.path(place))

    def keep(self, place: str, head: Head, link_at: Callable[[int], str | None]) -> None:
        """Keep ``head``, unless a newer one is kept, or one that does not lead to it: that is evidence.

        ``link_at`` is the link of an entry of the trail of ``head``. Not waited for until it is on the disk:
        an older number than the trail's is no false alarm.
        """
        path = self.path(place)
        with _opened(path) as fd:
            kept = _head(fd, path)
            if kept is None or (kept.sequence < head.sequence and _leads_to(kept, head, link_at)):
                _put(fd, head)
            elif not _leads_to(kept, kept, link_at) or kept.trail != head.trail:
                raise AuditError(
                    f"the audit trail of {place} is not the one that {path} knows",
                    hint="look at it with: esper audit verify",
                )

    def resign(self, place: str, old: Head, new: Head) -> None:
        """Put ``new``, the same number under another key, in the place of ``old`` if that is still kept."""
        replace_head(self.path(place), old, new)


def read_head(path: Path) -> Head | None:
    """The head in the file ``path``, if there is one; unauthenticated."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot read how far the audit trail went from") from error
    try:
        return _head(fd, path)
    finally:
        os.close(fd)


def write_head(path: Path, head: Head) -> None:
    """Put ``head`` into the file ``path``, whatever is there."""
    with _opened(path) as fd:
        _put(fd, head)


def replace_head(path: Path, old: Head | None, new: Head) -> bool:
    """Put ``new`` into the file ``path`` if it still has ``old``, and onto the disk; whether it had."""
    with _opened(path) as fd:
        if _head(fd, path) != old:
            return False
        _put(fd, new)
        os.fsync(fd)
        return True


def _leads_to(kept: Head, head: Head, link_at: Callable[[int], str | None]) -> bool:
    return kept.trail == head.trail and link_at(kept.sequence) == kept.link


def _head(fd: int, path: Path) -> Head | None:
    data = os.pread(fd, 2 * _LENGTH, 0)
    if not data:
        return None  # just made
    try:
        found = json.loads(data)
        fields = {name: found[name] for name in _FIELDS}
        if any(type(fields[name]) is not kind for name, kind in _FIELDS.items()):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise AuditError(
            f"{path}, which says how far an audit trail went, is damaged",
            hint="look at the trail with: esper audit ls; if it ends where it should, remove that file",
        ) from None
    return Head(**fields)


def _put(fd: int, head: Head) -> None:
    data = json.dumps({name: getattr(head, name) for name in _FIELDS}).encode()
    os.pwrite(fd, data.ljust(_LENGTH - 1) + b"\n", 0)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The file, made if it is not there, locked until the block ends."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot keep how far the audit trail went in") from error
