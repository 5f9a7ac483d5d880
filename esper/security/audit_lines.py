"""The audit trail of a file of lines, such as a run's journal: an audited line carries its own entry.

What is recorded and its entry are one line, written with one call, so neither is there without the other. The
entry stands at the end of the line's JSON, and covers all that stands before it::

    {"event":"decision","at":"...","epoch":3,...,"audit":{"trail":"..","n":7,"who":"..","link":"..",...}}

The head lies in a file beside. It is written after its line is on the disk, so a process that died in between
leaves a head that is one entry behind, and never one that is ahead.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from esper.errors import AuditError, StorageError
from esper.security.audit import Entry, Head, Signer, first_link
from esper.security.audit_heads import read_head, write_head

HEAD_NAME: Final = "audit.head"
"""Name of the head, beside the journal of a run."""

AUDITED: Final = frozenset(
    {
        "run_started",
        "decision",
        "growth",
        "trial",
        "fault",
        "rollback",
        "control",
        "run_finished",
        "run_interrupted",
        "run_failed",
    }
)
"""Events of a run that change it, or say how it came to be what it is."""

_MARK: Final = b',"audit":{"trail":'
_ENTRY: Final = re.compile(
    rb'^(\{"event":"([a-z_]+)",.*),"audit":(\{"trail":"[0-9a-f]+","n":\d+,"who":"[^"]*",[^{}]*\})\}$',
    re.DOTALL,
)
_AT: Final = re.compile(rb'^\{"event":"[a-z_]+","at":"([^"]*)"')


class Line(NamedTuple):
    """An audited line: the name of the trail, its entry, and which line of the file it is, from 1."""

    trail: str
    entry: Entry
    number: int
    at: str

    @property
    def shown(self) -> Entry:
        """The entry with the time that its line says, for people."""
        return replace(self.entry, at=self.at)


class LineTrail:
    """Gives lines of one file their entries. ``who`` says who acts; not safe to share between threads.

    Its methods may raise what keys raise, AuditError for a damaged head, and StorageError.
    """

    def __init__(self, signer: Signer, who: Callable[[], str]) -> None:
        self._signer = signer
        self._who = who
        self._head_path: Path | None = None
        self._trail, self._number, self._link = "", 0, ""
        self._pending: Entry | None = None

    @property
    def newest(self) -> tuple[int, str]:
        """Number and link of the newest entry that is on the disk."""
        return self._number, self._link

    def begin(self, path: Path) -> None:
        """Go on where the file ``path`` ends; behind the head where the file is shorter, so that it shows."""
        self._head_path = path.with_name(HEAD_NAME)
        head = read_head(self._head_path)
        # To sign on behind what is not good would vouch for it: the next head does for all before it.
        if head is not None and not self._signer.head_is_good(head):
            raise _not_good(self._head_path, path)
        if head is not None:
            self._trail, self._number, self._link = head.trail, head.sequence, head.link
        for line in audited_lines(path):
            if line.entry.sequence <= self._number:
                continue
            if self._trail not in ("", line.trail) or not self._signer.entry_is_good(line.trail, line.entry):
                raise _not_good(f"entry {line.entry.sequence} of {path}", path)
            self._trail, self._number, self._link = line.trail, line.entry.sequence, line.entry.link
        if not self._trail:
            self._trail = secrets.token_hex(16)
            self._link = first_link(self._trail)

    def sealed(self, event: str, line: str) -> str | None:
        """``line``, the JSON of ``event``, with its entry at its end; None for one that is not audited."""
        if event not in AUDITED:
            return None
        entry = _unsigned(self._number + 1, self._who(), event, line[:-1].encode())
        entry = self._pending = self._signer.entry(self._trail, self._link, entry)
        fields = {"trail": self._trail, "n": entry.sequence, "who": entry.who}
        fields |= {"link": entry.link, "key": entry.key_id, "mac": entry.mac}
        return f'{line[:-1]},"audit":{json.dumps(fields, separators=(",", ":"))}}}'

    def written(self) -> None:
        """The line of the last :meth:`sealed` is on the disk."""
        if self._pending is None or self._head_path is None:
            return
        self._number, self._link, self._pending = self._pending.sequence, self._pending.link, None
        write_head(self._head_path, self._signer.head(self._trail, self._number, self._link))


def audited_lines(path: Path) -> Iterator[Line]:
    """The audited lines of the file ``path``, unchecked; raises StorageError when it cannot be read."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if _MARK in raw and (line := _parsed(raw.rstrip(b"\n"), number)) is not None:
                    yield line
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot read the journal") from error


def _parsed(raw: bytes, number: int) -> Line | None:
    match = _ENTRY.match(raw)
    if match is None:
        return None
    said, event, entry = match.groups()
    try:
        found: dict[str, Any] = json.loads(entry)
        texts = {name: str(found[name]) for name in ("trail", "who", "link", "key", "mac")}
        unsigned = _unsigned(int(found["n"]), texts["who"], event.decode(), said)
    except (ValueError, KeyError, TypeError):
        return None
    entry_of_line = replace(unsigned, link=texts["link"], key_id=texts["key"], mac=texts["mac"])
    at = _AT.search(said)
    return Line(texts["trail"], entry_of_line, number, at[1].decode() if at else "")


def _unsigned(number: int, who: str, event: str, said: bytes) -> Entry:
    """The entry of a line that says ``said``; its time is in there."""
    digest = hashlib.sha256(said).hexdigest()
    return Entry(number, "", who, event, "", "", digest, "")


def _not_good(what: Path | str, path: Path) -> AuditError:
    return AuditError(
        f"{what} is not what a holder of a key wrote",
        hint=f"look at the run with: esper audit verify --run {path.parent.name}",
    )


def head_of(path: Path) -> Head | None:
    """What stands beside the journal ``path``; raises AuditError where it is damaged."""
    return read_head(path.with_name(HEAD_NAME))
