"""The keys that runs need, and their journals under another key. Importing this does not import PyTorch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esper.assembly.audit_trails import checked_run
from esper.errors import AuditError, StorageError
from esper.nissa.journal import COPY_NAME, JOURNAL_NAME, is_being_written
from esper.nissa.runs import RunStore
from esper.security.audit import Head, Signer
from esper.security.audit_heads import replace_head
from esper.security.audit_lines import HEAD_NAME, audited_lines, head_of
from esper.security.envelope import MAGIC, VERSION
from esper.tolaria.checkpoints.manifest import NAME as MANIFEST_NAME
from esper.urza.library import KernelLibrary

_SEALED: Final = re.compile(re.escape(MAGIC) + bytes([VERSION]) + b"(.{8})", re.DOTALL)
_HEADER_BYTES: Final = len(MAGIC) + 1 + 8


@dataclass(frozen=True, slots=True)
class RunNeeds:
    """The ids of the keys that the journal of a run and its checkpoints need, and whether it goes on."""

    run_id: str
    journal: frozenset[str]
    checkpoints: frozenset[str]
    goes_on: bool


def needs_of_runs(signer: Signer, root: Path) -> list[RunNeeds]:
    """What each run below ``root`` needs; raises StorageError."""
    return [
        RunNeeds(
            folder.name,
            _of_journal(signer, folder),
            frozenset(_of_checkpoints(folder)),
            is_being_written(folder / JOURNAL_NAME),
        )
        for folder in _folders(root)
    ]


def resign_journals(signer: Signer, root: Path, library: KernelLibrary) -> Iterator[str]:
    """Sign the head of each whole journal with the key that signs now; yields the runs, once it is done.

    Lines stay as they are: the head vouches for all before it. One that is written just now, or in which
    anything is wrong, stays under its key.
    """
    for folder in _folders(root):
        if _of_journal(signer, folder) - {signer.key_id} and _resigned(signer, folder, library):
            yield folder.name


def _folders(root: Path) -> list[Path]:
    """Those of all runs of this host."""
    found = [root / run_id for run_id in RunStore(root).run_ids()]
    return [folder for folder in found if not (folder / COPY_NAME).exists()]


def _resigned(signer: Signer, folder: Path, library: KernelLibrary) -> bool:
    journal, old = folder / JOURNAL_NAME, _head(signer, folder)
    checked = None if old is None else checked_run(signer, folder, library)
    if checked is None or checked[0].findings:
        return False
    last = checked[1][-1]  # of those that were checked: nothing that came since is vouched for
    new = signer.head(last.trail, last.entry.sequence, last.entry.link)
    try:
        fd = os.open(journal, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # As its writer does, for an instant: whoever goes on with it then reads the newer head.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return replace_head(folder / HEAD_NAME, old, new)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError.from_os(error, journal, "cannot sign anew the trail of") from error


def _head(signer: Signer, folder: Path) -> Head | None:
    """That of the run's journal if it is good: it vouches for the entries before it."""
    with contextlib.suppress(AuditError):  # of one that is damaged, which verify tells
        head = head_of(folder / JOURNAL_NAME)
        if head is not None and signer.head_is_good(head):
            return head
    return None


def _of_journal(signer: Signer, folder: Path) -> frozenset[str]:
    head = _head(signer, folder)
    if head is not None:
        return frozenset({head.key_id})
    return frozenset(line.entry.key_id for line in audited_lines(folder / JOURNAL_NAME))


def _of_checkpoints(folder: Path) -> Iterator[str]:
    checkpoints = folder / "checkpoints"
    for path in [
        *checkpoints.glob("*.sealed"),
        *checkpoints.glob("*step-*/*"),
    ]:  # also of one that is being written
        try:
            if path.name == MANIFEST_NAME:
                yield str(json.loads(path.read_bytes())["tag"]).partition(":")[0]
            elif path.parent == checkpoints:  # a log, whose parts may be of several keys
                yield from (found[1].hex() for found in _SEALED.finditer(path.read_bytes()))
            elif path.is_file():
                with path.open("rb") as file:
                    header = _SEALED.match(file.read(_HEADER_BYTES))
                if header is not None:
                    yield header[1].hex()
        except FileNotFoundError:
            continue  # removed meanwhile
        except (ValueError, KeyError, TypeError):
            continue  # a damaged manifest opens with no key
        except OSError as error:
            raise StorageError.from_os(error, path, "cannot see which key is needed for") from error
