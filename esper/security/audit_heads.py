"""What this machine has seen of each trail: its newest number, apart from the trail itself.

Whoever can cut the end of a trail, and put an older head in the place of the newer, does not reach this.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from esper.errors import AuditError, StorageError
from esper.security.audit import Head

_FIELDS: Final = {"trail": str, "sequence": int, "link": str, "key_id": str, "mac": str}


class KeptHeads:
    """A file a trail in ``folder``, called after the place of the trail. Processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, place: str) -> Path:
        """The file for the trail of ``place``."""
        return self._folder / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"

    def read(self, place: str) -> Head | None:
        """What was seen of the trail of ``place``, if anything; unauthenticated.

        Raises AuditError for a file that is damaged, StorageError for one that cannot be read.
        """
        path = self.path(place)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError.from_os(
                error, path, "cannot read the newest number of the trail in"
            ) from error
        except UnicodeDecodeError:
            raise _damaged(path) from None
        return head_from_text(text, path)

    def keep(self, place: str, head: Head) -> None:
        """Keep ``head`` unless a newer one, or one of another trail, is kept: that is evidence.

        Not waited for until it is on the disk: an older number than the trail's is no false alarm.
        """
        path = self.path(place)
        try:
            with _locked(self._folder, path):
                kept = self.read(place)
                if kept is None or (kept.trail == head.trail and kept.sequence < head.sequence):
                    replace_text(path, head_to_text(head))
        except OSError as error:
            raise StorageError.from_os(
                error, path, "cannot keep the newest number of the trail in"
            ) from error

    def resign(self, place: str, old: Head, new: Head) -> None:
        """Put ``new``, the same number under another key, in the place of ``old`` if that is still kept."""
        path = self.path(place)
        with _locked(self._folder, path):
            if self.read(place) == old:
                replace_text(path, head_to_text(new))


def head_to_text(head: Head) -> str:
    """A head as a line of JSON."""
    return json.dumps(asdict(head), sort_keys=True) + "\n"


def head_from_text(text: str, path: Path) -> Head:
    """The head of :func:`head_to_text`, or AuditError."""
    try:
        found = json.loads(text)
        fields = {name: found[name] for name in _FIELDS}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _damaged(path) from None
    if any(type(fields[name]) is not kind for name, kind in _FIELDS.items()):
        raise _damaged(path)
    return Head(**fields)


def replace_text(path: Path, text: str) -> None:
    """Put ``text`` in the place of what ``path`` holds, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _damaged(path: Path) -> AuditError:
    return AuditError(
        f"{path}, which says how far an audit trail went, is damaged",
        hint="check the trail with: esper audit verify; then remove that file",
    )


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
